"""The embedded task: good, the same every time, and no worse for a broken cache."""

import warnings
from pathlib import Path

import pytest
import torch

from automc.task import Task
from automc.tasks import digits as module
from automc.tasks import load_task
from automc.tasks.digits import Training, splits, train_network, weights

QUICK = Training(epochs=1)


def accuracy(task: Task, split) -> float:
    with torch.no_grad():
        right = torch.cat([task.per_sample(task.model(*inputs), targets) for inputs, targets in split])
    return float(right.mean())


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("digits")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "automc"


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_network_reads_digits_it_has_not_seen(task):
    assert accuracy(task, task.validation) > 0.95
    assert accuracy(task, task.test) > 0.95


def test_no_image_stands_in_two_splits():
    images = torch.cat([x for x, _ in splits()])
    assert len(images) == 1797
    counts = [len(labels) for _, labels in splits()]
    assert counts == [897, 450, 450]
    # The data hold no two equal images, so equal ones would be one image drawn twice.
    assert len(torch.unique(images.flatten(1), dim=0)) == 1797


def test_the_model_comes_in_evaluation_mode_and_its_factory_fits(task):
    assert not task.model.training
    task.factory().load_state_dict(task.model.state_dict())


def test_training_twice_gives_the_same_weights_whatever_the_thread_count():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    first = train_network(QUICK)
    torch.set_num_threads(1)
    second = train_network(QUICK)
    torch.set_num_threads(threads)
    assert same(first, second)
    assert not same(first, train_network(Training(epochs=1, seed=1)))


def test_training_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train_network(QUICK)
    assert torch.equal(before, torch.get_rng_state())


def test_training_works_where_gradients_are_off():
    with torch.no_grad():
        assert same(train_network(QUICK), train_network(QUICK))


def test_a_second_call_reads_the_cache(cache, monkeypatch):
    first = weights(QUICK)
    monkeypatch.setattr(module, "train_network", lambda training: pytest.fail("trained again"))
    assert same(first, weights(QUICK))
    assert len(list(cache.iterdir())) == 1


def test_other_settings_are_another_file(cache):
    weights(QUICK)
    weights(Training(epochs=1, seed=1))
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "empty"])
def test_a_broken_cache_file_is_trained_anew(cache, damage):
    first = weights(QUICK)
    [path] = cache.iterdir()
    whole = path.read_bytes()
    flipped = whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:]
    broken = {"truncated": whole[: len(whole) // 2], "flipped": flipped, "foreign": b"hello", "empty": b""}[damage]
    path.write_bytes(broken)
    assert same(first, weights(QUICK))
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_warns_and_works(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.warns(UserWarning, match="not cached"):
        assert weights(QUICK)


def test_a_written_cache_does_not_warn(cache):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights(QUICK)
