"""A model as it is scored: traced, batch norms folded into the convolutions before them."""

import copy

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from automc.compression.quantize import ActivationQuantizer

_PAIRS = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))


def folded(module: nn.Module) -> nn.Module:
    """A copy with batch norms folded where a trace shows that this is exact; a plain copy where there is no trace."""
    small = copy.deepcopy(module).eval()
    try:
        traced = fx.GraphModule(small, _Tracer().trace(small))
    except Exception:  # a model's own forward may raise anything when it is given proxies
        return small
    for node in list(traced.graph.nodes):
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        if source is not None and _folds(traced, source, node):
            fused = fuse_conv_bn_eval(traced.get_submodule(source.target), traced.get_submodule(node.target))  # type: ignore[arg-type, type-var]
            _replace(traced, str(source.target), fused)
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)
    traced.recompile()
    return traced


class _Tracer(fx.Tracer):
    """Sees layers inside of automc's own modules, but takes a quantizer as one operation."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the trace stops at a module."""
        return isinstance(m, ActivationQuantizer) or super().is_leaf_module(m, module_qualified_name)


def _folds(traced: fx.GraphModule, source: fx.Node, node: fx.Node) -> bool:
    """Whether `node` is a batch norm whose only input is a convolution that nobody else reads or shares."""
    if source.op != "call_module" or node.op != "call_module" or len(source.users) > 1:
        return False
    first, second = traced.get_submodule(str(source.target)), traced.get_submodule(str(node.target))
    if (type(first), type(second)) not in _PAIRS or second.running_mean is None:
        return False
    calls = [n.target for n in traced.graph.nodes if n.op == "call_module"]
    return calls.count(source.target) == 1


def _replace(traced: fx.GraphModule, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(traced.get_submodule(parent), child, module)
