"""ONNX, for ONNX Runtime and whatever else reads it: quantized layers as QuantizeLinear and DequantizeLinear.

Weights with even levels are int8 codes and a scale for each output channel, shared ones codes into their centroids
(Gather), inputs uint8 with a zero point, clipped where they have fewer than 8 bits. A batch norm behind such a layer
goes into its scales (`onnx_norms`), so that a runtime finds nothing between two quantized layers and can compute in
integers. Pruned weights are the floats they are. Written for opset 20, in one file, for a batch of any size.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from automc.compression.quantize import ActivationQuantizer
from automc.errors import ArtifactError
from automc.leaving.formats import Format, Written
from automc.leaving.portable import Operations, portable
from automc.leaving.program import BATCH, ROUNDED, in_short, quietly, recorded
from automc.task import Inputs

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 20
_OURS = "automc"
"""Marks the operations of quantized layers until the file is written."""
_INT32 = 6  # in ONNX's own numbering


def need() -> None:
    """ArtifactError where what ONNX files are made with is not installed."""
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ArtifactError(
            f"An ONNX export must have the packages onnx and onnxscript; {missing[0]} is not installed: "
            "pip install automc[onnx]."
        )


def write(module: nn.Module, inputs: Inputs, path: Path) -> Written:
    """Writes and checks the file."""
    from automc.leaving.onnx_norms import fold_
    from automc.leaving.onnx_runtime import check

    program, any_size = recorded(portable(module, _ONNX), inputs)
    model = _translated(program, inputs, any_size=any_size)
    _optimize_(model.model)
    fold_(model.model)
    _name_(model.model)
    model.save(path, external_data=False)
    checked = find_spec("onnxruntime") is not None
    if checked:
        check(path, module, inputs, any_size=any_size)
    return Written(any_size, checked)


def _translated(program: torch.export.ExportedProgram, inputs: Inputs, *, any_size: bool) -> Any:
    shapes = tuple({0: BATCH} for _ in inputs)
    try:
        with quietly():
            return torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=OPSET,
                dynamic_shapes=shapes if any_size else None,
            )
    except Exception as error:
        raise ArtifactError(
            "A model must consist of operations that ONNX has; torch.onnx says of this one "
            f"{in_short(error.__cause__ or error)}: export it as pt2, or write the forward without what it names."
        ) from error


def _optimize_(model: "ir.Model") -> None:
    """Constants worked out, save for codes, which would become floats; nodes without use removed."""
    from onnxscript.optimizer import optimize_ir

    optimize_ir(model, should_fold=lambda node: False if _OURS in node.metadata_props else None)


def _name_(model: "ir.Model") -> None:
    """Gives what activations are rounded to the names of their quantizers, and takes away where lines of code lie."""
    calls: dict[str, int] = {}
    for node in model.graph:
        path = node.metadata_props.get(_OURS)
        if path and node.op_type == "DequantizeLinear":
            calls[path] = calls.get(path, -1) + 1
            node.outputs[0].name = f"{path}{ROUNDED}.{calls[path]}"
        node.metadata_props.clear()
    model.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()


def _operation(
    name: str, inputs: tuple[Tensor, ...], shape: torch.Size, kind: torch.dtype, path: str = "", **attributes: int
) -> Tensor:
    """An ONNX operation in the forward of a module that is only ever recorded; `path` says whose it is."""
    return torch.onnx.ops.symbolic(
        name, inputs, {**attributes}, dtype=kind, shape=shape, version=OPSET, metadata_props={_OURS: path}
    )


def _even(codes: Tensor, scale: Tensor) -> Tensor:
    return _operation("DequantizeLinear", (codes, scale), codes.shape, scale.dtype, axis=0)


def _shared(codes: Tensor, centroids: Tensor) -> Tensor:
    index = _operation("Cast", (codes,), codes.shape, torch.int32, to=_INT32)
    return _operation("Gather", (centroids, index), codes.shape, centroids.dtype, axis=0)


class _Rounding(nn.Module):
    """An activation quantizer: to levels, into their range, and back."""

    def __init__(self, quantizer: ActivationQuantizer, path: str) -> None:
        super().__init__()
        self.path = path
        step, zero, top = quantizer.levels()
        self.clips = top < 255  # what uint8 does not do by itself
        self.register_buffer("step", torch.tensor(step))
        for name, value in (("zero", zero), ("least", 0), ("most", top)):
            self.register_buffer(name, torch.tensor(int(value), dtype=torch.uint8))

    step: Tensor
    zero: Tensor
    least: Tensor
    most: Tensor

    def forward(self, x: Tensor) -> Tensor:
        levels = _operation("QuantizeLinear", (x, self.step, self.zero), x.shape, torch.uint8)
        if self.clips:
            levels = _operation("Clip", (levels, self.least, self.most), x.shape, torch.uint8)
        return _operation("DequantizeLinear", (levels, self.step, self.zero), x.shape, x.dtype, self.path)


_ONNX = Operations(_even, _shared, _Rounding)
ONNX = Format("onnx", write, need)
