"""Files that compute by automc's kernels: the same as the module, for a process that imports their operations."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import automc
from automc.deployment import forms
from automc.deployment.deploy import Deployed
from automc.deployment.network import PlannedNetwork
from automc.errors import ArtifactError, TaskError
from automc.kernels import compiler
from automc.kernels.images import lanes
from automc.kernels.sparse8 import SparseInt8Linear
from automc.kernels.sparse8_conv import SparseInt8Conv2d
from automc.kernels.tokens import PlannedLinear
from automc.leaving.kernels import fastest, loading
from automc.policy import LayerDecision
from tests.leaving import models
from tests.leaving.test_pt2 import alone

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not lanes(), reason="needs a C compiler")
READ = """
import sys, numpy
{line}
x = torch.from_numpy(numpy.load(sys.argv[1]))
with torch.no_grad():
    for count in map(int, sys.argv[3:]):
        numpy.save(f"{{sys.argv[2]}}.{{count}}.npy", module(x[:count]).numpy())
"""


@pytest.fixture
def deployed_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[nn.Module]]:
    """Has a form win, whatever the time it takes, its layers those that leave out zeros wherever they can be, and gives
    it once it is made."""
    monkeypatch.setattr("automc.deployment.layers.faster", lambda layer, x, others: others[-1] if others else None)

    def choose(name: str) -> list[nn.Module]:
        made: list[nn.Module] = []

        def deploy(module: nn.Module, inputs: tuple[Tensor, ...]) -> Deployed:
            made.append(forms.forms(module, inputs)[name])
            return Deployed(made[-1], name, {name: 0.0})

        monkeypatch.setattr("automc.leaving.kernels.deploy", deploy)
        return made

    return choose


def elsewhere(line: str, x: Tensor, folder: Path, *counts: int, **setting: str) -> subprocess.CompletedProcess[str]:
    """A fresh process that loads by a line of Python and runs the first samples, so many at a time."""
    np.save(folder / "x.npy", x.numpy())
    command = [
        sys.executable,
        "-c",
        READ.format(line=line),
        str(folder / "x.npy"),
        str(folder / "y"),
        *map(str, counts),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | setting
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)


def check_elsewhere(path: Path, x: Tensor, wanted: Tensor, folder: Path) -> None:
    """The file gives what the form gives, at two sizes of batches."""
    done = elsewhere(loading(path), x, folder, 1, 5)
    assert done.returncode == 0, done.stderr
    for count in (1, 5):
        found = torch.from_numpy(np.load(folder / f"y.{count}.npy"))
        torch.testing.assert_close(found, wanted[:count], rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", ["factored", pytest.param("mixed", marks=pytest.mark.slow)])
@torch.no_grad()
def test_a_network_leaves_as_one_plan(deployed_as, tmp_path: Path, kind: str) -> None:
    form, path, x = deployed_as("one plan"), tmp_path / "model.pt2", models.images(5)
    made = automc.export(
        models.resnet(kind), path, format="pt2", example_inputs=models.images(16, seed=7), kernels=True
    )
    assert made.form == "one plan" and made.any_size and made.checked and made.bytes == path.stat().st_size
    check_elsewhere(path, x, form[0](x), tmp_path)
    with zipfile.ZipFile(path) as file:
        content = [file.read(name) for name in file.namelist()]
    given = models.images(16, seed=7).numpy().tobytes()
    assert not any(given[:64] in part or str(ROOT).encode() in part for part in content)
    without = elsewhere(loading(path).replace(", automc.kernels.ops", ""), x, tmp_path, 1)
    assert without.returncode == 1 and "automc" in without.stderr


@pytest.mark.slow
@torch.no_grad()
def test_linear_layers_leave_by_themselves_where_there_is_no_plan_of_all(deployed_as, tmp_path: Path) -> None:
    form, module = deployed_as("sparse layers"), models.of(models.Encoder, LayerDecision(sparsity=0.8))
    path, x = tmp_path / "model.pt2", models.sequences(5)
    made = automc.export(module, path, format="pt2", example_inputs=models.sequences(9), kernels=True, batch=20)
    assert made.form == "sparse layers" and made.any_size
    assert any(isinstance(part, PlannedLinear) for part in form[0].modules())
    check_elsewhere(path, x, form[0](x), tmp_path)


class Images(nn.Module):
    """Convolutions and a linear layer, each with room for blocks of 16x4."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 16, 3), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 6, 8)"""
        return self.c(self.b(self.a(x.reshape(-1, 4, 3, 4)).relu()).relu().mean((2, 3))).tanh()


