"""Batch norms of an ONNX graph, folded into the codes' scales of the convolution before them.

    gamma (W x + b - mean) / sqrt(var + eps) + beta = (f W) x + (b - mean) f + beta,  f = gamma / sqrt(var + eps)

W is codes times a scale for each output channel, so that |f| goes into the scale and the sign of f into the codes,
which are as many below zero as above. Nothing is rounded anew.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx_ir as ir

Array = NDArray[np.float32]


def fold_(model: "ir.Model") -> None:
    """Folds what can be folded, and removes what is then without use."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    for norm in [node for node in model.graph if node.op_type == "BatchNormalization"]:
        layer, weight = _before(norm)
        if layer is not None and weight is not None:
            _fold_(model.graph, norm, layer, weight)
    RemoveUnusedNodesPass()(model)


def _before(norm: "ir.Node") -> tuple["ir.Node | None", "ir.Node | None"]:
    """The layer that only this norm reads, and what makes its weight of codes that no other layer has."""
    source = norm.inputs[0]
    layer = None if source is None else source.producer()
    if layer is None or layer.op_type != "Conv" or len(layer.outputs[0].uses()) != 1:
        return None, None
    weight = None if layer.inputs[1] is None else layer.inputs[1].producer()
    known = all(value is not None and value.const_value is not None for value in (*norm.inputs[1:], *layer.inputs[2:]))
    if weight is None or weight.op_type != "DequantizeLinear" or len(weight.outputs[0].uses()) != 1 or not known:
        return None, None
    return layer, weight


def _fold_(graph: "ir.Graph", norm: "ir.Node", layer: "ir.Node", weight: "ir.Node") -> None:
    gamma, beta, mean, variance = (_array(value) for value in norm.inputs[1:5])
    bias = _array(layer.inputs[2]) if len(layer.inputs) > 2 else np.zeros_like(mean)
    factor = gamma / np.sqrt(variance + norm.attributes["epsilon"].as_float())
    codes, scale = _array(weight.inputs[0]), _array(weight.inputs[1])
    signs = np.where(factor < 0, -1, 1).astype(codes.dtype).reshape(-1, *[1] * (codes.ndim - 1))
    weight.replace_input_with(0, _constant(graph, weight.inputs[0], codes * signs))
    weight.replace_input_with(1, _constant(graph, weight.inputs[1], scale * np.abs(factor)))
    shift = _constant(graph, norm.inputs[2], (bias - mean) * factor + beta)
    layer.resize_inputs(3)
    layer.replace_input_with(2, shift)
    norm.outputs[0].replace_all_uses_with(layer.outputs[0], replace_graph_outputs=True)
    graph.remove(norm, safe=True)


def _array(value: "ir.Value | None") -> Array:
    assert value is not None and value.const_value is not None  # `_before` looked
    return value.const_value.numpy()


def _constant(graph: "ir.Graph", like: "ir.Value | None", array: Array) -> "ir.Value":
    """A new constant that is named after another one, which other nodes may go on reading."""
    import onnx_ir as ir

    assert like is not None
    name = f"{like.name}.folded"
    made = ir.Value(name=name, const_value=ir.tensor(array, name=name), shape=ir.Shape(array.shape))
    made.type = like.type
    graph.register_initializer(made)
    return made
