"""CIFAR-10 with trained ResNets: the tasks `cifar10-resnet20` and `cifar10-resnet56`.

Weights are a safetensors state dict, images Parquet files in the Hugging Face image-classification layout
(`img.bytes`, `label`), all under the folder named by the environment variable AUTOMC_DATA:

    models/cifar10/resnet56.safetensors
    data/cifar10/train-00000-of-00002.parquet         calibration: its first 4,096 images
    data/cifar10/validation-00000-of-00001.parquet    the search scores here
    data/cifar10/test-00000-of-00001.parquet          the report is made here

The networks have seen every training image, so training images calibrate and never score.
"""

import io
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from automc.errors import TaskError
from automc.task import Task
from automc.tasks.augment import flips_and_shifts
from automc.tasks.resnet import ResNet

CALIBRATION_IMAGES = 4096
BATCH = 500
# Mean and standard deviation the checkpoints were trained with, of RGB in [0, 1].
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)

Batches = tuple[tuple[Tensor, Tensor], ...]


def resnet20() -> Task:
    """ResNet-20: 0.27 M parameters, 40.55 M MACs."""
    return _task(20)


def resnet56() -> Task:
    """ResNet-56: 0.85 M parameters, 125.49 M MACs."""
    return _task(56)


def data_folder() -> Path:
    """Where weights and images are: $AUTOMC_DATA, else a folder `shared` beside the project."""
    named = os.environ.get("AUTOMC_DATA")
    return Path(named) if named else Path(__file__).resolve().parents[2].parent / "shared"


def _task(depth: int) -> Task:
    factory = partial(ResNet, depth)
    model = factory()
    _load_weights(model, _file(f"models/cifar10/resnet{depth}.safetensors"))
    return Task(
        model.eval(),
        calibration=batches("train-00000-of-00002.parquet", CALIBRATION_IMAGES),
        validation=batches("validation-00000-of-00001.parquet"),
        test=batches("test-00000-of-00001.parquet"),
        name=f"cifar10-resnet{depth}",
        augment=flips_and_shifts,
        factory=factory,
    )


def _file(relative: str) -> Path:
    path = data_folder() / relative
    if not path.is_file():
        raise TaskError(
            f"The cifar10 tasks need {relative} in the data folder; {path} is no file: "
            "put it there, or set AUTOMC_DATA to the folder that holds it."
        )
    return path


def _load_weights(model: ResNet, path: Path) -> None:
    try:
        state: Mapping[str, Tensor] = load_file(path)
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise TaskError(
            f"{path.name} must be the safetensors state dict of this ResNet; it is not ({reason}): replace the file."
        ) from error


def batches(name: str, limit: int | None = None) -> Batches:
    """Normalised images and labels of one Parquet file, in its order, `limit` images at most."""
    pixels, labels = _read(_file(f"data/cifar10/{name}"), limit)
    images = normalise(pixels)
    return tuple(zip(torch.split(images, BATCH), torch.split(torch.from_numpy(labels), BATCH), strict=True))


def normalise(pixels: NDArray[np.uint8]) -> Tensor:
    """From RGB bytes (N, H, W, 3) to the network's input (N, 3, H, W)."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    mean = torch.tensor(MEAN).view(3, 1, 1)
    deviation = torch.tensor(DEVIATION).view(3, 1, 1)
    return images.div_(255).sub_(mean).div_(deviation)


def _read(path: Path, limit: int | None) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        table = _head(path, limit)
        encoded = table.column("img").combine_chunks().field("bytes").to_pylist()
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(x)).convert("RGB")) for x in encoded])
        return pixels, table.column("label").to_numpy().astype(np.int64)
    except (pa.ArrowException, KeyError, ValueError, TypeError, UnidentifiedImageError) as error:
        reason = str(error).splitlines()[0]
        raise TaskError(
            f"{path.name} must hold the columns img.bytes and label in Parquet; it does not ({reason}): "
            "replace the file."
        ) from error


def _head(path: Path, limit: int | None) -> pa.Table:
    """The first `limit` rows, read without decoding the rest of the file."""
    file = pq.ParquetFile(path)
    if limit is None:
        return file.read(columns=["img", "label"])
    batches = file.iter_batches(batch_size=limit, columns=["img", "label"])
    return pa.Table.from_batches([next(batches)])