@torch.no_grad()
def test_layers_of_8_bits_leave_with_their_codes(deployed_as, tmp_path: Path) -> None:
    form = deployed_as("layers of 8 bits")
    module = models.of(Images, LayerDecision(8, 8, sparsity=0.5, pattern="16x4"))
    path, x = tmp_path / "model.pt2", models.sequences(5)
    made = automc.export(module, path, format="pt2", example_inputs=models.sequences(9), kernels=True)
    assert made.form == "layers of 8 bits" and made.any_size
    kinds = {type(part) for part in form[0].modules()}
    assert {SparseInt8Linear, SparseInt8Conv2d} <= kinds
    check_elsewhere(path, x, form[0](x), tmp_path)
    off = elsewhere(loading(path), x, tmp_path, 5, AUTOMC_KERNELS="off")  # sums of integers are torch's then
    assert off.returncode == 0, off.stderr
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "y.5.npy")), form[0](x), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.slow
def test_a_model_that_torch_runs_fastest_leaves_as_it_is_and_without_automc(deployed_as, tmp_path: Path) -> None:
    deployed_as("folded, channels last")
    module, x = models.resnet("weights"), models.images(3)
    made = automc.export(module, tmp_path / "model.pt2", format="pt2", kernels=True)
    assert made.form is None and made.checked
    torch.testing.assert_close(alone(made.path, x), module(x), rtol=1e-5, atol=1e-5)


def test_a_batch_of_one_size_is_said(deployed_as, tmp_path: Path) -> None:
    deployed_as("sparse layers")
    module = models.of(models.Looping, LayerDecision(sparsity=0.8))
    made = automc.export(module, tmp_path / "model.pt2", format="pt2", example_inputs=models.sequences(3), kernels=True)
    assert made.form == "sparse layers" and not made.any_size


@pytest.mark.skipif(compiler.compiler() is None or lanes() == 4, reason="vectors of two widths")
def test_other_vectors_and_missing_kernels_are_told_in_a_sentence(deployed_as, tmp_path: Path) -> None:
    deployed_as("one plan")
    path, narrow = tmp_path / "model.pt2", tmp_path / "narrow"
    automc.export(models.resnet("few"), path, format="pt2", kernels=True)
    narrow.write_text(f'#!/bin/sh\nexec {compiler.compiler()} "$@" -O0 -march=x86-64\n')
    narrow.chmod(0o700)
    other = f"with vectors of {lanes()} floats; this one has 4: make it anew here, by automc.deploy or automc export"
    none = "ArtifactError: A plan must be run by compiled kernels; there are none here: install a C compiler"
    for said, program in ((other, str(narrow)), (none, "false")):
        done = elsewhere(loading(path), models.images(2), tmp_path, 1, AUTOMC_KERNELS=str(tmp_path), CC=program)
        assert done.returncode == 1 and said in done.stderr and not (tmp_path / "y.1.npy").exists()


def test_a_form_that_is_off_is_noticed_and_no_file_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def deploy(module: nn.Module, inputs: tuple[Tensor, ...]) -> Deployed:
        form = forms.forms(module, inputs)["one plan"]
        assert isinstance(form, PlannedNetwork)
        return Deployed(nn.Sequential(form, Scaled()), "one plan", {})

    monkeypatch.setattr("automc.leaving.kernels.deploy", deploy)
    with pytest.raises(ArtifactError, match=r"differs in its outputs by .*, where .* is rounding"):
        automc.export(models.resnet("few"), tmp_path / "model.pt2", format="pt2", kernels=True)
    assert not list(tmp_path.iterdir())


class Scaled(nn.Module):
    """A thousandth too much."""

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape"""
        return 1.001 * x


def test_onnx_has_no_place_for_kernels(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="knows operations of torch; onnx does not: take pt2, or leave kernels out"):
        automc.export(models.resnet("few"), tmp_path / "model.onnx", format="onnx", kernels=True)
    assert not list(tmp_path.iterdir())


def test_kernels_are_sought_for_the_batch_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def deploy(module: nn.Module, inputs: tuple[Tensor, ...]) -> Deployed:
        seen.append([tuple(x.shape) for x in inputs])
        return Deployed(nn.Identity(), name, {})

    monkeypatch.setattr("automc.leaving.kernels.deploy", deploy)
    module = models.Single()
    for name, batch in (("folded", 1), ("one plan", 7), ("as it is", 40)):  # more than there are
        found, form = fastest(module, (models.sequences(6),), batch)
        assert (form is None) == (found is module) == (name != "one plan") and form in (None, name)
    assert seen == [[(1, 6, 8)], [(7, 6, 8)], [(40, 6, 8)]]


@pytest.mark.parametrize("batch", [0, -1])
def test_no_samples_are_refused(batch: int) -> None:
    with pytest.raises(TaskError, match="must hold at least one sample"):
        fastest(models.Single(), (models.sequences(6),), batch)
