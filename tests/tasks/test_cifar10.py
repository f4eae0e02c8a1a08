"""CIFAR-10 tasks: what is read from a small folder built here, and from the real one where it is."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from automc.errors import TaskError
from automc.tasks import cifar10, load_task
from automc.tasks.resnet import ResNet

SHARDS = ("train-00000-of-00002", "validation-00000-of-00001", "test-00000-of-00001")


def encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with ten random images a split and untrained weights."""
    rng = np.random.default_rng(0)
    images = tmp_path / "data" / "cifar10"
    images.mkdir(parents=True)
    for shard in SHARDS:
        pixels = rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
        rows = [{"bytes": encoded(x), "path": None} for x in pixels]
        pq.write_table(pa.table({"img": rows, "label": list(range(10))}), images / f"{shard}.parquet")
    networks = tmp_path / "models" / "cifar10"
    networks.mkdir(parents=True)
    save_file(ResNet(20).state_dict(), networks / "resnet20.safetensors")
    monkeypatch.setenv("AUTOMC_DATA", str(tmp_path))
    return tmp_path


def message() -> str:
    with pytest.raises(TaskError) as caught:
        load_task("cifar10-resnet20")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_task_is_read_from_the_documented_layout(folder):
    task = load_task("cifar10-resnet20")
    assert task.name == "cifar10-resnet20"
    [(inputs, labels)] = task.validation
    assert inputs[0].shape == (10, 3, 32, 32)
    assert inputs[0].is_contiguous()
    assert labels.tolist() == list(range(10))
    assert task.model(*inputs).shape == (10, 10)


def test_pixels_are_normalised_as_in_training():
    pixels = np.full((1, 2, 2, 3), (0, 255, 128), dtype=np.uint8)
    expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225]
    torch.testing.assert_close(cifar10.normalise(pixels)[0, :, 1, 1], torch.tensor(expected))


def test_calibration_takes_the_first_images_only(folder, monkeypatch):
    monkeypatch.setattr(cifar10, "CALIBRATION_IMAGES", 4)
    task = load_task("cifar10-resnet20")
    assert sum(len(labels) for _, labels in task.calibration) == 4


@pytest.mark.parametrize(
    "relative", ["models/cifar10/resnet20.safetensors", "data/cifar10/validation-00000-of-00001.parquet"]
)
def test_a_missing_file_is_named_with_what_to_do(folder, relative):
    (folder / relative).unlink()
    assert relative in message()
    assert "set AUTOMC_DATA" in message()


def test_a_broken_weights_file_is_named(folder):
    (folder / "models/cifar10/resnet20.safetensors").write_bytes(b"broken")
    assert "resnet20.safetensors must be the safetensors state dict" in message()


def test_the_weights_of_another_network_are_refused(folder):
    save_file(ResNet(14).state_dict(), folder / "models/cifar10/resnet20.safetensors")
    assert "must be the safetensors state dict of this ResNet" in message()


def test_a_file_that_is_no_parquet_is_named(folder):
    (folder / "data/cifar10/validation-00000-of-00001.parquet").write_bytes(b"broken")
    assert "validation-00000-of-00001.parquet must hold the columns" in message()


def test_a_broken_picture_is_named(folder):
    rows = [{"bytes": b"no picture", "path": None}]
    path = folder / "data/cifar10/test-00000-of-00001.parquet"
    pq.write_table(pa.table({"img": rows, "label": [0]}), path)
    assert "test-00000-of-00001.parquet must hold the columns" in message()


def test_a_table_without_labels_is_named(folder):
    path = folder / "data/cifar10/test-00000-of-00001.parquet"
    pq.write_table(pa.table({"img": [{"bytes": b"", "path": None}]}), path)
    assert "test-00000-of-00001.parquet must hold the columns" in message()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "expected"), [("cifar10-resnet20", 0.9174), ("cifar10-resnet56", 0.9358)])
def test_the_dense_network_has_its_measured_accuracy(data_root, name, expected):
    task = load_task(name)
    assert task.test is not None
    with torch.no_grad():
        right = torch.cat([task.per_sample(task.model(*inputs), labels) for inputs, labels in task.test])
    assert len(right) == 5000
    assert abs(float(right.mean()) - expected) <= 0.0004  # two images: sums differ between processors


def test_the_real_layout_is_read(data_root):
    task = load_task("cifar10-resnet56")
    sizes = [sum(len(labels) for _, labels in split) for split in (task.calibration, task.validation, task.test or ())]
    assert sizes == [4096, 5000, 5000]
    inputs, labels = task.validation[0]
    with torch.no_grad():
        assert task.per_sample(task.model(*(x[:200] for x in inputs)), labels[:200]).mean() > 0.88
