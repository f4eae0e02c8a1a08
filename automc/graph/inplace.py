"""Changes made in place, as a graph should say them: whoever reads a value later reads what a change has made of it.

torch.fx records `relu(x, inplace=True)` as a new value, and `x += y` as x + y. In torch everybody who reads `x`
afterwards sees the changed tensor, under every name it has; a graph that is reordered, cut or lowered would not.
"""

import inspect
import linecache
import operator
import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn

from automc.errors import GraphError

_UPDATES = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
"""Operators with a form in place; a trace holds the other one, marked."""
_MARK = "in place"
_SAME = (nn.Identity, nn.modules.dropout._DropoutNd)
"""Modules that give their very input in evaluation mode."""
_SAME_METHODS = frozenset({"contiguous", "detach"})
_VIEWS = frozenset(
    {
        *("view", "view_as", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "expand_as"),
        *("transpose", "permute", "t", "movedim", "swapaxes", "diagonal", "unfold"),
        *("narrow", "select", "chunk", "split", "unbind", "getitem"),
    }
)
_NUMBERS = frozenset(["size", "dim", "numel", "ndimension", "stride", "item", "len", "getattr"])


class Constant:
    """Gives a tensor; as an attribute, where torch.fx puts it, the model that is traced would have it and no other."""

    __name__ = "constant"

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __call__(self) -> Tensor:
        """The tensor."""
        return self.value


class ChangeTracer(fx.Tracer):
    """Marks what is changed in place by an operator, which torch.fx does not tell from its copying form.

    What an `assert` of the model's asks for is taken to hold, as it did when the model ran. A module that is given its
    input by the name torch's layers have for it gets it by place.
    """

    def __init__(self, whole: Callable[[nn.Module], bool] = lambda _: False, **options: Any) -> None:
        """whole: which modules are not looked into, besides those of torch's own."""
        super().__init__(**options)
        self._whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the trace stops at a module."""
        return self._whole(m) or super().is_leaf_module(m, module_qualified_name)

    def trace(self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The graph of a forward."""
        graph = super().trace(root, concrete_args)
        for node in [n for n in graph.nodes if n.target is torch._assert]:
            graph.erase_node(node)
        for node in graph.nodes:
            node.meta.pop("is_wrapped", None)  # of a function of a module's it would spoil all later traces
            if node.op == "call_module" and not node.args and set(node.kwargs) == {"input"}:
                node.args, node.kwargs = (node.kwargs["input"],), {}
        return graph

    def create_arg(self, a: Any) -> Any:
        """An argument; a tensor that forward made, and no module holds, becomes a node that gives it."""
        own = isinstance(a, nn.Parameter) or not isinstance(a, Tensor) or a in self.tensor_attrs
        if own or any(a is buffer for buffer in self.root.buffers()):
            return super().create_arg(a)
        return self.create_node("call_function", Constant(a), (), {})

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Records a module's call; one that is made in forward, as in `nn.ReLU()(x)`, is what it does."""
        if m not in (self.submodule_paths or {}):
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Whether a traced value is true: only known of what is asserted."""
        return _asserted(sys._getframe(1)) or self.truth(obj)

    def truth(self, obj: fx.Proxy) -> bool:
        """Whether a traced value is true that nobody asserts; TraceError where that is unknown."""
        return bool(super().to_bool(obj))

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """What stands for a node's value while the model is traced."""
        return ChangeProxy(node, self)


def _asserted(frame: FrameType | None) -> bool:
    """Whether the model's own line that asks is an `assert`."""
    while frame is not None and f"{os.sep}torch{os.sep}fx{os.sep}" in frame.f_code.co_filename:
        frame = frame.f_back
    if frame is None:
        return False
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("assert ")


class ChangeProxy(fx.Proxy):
    """A value that may be changed in place."""


def _updating(function: Callable[..., Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def update(self: fx.Proxy, other: Any) -> fx.Proxy:
        made = self.tracer.create_proxy("call_function", function, (self, other), {})
        made.node.meta[_MARK] = True
        return made

    return update


for _update in _UPDATES:
    setattr(ChangeProxy, f"__i{_update}__", _updating(getattr(operator, f"__{_update}__")))


def follow_changes_(graph: fx.Graph, root: nn.Module) -> None:
    """Hands the result of every change in place to all later readers of what it changed.

    GraphError where a view is changed whose tensor is read later, or a tensor a view of which is.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    tensor: dict[fx.Node, fx.Node] = {}  # the first node with the same elements in the same places
    storage: dict[fx.Node, fx.Node] = {}  # the first node with the same memory
    numbers: set[fx.Node] = set()
    for node in list(graph.nodes):
        tensor[node] = storage[node] = node
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        if source is None:
            continue
        name = _name(node)
        if name in _NUMBERS or all(n in numbers for n in node.all_input_nodes):
            numbers.add(node)
        elif _changes(node, root):
            tensor[node], storage[node] = tensor[source], storage[source]
            _hand_over(node, source, order, tensor, storage)
        elif _is_same(node, root):
            tensor[node], storage[node] = tensor[source], storage[source]
        elif name in _VIEWS or isinstance(_module(node, root), (nn.Flatten, nn.Unflatten)):
            storage[node] = storage[source]


def _hand_over(
    node: fx.Node,
    source: fx.Node,
    order: dict[fx.Node, int],
    tensor: dict[fx.Node, fx.Node],
    storage: dict[fx.Node, fx.Node],
) -> None:
    """Makes later readers of a changed value, under any of its names, read the change's result."""
    for other in [n for n in storage if n is not node and storage[n] is storage[source]]:
        later = [user for user in other.users if order[user] > order[node]]
        if later and tensor[other] is not tensor[source]:
            raise GraphError(
                f"A view must not be changed in place while others read its tensor; {node.name} does so: "
                "use the operation's copying form."
            )
        for user in later:
            user.replace_input_with(other, node)


def _changes(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node changes its first operand."""
    if node.op == "call_module":
        module = _module(node, root)
        return bool(getattr(module, "inplace", False)) and not isinstance(module, _SAME)
    if node.op == "call_method":
        return _marked(str(node.target))
    return node.op == "call_function" and bool(
        node.meta.get(_MARK) or _marked(_name(node)) or _asked_to(node.target, node.args, node.kwargs)
    )


def _asked_to(function: Callable[..., Any] | str, arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether a function's argument `inplace` is true."""
    if options.get("inplace"):
        return True
    try:
        bound = inspect.signature(function).bind(*arguments, **options)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a builtin without a signature has no such argument
        return False
    return bound.arguments.get("inplace") is True


def _is_same(node: fx.Node, root: nn.Module) -> bool:
    """Whether a node gives its very input."""
    if node.op == "call_method":
        return node.target in _SAME_METHODS
    return isinstance(_module(node, root), _SAME)


def _module(node: fx.Node, root: nn.Module) -> nn.Module | None:
    return root.get_submodule(str(node.target)) if node.op == "call_module" else None


def _name(node: fx.Node) -> str:
    """What a function or method is called."""
    if node.op == "call_method":
        return str(node.target)
    return str(getattr(node.target, "__name__", "")) if node.op == "call_function" else ""


def _marked(name: str) -> bool:
    """Whether a name ends as torch's functions in place do."""
    return name.endswith("_") and not name.endswith("__")
