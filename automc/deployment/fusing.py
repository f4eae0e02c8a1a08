"""What follows a planned linear layer, carried out along with it: an addition, then an activation."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from automc.compression.lowering import NOTHING, limits_of
from automc.graph.blocks import only_user, other_operand
from automc.graph.runs import copies
from automc.kernels.tokens import PlannedLinear
from automc.task import Inputs


def fuse_(module: fx.GraphModule, inputs: Inputs) -> None:
    """Lets planned linear layers of a graph take along what follows them, as it is for inputs of this kind."""
    calls = Counter(node.target for node in module.graph.nodes if node.op == "call_module")
    planned = [node for node in module.graph.nodes if calls[node.target] == 1 and _is_planned(module, node)]
    if not planned:
        return
    _skip_nothing_(module)
    shapes = _Shapes(module).of(inputs)
    for node in planned:
        _end_(module, _added_(module.graph, node, shapes))
    module.delete_all_unused_submodules()
    module.recompile()


def _is_planned(module: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), PlannedLinear)


def _skip_nothing_(module: fx.GraphModule) -> None:
    """Leaves out what does nothing in eval mode."""
    for node in list(module.graph.nodes):
        layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, NOTHING) and not layer.training and node.args:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


def _added_(graph: fx.Graph, node: fx.Node, shapes: dict[str, Any]) -> fx.Node:
    """The layer's node, behind which nothing of its shape is added any more."""
    user = only_user(node)
    other = None if user is None else other_operand(user, node)
    if user is None or other is None or shapes.get(other.name) != shapes.get(node.name):
        return node
    with graph.inserting_before(user):
        together = graph.call_module(str(node.target), (*node.args, other))
    for old in (user, node):
        old.replace_all_uses_with(together, lambda reader: reader is not together)
        graph.erase_node(old)
    shapes[together.name] = shapes[other.name]
    return together


def _end_(module: fx.GraphModule, node: fx.Node) -> None:
    """An activation that is all that reads the layer becomes the layer's."""
    user = only_user(node)
    limits, gelu = limits_of(module, user), user is not None and _is_gelu(module, user)
    if user is None or not (gelu or limits):
        return
    layer = module.get_submodule(str(node.target))
    assert isinstance(layer, PlannedLinear)
    module.set_submodule(str(node.target), layer.ended(limits, gelu=gelu))
    user.replace_all_uses_with(node)
    module.graph.erase_node(user)


def _is_gelu(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is GELU by the error function."""
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        return type(layer) is nn.GELU and layer.approximate == "none"
    return node.target is F.gelu and node.kwargs.get("approximate", "none") == "none"


class _Shapes(fx.Interpreter):
    """Types and shapes of all values."""

    def of(self, inputs: Inputs) -> dict[str, Any]:
        """By name of the node, of those that are tensors."""
        self._found: dict[str, Any] = {}
        with torch.no_grad():
            self.run(*copies(inputs))
        return self._found

    def run_node(self, n: fx.Node) -> Any:
        """A node's value, looked at."""
        made = super().run_node(n)
        if isinstance(made, Tensor):
            self._found[n.name] = (made.dtype, made.shape)
        return made
