"""A model as it is scored: traced, batch norms folded into the convolutions before them."""

import copy
import inspect
from collections.abc import Sequence
from contextlib import suppress

from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from automc.compression.quantize import ActivationQuantizer
from automc.compression.structure import replace_module
from automc.graph.example import ExampleTracer, answers, both, is_answer
from automc.graph.holders import as_layer
from automc.graph.inplace import ChangeTracer, follow_changes_
from automc.graph.runs import batch_size, of_size
from automc.task import Inputs

_PAIRS = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))
_NORMS = tuple(norm for _, norm in _PAIRS)


def folded(module: nn.Module, inputs: Inputs = ()) -> nn.Module:
    """A copy with batch norms folded where a trace shows that this is exact; a plain copy where there is no trace."""
    small = traced(copy.deepcopy(module).eval(), inputs)
    if not isinstance(small, fx.GraphModule):
        return small
    for node in list(small.graph.nodes):
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        if source is not None and _folds(small, source, node):
            fused = fuse_conv_bn_eval(small.get_submodule(source.target), small.get_submodule(node.target))  # type: ignore[arg-type, type-var]
            replace_module(small, str(source.target), fused)
            node.replace_all_uses_with(source)
            small.graph.erase_node(node)
    small.recompile()
    return small


def traced(module: nn.Module, inputs: Inputs = ()) -> nn.Module:
    """A module as a graph of its layers, which it shares; itself where it is one, or where there is no trace.

    `inputs`, if there are any, are an example for a forward that asks for sizes; norms that have more inside are opened
    then, in graphs, too.
    """
    if isinstance(module, fx.GraphModule) and not (inputs and any(map(_holds_more, module.modules()))):
        return module
    for part in module.modules():
        as_layer(part)  # while it can still be tried out
    for tracer in (ChangeTracer(_stays_whole), *([ExampleTracer(_stays_whole, inputs)] if inputs else [])):
        with suppress(Exception):  # a model's own forward may raise anything when it is given proxies
            graph = tracer.trace(module)
            follow_changes_(graph, module)
            found = fx.GraphModule(module, graph)
            if not answers(graph) or _alike(*both(found, module, of_size(inputs, batch_size(inputs) + 1))):
                break
    else:
        return module
    for node in list(found.graph.nodes):
        _name_norm_(found, module, node)
    found.graph.eliminate_dead_code(lambda node: node.is_impure() or is_answer(node))
    found.recompile()
    return found


def _alike(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> bool:
    return [x.shape for x in found] == [x.shape for x in wanted]


def _holds_more(module: nn.Module) -> bool:
    """Whether a module is a batch norm with an activation, or whatever else, inside."""
    return isinstance(module, _NORMS) and type(module) not in _NORMS


def _name_norm_(graph: fx.GraphModule, module: nn.Module, node: fx.Node) -> None:
    """Makes a module of a batch norm that a norm of somebody's own computes by torch's function."""
    if node.op != "call_function" or node.target is not F.batch_norm:
        return
    given = inspect.signature(F.batch_norm).bind(*node.args, **node.kwargs)
    given.apply_defaults()
    x, mean, var, weight, bias, training, _, eps = given.args
    tensors = {"running_mean": mean, "running_var": var, "weight": weight, "bias": bias}
    path = str(mean.target).rpartition(".")[0] if isinstance(mean, fx.Node) else ""
    own = all(isinstance(n, fx.Node) and n.target == f"{path}.{name}" for name, n in tensors.items())
    owner = module.get_submodule(path) if own else None
    if training or not isinstance(owner, _NORMS):
        return
    plain = next(kind for kind in _NORMS if isinstance(owner, kind))(owner.num_features, eps=eps).eval()
    for name in tensors:
        setattr(plain, name, getattr(owner, name))
    name = f"{path}.as_torchs"
    graph.add_submodule(name, plain)
    with graph.graph.inserting_after(node):
        node.replace_all_uses_with(graph.graph.call_module(name, (x,)))
    graph.graph.erase_node(node)


def behind(module: fx.GraphModule, begin: str | None, keep: Sequence[str]) -> fx.GraphModule:
    """What lies behind a node that is given, or the whole; it gives the values of some nodes and then the output.

    Values that are given or kept are copied, since what reads them may work in place.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    order = list(module.graph.nodes)
    graph, copied, kept = fx.Graph(), dict[fx.Node, fx.Node](), dict[str, fx.Node]()
    if begin is not None:
        copied[nodes[begin]] = graph.call_method("clone", (graph.placeholder(begin),))
        order = order[order.index(nodes[begin]) + 1 :]
    for node in order:
        if node.op == "output":
            graph.output((*(kept[name] for name in keep), fx.node.map_arg(node.args[0], copied.__getitem__)))
        else:
            copied[node] = graph.node_copy(node, copied.__getitem__)
            if node.name in keep:
                kept[node.name] = graph.call_method("clone", (copied[node],))
    return fx.GraphModule(module, graph)


def _stays_whole(module: nn.Module) -> bool:
    """Whether a module is one operation: layers inside automc's own modules are seen, but not what a quantizer does."""
    return isinstance(module, ActivationQuantizer) or as_layer(module) is not None


def _folds(small: fx.GraphModule, source: fx.Node, node: fx.Node) -> bool:
    """Whether `node` is a batch norm whose only input is a convolution that nobody else reads or shares."""
    if source.op != "call_module" or node.op != "call_module" or len(source.users) > 1:
        return False
    first, second = small.get_submodule(str(source.target)), small.get_submodule(str(node.target))
    if (type(first), type(second)) not in _PAIRS or second.running_mean is None:
        return False
    calls = [n.target for n in small.graph.nodes if n.op == "call_module"]
    return calls.count(source.target) == 1
