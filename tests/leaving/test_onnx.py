"""ONNX files: what they compute, what lies in them, and that a wrong one is noticed."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import automc
from automc.compression.quantize import ActivationQuantizer, QuantizedLayer, quantized_layers
from automc.errors import ArtifactError
from automc.leaving import onnx as leaving
from automc.leaving import onnx_norms
from automc.leaving.onnx_runtime import check
from automc.leaving.portable import Operations
from automc.policy import LayerDecision
from tests.leaving import models


def run(path: Path, x: Tensor, *, as_written: bool = False) -> list[Tensor]:
    settings = onnxruntime.SessionOptions()
    if as_written:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(y) for y in session.run(None, {session.get_inputs()[0].name: x.numpy()})]


def constants(path: Path) -> dict[str, Any]:
    return {x.name: onnx.numpy_helper.to_array(x) for x in onnx.load(path).graph.initializer}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of a kind of ResNet, made once."""
    folder = tmp_path_factory.mktemp("onnx")

    def path(kind: str) -> Path:
        target = folder / f"{kind}.onnx"
        if not target.exists():
            made = automc.export(models.resnet(kind), target, format="onnx")
            assert made.any_size and made.checked and made.bytes == target.stat().st_size
        return target

    return path


@pytest.mark.parametrize("kind", [k for k in models.DECISIONS if k not in models.ROUNDED])
@torch.no_grad()
def test_the_file_computes_what_the_module_does_on_batches_of_any_size(written, kind: str):
    module = models.resnet(kind)
    for count in (1, 2, 7):
        x = models.images(count)
        torch.testing.assert_close(run(written(kind), x)[0], module(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", models.ROUNDED)
@torch.no_grad()
def test_with_rounded_activations_the_file_is_nearer_to_the_module_than_the_module_without(written, kind: str):
    module, x = models.resnet(kind), models.images(64)
    expected, found = module(x), run(written(kind), x, as_written=True)[0]
    exact = _unrounded(module)(x)
    assert float((found - expected).norm()) < 0.5 * float((exact - expected).norm())
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.95


@pytest.mark.parametrize("bits", [8, 5])
@torch.no_grad()
def test_one_rounded_layer_has_the_levels_of_the_module_far_outside_of_its_range(tmp_path: Path, bits: int):
    module = models.of(models.Single, LayerDecision(weight_bits=8, activation_bits=bits))
    quantizer = module.get_submodule("a.input")
    assert isinstance(quantizer, ActivationQuantizer)
    path, x = tmp_path / "one.onnx", 10 * torch.randn(16, 6, 8, generator=torch.Generator().manual_seed(0))
    automc.export(module, path, format="onnx")
    torch.testing.assert_close(run(path, x)[0], module(x), rtol=1e-5, atol=1e-5)
    assert int((x.abs() > float(quantizer.range.abs().max())).sum()) > 100  # so that clipping matters


def test_weights_are_bytes_in_the_file(written):
    tensors = constants(written("weights"))
    codes = {name: x for name, x in tensors.items() if x.ndim >= 2 and x.dtype == np.int8}
    module = models.resnet("weights")
    assert len(codes) == len(list(quantized_layers(module))) > 5
    assert not [name for name, x in tensors.items() if x.ndim >= 2 and x.dtype == np.float32]
    for name, layer in quantized_layers(module):
        (found,) = [x for key, x in codes.items() if key.startswith(f"{name}.")]
        assert isinstance(layer, QuantizedLayer) and layer.codes is not None
        assert np.array_equal(np.abs(found), layer.codes.abs().numpy()), name  # a norm may have turned signs
    assert sum(x.nbytes for x in tensors.values()) < 1.7 * sum(x.nbytes for x in codes.values())


def test_shared_weights_are_codes_into_their_centroids(written):
    tensors = constants(written("few"))
    assert not [name for name, x in tensors.items() if x.ndim >= 2 and x.dtype == np.float32]
    largest = {name: x.max() for name, x in tensors.items() if x.dtype == np.uint8 and x.ndim >= 2}
    assert len(largest) >= 2 and max(largest.values()) < 8
    assert 8 in [x.size for x in tensors.values() if x.dtype == np.float32]


def test_norms_are_in_the_scales_and_nothing_tells_of_this_machine(written):
    for kind in ("weights", "both"):
        names = [node.op_type for node in onnx.load(written(kind)).graph.node]
        assert "DequantizeLinear" in names and "BatchNormalization" not in names
        content = written(kind).read_bytes()
        assert b".py" not in content and str(Path(__file__).parents[2]).encode() not in content


def test_layers_with_8_bits_compute_in_integers(written, tmp_path: Path):
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.log_severity_level = 3
    onnxruntime.InferenceSession(str(written("both")), settings, providers=["CPUExecutionProvider"])
    names = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert "QLinearConv" in names


@pytest.mark.parametrize("maker", [models.Recurrent, models.Encoder, models.Attention])
@torch.no_grad()
def test_models_as_people_have_them(tmp_path: Path, maker: Callable[[], nn.Module]):
    path, x = tmp_path / "model.onnx", models.sequences(5)
    bits = 8 if maker is models.Attention else 32
    module = models.of(maker, LayerDecision(weight_bits=8, activation_bits=bits))
    assert automc.export(module, path, format="onnx", example_inputs=models.sequences(12)).any_size
    expected = module(x)
    for one, other in zip(expected.values() if isinstance(expected, dict) else [expected], run(path, x), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4 if bits == 32 else 2e-2)
    if maker is models.Attention:  # three layers read one tensor with one range
        names = [node.op_type for node in onnx.load(path).graph.node]
        assert names.count("QuantizeLinear") == 2


def _unrounded(module: nn.Module) -> nn.Module:
    import copy

    made = copy.deepcopy(module)
    for _, holder in quantized_layers(made):
        holder.input = None
    return made


class Off(nn.Module):
    """A quantizer that is wrong in one way."""

    def __init__(self, quantizer: ActivationQuantizer, path: str, way: str) -> None:
        super().__init__()
        self.right = leaving._Rounding(quantizer, path)
        if way == "zero":
            self.right.zero += 1
        if way == "clip":
            self.right.clips = False

    def forward(self, x: Tensor) -> Tensor:
        return self.right(x)


@pytest.mark.parametrize("way", ["zero", "clip"])
def test_a_wrong_quantizer_is_noticed_and_no_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str):
    right, module = leaving._ONNX, models.of(models.Attention, LayerDecision(8, 5))
    monkeypatch.setattr(leaving, "_ONNX", Operations(right.even, right.shared, lambda q, path: Off(q, path, way)))
    with pytest.raises(ArtifactError, match=r"must compute what the module does; this one differs"):
        automc.export(module, tmp_path / "model.onnx", format="onnx", example_inputs=3 * models.sequences(20))
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_a_norm_is_folded_and_one_that_is_folded_wrongly_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module, path, x = models.of(models.Normed, LayerDecision(4)), tmp_path / "model.onnx", models.sequences(5)
    module.get_parameter("norm.weight")[::2] *= -1
    automc.export(module, path, format="onnx")
    torch.testing.assert_close(run(path, x)[0], module(x), rtol=1e-5, atol=1e-5)
    assert "BatchNormalization" not in [node.op_type for node in onnx.load(path).graph.node]

    path.unlink()
    right = onnx_norms._constant
    monkeypatch.setattr(
        onnx_norms, "_constant", lambda graph, like, x: right(graph, like, x if x.ndim > 1 else x * np.float32(1.01))
    )
    with pytest.raises(ArtifactError, match=r"differs in its outputs by .*, where .* is rounding"):
        automc.export(module, path, format="onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["weights", "both"])
def test_a_file_with_one_other_code_is_noticed(written, tmp_path: Path, kind: str):
    model = onnx.load(written(kind))
    (tensor, *_) = [x for x in model.graph.initializer if x.data_type == onnx.TensorProto.INT8 and len(x.dims) == 4]
    codes = onnx.numpy_helper.to_array(tensor).copy()
    codes.flat[np.abs(codes).argmax()] *= -1
    tensor.CopyFrom(onnx.numpy_helper.from_array(codes, tensor.name))
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(ArtifactError, match="differs"):
        check(tmp_path / "changed.onnx", models.resnet(kind), (models.images(16),), any_size=True)
    check(written(kind), models.resnet(kind), (models.images(16),), any_size=True)


def test_without_its_packages_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    right = importlib.util.find_spec
    monkeypatch.setattr(leaving, "find_spec", lambda name: None if name == "onnxscript" else right(name))
    with pytest.raises(ArtifactError, match=r"onnxscript is not installed: pip install automc\[onnx\]"):
        automc.export(models.resnet("weights"), tmp_path / "model.onnx", format="onnx")


def test_a_forward_that_counts_its_batch_leaves_for_that_size_only(tmp_path: Path):
    module, path = models.of(models.Looping, LayerDecision(weight_bits=8)), tmp_path / "model.onnx"
    made = automc.export(module, path, format="onnx", example_inputs=models.sequences(3))
    assert made.checked and not made.any_size
    run(path, models.sequences(3))
    with pytest.raises(Exception, match="Expected: 3"):
        run(path, models.sequences(4))


def test_without_the_runtime_the_file_is_said_to_be_unchecked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    right = importlib.util.find_spec
    monkeypatch.setattr(leaving, "find_spec", lambda name: None if name == "onnxruntime" else right(name))
    assert not automc.export(models.of(models.Single, LayerDecision()), tmp_path / "m.onnx", format="onnx").checked
