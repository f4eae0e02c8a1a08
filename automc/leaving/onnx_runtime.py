"""An ONNX file held against its module, by ONNX Runtime.

A quantizer makes a step of a difference in the last place, and the quantizers behind it make more of it, so the outputs
of two correct programs are only as near as rounding itself. The file is therefore checked twice. Step by step: the
module goes on from what the file's quantizers gave, so that every number before the next one, and every level, has to
be the same; the runtime is asked for them as further outputs, and to leave the graph as it is. As a whole, as it will
run: the difference may be that between the module and itself without rounded activations, times some. More than the
file's meaning is in that: ONNX Runtime computes in integers where it can, and rounds biases and shared weights for it.
"""

import copy
from collections import defaultdict, deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from automc.compression.quantize import ActivationQuantizer, quantized_layers
from automc.errors import ArtifactError
from automc.leaving.agreement import Sample, outputs, sampled
from automc.leaving.agreement import check as equal
from automc.leaving.program import ROUNDED
from automc.task import Inputs

_SHARE = 1e-4
"""Of the largest number, what a runtime may compute otherwise."""
_NOISE = 4.0
"""Rounding errors, in root mean squares, that the whole file may differ by."""


def check(path: Path, module: nn.Module, inputs: Inputs, *, any_size: bool) -> None:
    """ArtifactError unless the file computes what the module does."""
    import onnx

    model = onnx.load(path)
    samples = sampled(module, inputs, any_size=any_size)
    rounded = [name for name, holder in quantized_layers(module) if holder.input is not None]
    if rounded:
        _step_by_step(model, module, samples[0])
    run = Run(path.read_bytes())
    for sample in samples:
        found = run(sample.inputs)
        if rounded:
            _about_equal(sample, found, module)
        else:
            equal(sample.outputs, found, _SHARE)


class Run:
    """A model in ONNX Runtime, on the processor."""

    def __init__(self, model: bytes, *, as_written: bool = False) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        if as_written:
            settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.intra_op_num_threads = torch.get_num_threads()
        settings.log_severity_level = 3  # errors; it warns of constants that an optimiser left
        try:
            self.session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            raise ArtifactError(
                f"An ONNX file must load in ONNX Runtime; it says {said}: export as pt2, and report the model."
            ) from error

    def __call__(self, inputs: Inputs) -> list[Tensor]:
        """Every output for some inputs, in the order of the model's own."""
        names = [x.name for x in self.session.get_inputs()]
        given = dict(zip(names, (x.numpy() for x in inputs), strict=True))
        return [torch.from_numpy(np.asarray(x)) for x in self.session.run(None, given)]


def _step_by_step(model: Any, module: nn.Module, sample: Sample) -> None:
    """Every quantizer's levels, each after those before it are made equal, and then the outputs."""
    values = _rounded_values(model)
    found = Run(_watched(model, [name for _, name in values]), as_written=True)(sample.inputs)
    given = dict(zip((name for _, name in values), found[len(sample.outputs) :], strict=True))
    led = _Led(module, [(path, given[name]) for path, name in values])
    equal(outputs(led.module, sample.inputs), found[: len(sample.outputs)], _SHARE)


def _rounded_values(model: Any) -> list[tuple[str, str]]:
    """The path of each quantizer, call after call, and what its values are called in the file."""
    names = [node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"]
    return [(name.partition(ROUNDED)[0], name) for name in names if ROUNDED in name]


def _watched(model: Any, names: Sequence[str]) -> bytes:
    """The model with some of its values as further outputs."""
    import onnx

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {x.name for x in watched.graph.output}
    kind = onnx.TensorProto.FLOAT
    watched.graph.output.extend(onnx.helper.make_tensor_value_info(x, kind, None) for x in names if x not in known)
    return bytes(watched.SerializeToString())


class _Led:
    """A copy of a module whose quantizers are checked, and then give what others gave."""

    def __init__(self, module: nn.Module, given: Sequence[tuple[str, Tensor]]) -> None:
        self.module = copy.deepcopy(module)
        self._given: dict[str, deque[Tensor]] = defaultdict(deque)
        for path, value in given:
            self._given[path].append(value)
        self._seen: list[tuple[Tensor, tuple[float, float, float], Tensor]] = []
        for name, holder in quantized_layers(self.module):
            if holder.input is not None:
                holder.input.register_forward_hook(partial(self._lead, f"{name}.input"))

    def _lead(self, path: str, quantizer: ActivationQuantizer, given: tuple[Tensor], own: Tensor) -> Tensor:
        levels = quantizer.levels()
        if self._given[path]:
            value = self._given[path].popleft()
            _check_levels(path, given[0] / levels[0], own / levels[0], value / levels[0])
            self._seen.append((given[0], levels, value))
            return value
        # Layers that read one tensor with one range have one quantizer in the file.
        twins = [value for x, its, value in self._seen if x is given[0] and its == levels]
        if not twins:
            raise ArtifactError(
                f"An exported model must round what the module rounds; it has nothing for {path}: keep the file automc "
                "saved, and report the model."
            )
        return twins[0]


def _check_levels(path: str, exact: Tensor, own: Tensor, given: Tensor) -> None:
    """Levels are equal, or one apart where what is rounded lies in the middle of both; all in steps."""
    if own.shape == given.shape:
        middle = (exact - (exact.floor() + 0.5)).abs() <= _SHARE * exact.abs().max()
        between = (exact - own).abs() < 1  # not beyond the last level
        own = torch.where(middle & between & ((own - given).abs().round() == 1), given, own)
    equal([own], [given], 1e-5, f"what {path} rounds, in steps,")


def _about_equal(sample: Sample, found: Sequence[Tensor], module: nn.Module) -> None:
    """Outputs differ by some of what rounding activations changes in them."""
    without = copy.deepcopy(module)
    for _, holder in quantized_layers(without):
        holder.input = None
    for one, other, exact in zip(sample.outputs, found, outputs(without, sample.inputs), strict=True):
        noise, difference = _distance(one, exact), _distance(one, other)
        largest = float(one.double().abs().max())
        if not difference <= _NOISE * noise + _SHARE * largest:
            raise ArtifactError(
                f"An exported model must compute what the module does; this one differs by {difference:.3g}, where "
                f"rounding activations makes {noise:.3g}: export as pt2, and report the model and the processor."
            )


def _distance(a: Tensor, b: Tensor) -> float:
    """Root mean square of the difference."""
    return float((a.double() - b.double()).square().mean().sqrt())
