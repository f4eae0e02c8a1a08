"""A saved model where nothing of the search is installed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import automc
from tests.leaving.models import images, resnet

ROOT = Path(__file__).parents[1]
BLOCKED = (
    "optuna",
    "ray",
    "gymnasium",
    "onnx",
    "onnxruntime",
    "sklearn",
    "scipy",
    "rich",
    "typer",
    "plotly",
    "pyarrow",
)
ALONE = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None
import automc, torch
from automc.tasks.resnet import ResNet
module = automc.load(sys.argv[1], lambda: ResNet(8, widths=(8, 16, 32), classes=5))
x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))
with torch.no_grad():
    print(module(x).double().sum().item())
print(automc.cost(module, x)["macs"])
if len(sys.argv) > 2:
    automc.search
"""


@pytest.mark.parametrize("kind", ["mixed", "factored"])
def test_a_model_is_loaded_by_a_process_that_has_torch_and_nothing_of_the_search(tmp_path: Path, kind: str) -> None:
    module = resnet(kind)
    automc.save(module, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    total, macs = map(float, done.stdout.split())
    with torch.no_grad():
        assert total == pytest.approx(float(module(images(4)).double().sum()), rel=1e-5)
    assert macs == automc.cost(module, images(4))["macs"]


def test_the_same_process_could_not_search(tmp_path: Path) -> None:
    automc.save(resnet("mixed"), tmp_path)
    command = [sys.executable, "-c", ALONE, str(tmp_path), "search"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "None in sys.modules" in done.stderr
