"""PyTorch's own files: run where there is no automc, and telling nothing but the model."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import automc
from automc.errors import ArtifactError, RegistryError
from automc.graph.trace import trace_model
from automc.leaving import pt2
from automc.leaving.portable import Operations
from automc.policy import GroupDecision, LayerDecision, Policy
from tests.leaving import models

ALONE = """
import sys
sys.modules["automc"] = None
import numpy, torch
x = torch.from_numpy(numpy.load(sys.argv[2]))
with torch.no_grad():
    numpy.save(sys.argv[3], torch.export.load(sys.argv[1]).module()(x).numpy())
"""


def alone(path: Path, x: Tensor) -> Tensor:
    """What the file gives in a process that cannot import automc."""
    given, found = path.with_suffix(".given.npy"), path.with_suffix(".found.npy")
    np.save(given, x.numpy())
    subprocess.run([sys.executable, "-c", ALONE, path, given, found], check=True, cwd=path.parent, env={})
    return torch.from_numpy(np.load(found))


@torch.no_grad()
def test_a_process_without_automc_computes_the_same_from_codes_and_is_told_no_more(tmp_path: Path):
    module, path, x = models.resnet("mixed"), tmp_path / "model.pt2", models.images(16)
    made = automc.export(module, path, format="pt2", example_inputs=x)
    assert made.any_size and made.checked and made.bytes == path.stat().st_size
    torch.testing.assert_close(alone(path, models.images(5)), module(models.images(5)), rtol=1e-5, atol=1e-5)
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name) for name in file.namelist()}
    kinds = [x["tensor_meta"]["dtype"] for x in json.loads(_weights(content))["config"].values()]
    assert sum(kind in (1, 2) for kind in kinds) >= 6  # uint8 and int8, as torch numbers them
    assert not any(x.numpy().tobytes()[:64] in part for part in content.values())
    assert not any(str(Path(__file__).parents[2]).encode() in part for part in content.values())


def _weights(content: dict[str, bytes]) -> bytes:
    return next(part for name, part in content.items() if name.endswith("weights_config.json"))


class ByName(nn.Module):
    """As models of Hugging Face's transformers give them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> models.Named:
        """x (B, 6, 8)"""
        hidden = self.first(x[:, : int(x.shape[1]) // 2]).relu()
        return models.Named(self.last(hidden.view(x.shape[0], 3, 16)).mean(1))


@pytest.mark.parametrize(
    "keep", [pytest.param(1.0, id="its own class", marks=pytest.mark.slow), pytest.param(0.5, id="a graph")]
)
def test_outputs_by_name_lie_in_a_dict_where_nobody_knows_their_class(tmp_path: Path, keep: float):
    torch.manual_seed(0)
    model, x = ByName().eval(), models.sequences(5)
    facts = trace_model(model, (x,)).facts
    groups = tuple((g.name, GroupDecision(keep)) for g in facts.groups)
    layers = (("last", LayerDecision(weight_bits=8)),)
    task = automc.Task(model, [models.sequences(96)], [], evaluate=lambda _: 0.0, name="named")
    module = automc.apply(task, Policy(facts.fingerprint, groups, layers))
    assert isinstance(module, fx.GraphModule) == (keep < 1)
    assert automc.export(module, tmp_path / "model.pt2", format="pt2", example_inputs=x).checked
    read = ALONE.replace("(x).numpy()", "(x)['scores'].numpy()")
    assert read != ALONE and type(module(x)) is models.Named
    np.save(tmp_path / "x.npy", x.numpy())
    places = (tmp_path / "model.pt2", tmp_path / "x.npy", tmp_path / "y.npy")
    subprocess.run([sys.executable, "-c", read, *places], check=True, cwd=tmp_path, env={})
    torch.testing.assert_close(torch.from_numpy(np.load(places[2])), module(x).scores)


def test_a_recurrent_model_leaves_and_is_left_as_it_is(tmp_path: Path):
    module = models.of(models.Recurrent, LayerDecision(weight_bits=4, codebook="kmeans"))
    before = {name: x.clone() for name, x in module.state_dict().items()}
    assert automc.export(module.train(), tmp_path / "model.pt2", format="pt2").any_size
    assert module.training and list(module.state_dict()) == list(before)
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())


def test_a_file_that_computes_something_else_is_noticed_and_none_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    module, right = models.of(models.Single, LayerDecision(weight_bits=8)), pt2._TORCH
    wrong = Operations(lambda codes, scale: 1.001 * right.even(codes, scale), right.shared, right.rounding)
    monkeypatch.setattr(pt2, "_TORCH", wrong)
    with pytest.raises(ArtifactError, match=r"differs in its outputs by .*, where .* is rounding"):
        automc.export(module, tmp_path / "model.pt2", format="pt2")
    monkeypatch.setattr(pt2, "_TORCH", right)
    monkeypatch.setattr(torch.export, "save", lambda program, file: file.write(b"nothing"))
    with pytest.raises(ArtifactError, match="must run in a process of its own; there torch says"):
        automc.export(module, tmp_path / "model.pt2", format="pt2")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused_in_a_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    target = tmp_path / "model.pt2"
    branching = models.of(models.Branching, LayerDecision(weight_bits=8))
    with pytest.raises(ArtifactError, match=r"torch\.export can follow; at this one it raises Guard") as refused:
        automc.export(branching, target, format="pt2")
    assert len(str(refused.value)) < 450 and "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")  # torch prints graphs where it fails
    with pytest.raises(ArtifactError, match="Only a module that automc"):
        automc.export(nn.Linear(2, 2), target, format="pt2")
    with pytest.raises(RegistryError, match="did you mean 'pt2'"):
        automc.export(branching, target, format="pt3")
    with pytest.raises(ArtifactError, match="is a folder: name one in it"):
        automc.export(branching, tmp_path, format="pt2")
    with pytest.raises(
        ArtifactError, match="Example inputs must be what the model takes; with these it raises Runtime"
    ):
        automc.export(branching, target, format="pt2", example_inputs=torch.zeros(3, 5))
    assert not list(tmp_path.iterdir())
