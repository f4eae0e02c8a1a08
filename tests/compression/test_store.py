"""The store forgets what is oldest, never trusts a damaged file, and tells models and data apart."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from automc.compression import bank as module
from automc.compression.bank import LayerBank
from automc.compression.store import TensorStore
from automc.errors import ArtifactError
from automc.graph.trace import trace_model
from automc.policy import Recipe


class Counter:
    """Makes tensors and counts how often."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self, key: str, size: int = 10) -> dict[str, Tensor]:
        self.made.append(key)
        return {"x": torch.full((size,), float(len(key)), dtype=torch.float32)}


def test_the_least_recently_used_leave_first() -> None:
    store, make = TensorStore(100), Counter()
    for key in ("a", "b", "a", "c"):  # 40 bytes each: c drives b out, since a was used again
        store.get(key, lambda key=key: make(key))  # type: ignore[misc]
    assert store.bytes == 80
    store.get("a", lambda: make("a"))
    assert make.made == ["a", "b", "c"]
    store.get("b", lambda: make("b"))
    assert make.made == ["a", "b", "c", "b"]


def test_an_entry_larger_than_the_bound_is_given_and_not_held() -> None:
    store, make = TensorStore(100), Counter()
    store.get("small", lambda: make("small"))
    assert len(store.get("big", lambda: make("big", 1000))["x"]) == 1000
    store.get("small", lambda: make("small"))
    assert store.bytes == 40 and make.made == ["small", "big"]


def test_a_folder_outlives_the_process_and_may_be_opted_out_of(tmp_path: Path) -> None:
    make = Counter()
    first = TensorStore(1000, tmp_path).get("k", lambda: make("k"))
    again = TensorStore(1000, tmp_path).get("k", lambda: make("k"))
    assert make.made == ["k"] and torch.equal(first["x"], again["x"])
    TensorStore(1000, tmp_path).get("memory only", lambda: make("m"), on_disk=False)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str) -> None:
    make = Counter()
    TensorStore(1000, tmp_path).get("k", lambda: make("k"))
    path = next(tmp_path.iterdir())
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-3] ^= 64
    path.write_bytes({"flip": bytes(data), "cut": bytes(data[:-5]), "empty": b"", "other": b"\xff" * 99}[damage])
    found = TensorStore(1000, tmp_path).get("k", lambda: make("k"))
    assert make.made == ["k", "k"] and bool((found["x"] == 1).all())
    TensorStore(1000, tmp_path).get("k", lambda: make("k"))
    assert make.made == ["k", "k"]  # and the file is sound again


def bank(folder: Path, shift: float = 0.0, scale: float = 1.0, recipe: Recipe | None = None) -> LayerBank:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = nn.Conv2d(3, 6, 3)
        model = nn.Sequential(first, nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)).eval()
        x = torch.randn(16, 3, 8, 8) + shift
    with torch.no_grad():
        first.weight *= scale
    return LayerBank(trace_model(model, (x[:2],)).facts, model, (x,), recipe or Recipe(images=16), folder=folder)


def test_a_bank_finds_its_own_and_only_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bank(tmp_path)
    group = first.facts.groups[0]
    order = first.elimination(group, "obs")[0]
    traces = first.traces("3", "element")

    def never(*_: object) -> None:
        raise AssertionError("must come from disk")

    with monkeypatch.context() as patch:
        for name in ("eliminate", "eliminations"):
            patch.setattr(module, name, never)
        again = bank(tmp_path)
        assert again.elimination(again.facts.groups[0], "obs")[0].tolist() == order.tolist()
        assert torch.equal(again.traces("3", "element").order, traces.order)
        for other in (bank(tmp_path, shift=1.0), bank(tmp_path, scale=2.0), bank(tmp_path, recipe=Recipe(seed=1))):
            with pytest.raises(AssertionError, match="must come from disk"):
                other.traces("3", "element")


def test_a_disk_that_fills_ends_the_keeping_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise ArtifactError(f"{path} must be writable; the system says No space left on device: free space.")

    store, make = TensorStore(0, tmp_path), Counter()
    store.get("k", lambda: make("k"))
    monkeypatch.setattr("automc.compression.store.write_atomic", full)
    for _ in range(2):
        assert len(store.get("new", lambda: make("new"))["x"]) == 10
    assert make.made == ["k", "new", "new"]
    assert caplog.text.count("No space left") == 1


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ArtifactError, match="taken"):
        bank(tmp_path / "taken")
