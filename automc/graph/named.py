"""Outputs that have names: the last node of a trace makes an instance of a dataclass of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import fx


def parts_of(made: Any) -> dict[str, Any] | None:
    """What of an output with names has a value; None for one without."""
    if not dataclasses.is_dataclass(made) or isinstance(made, type):
        return None
    return {f.name: part for f in dataclasses.fields(made) if (part := getattr(made, f.name)) is not None}


def maker(graph: fx.Graph) -> fx.Node | None:
    """The node that makes the output of its parts; None where the output has no names."""
    made = next(node for node in graph.nodes if node.op == "output").args[0]
    return made if isinstance(made, fx.Node) and dataclasses.is_dataclass(made.target) else None


def without_names(module: fx.GraphModule, put: Callable[[dict[str, Any]], Any] = lambda parts: parts) -> fx.GraphModule:
    """A traced module that gives its output's parts, as `put` puts those that have values; itself where they have no
    names."""
    if maker(module.graph) is None:
        return module
    graph = fx.Graph()
    made = graph.graph_copy(module.graph, {})
    assert isinstance(made, fx.Node)
    graph.output(put(dict(made.kwargs)))
    graph.erase_node(made)
    return fx.GraphModule(module, graph)
