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
try:
    automc.search
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["mixed", "factored"])
def test_a_model_is_loaded_by_a_process_that_has_torch_and_nothing_of_the_search(tmp_path: Path, kind: str) -> None:
    module = resnet(kind)
    automc.save(module, tmp_path)
    command = [sys.executable, "-c", ALONE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    total, macs, blocked = done.stdout.splitlines()
    with torch.no_grad():
        assert float(total) == pytest.approx(float(module(images(4)).double().sum()), rel=1e-5)
    assert float(macs) == automc.cost(module, images(4))["macs"]
    assert "optuna" in blocked  # so that the block is one
