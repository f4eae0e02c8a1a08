"""Traces with an example beside the trace, so that what a forward asks of sizes and types has an answer.

torch.fx stops where a forward branches on a shape, counts dimensions, or slices up to a length, as most of the models
of Hugging Face's transformers do. Here every traced value also has the one it has for the example. An answer holds for
the example alone, so each is written into the graph, which then refuses inputs of which it would be another one. What
depends on the values of an input, not on its sizes, is refused as before.
"""

import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from automc.errors import GraphError
from automc.graph.inplace import ChangeProxy, ChangeTracer
from automc.graph.named import parts_of
from automc.graph.runs import copies, repeatable, tensors

_SIZES = frozenset(
    {
        *("size", "dim", "ndimension", "numel", "nelement", "stride", "get_device", "element_size"),
        *("is_contiguous", "is_floating_point", "is_complex"),
    }
)
"""Methods whose results say nothing of a tensor's values."""
_PLAIN = frozenset(("dtype", "device", "layout", "ndim", "is_cuda", "is_cpu", "is_sparse", "is_quantized"))
"""Attributes of tensors that no size decides, given as they are."""
_MAKERS = ("arange", "empty", "eye", "full", "linspace", "ones", "tensor", "tril_indices", "triu_indices", "zeros")
"""What makes tensors of numbers, which torch.fx does not see."""


class ExampleTracer(ChangeTracer):
    """Knows of every value what it is for the example's inputs."""

    def __init__(self, whole: Callable[[nn.Module], bool], inputs: Sequence[Tensor]) -> None:
        super().__init__(whole, autowrap_functions=tuple(getattr(torch, name) for name in _MAKERS))
        self._autowrap_search.append(torch)
        self.proxy_buffer_attributes = True
        self._inputs = copies(tuple(inputs))
        self._values: dict[fx.Node, Any] = {}
        self._free: set[fx.Node] = set()
        """Nodes whose values depend on the inputs' values."""
        self._beside = False
        """Whether what runs is the example, not the trace."""

    def trace(self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The graph of a forward, without the parameters and buffers of which only the type was asked for."""
        graph = super().trace(root, concrete_args)
        for node in list(graph.nodes):
            if node.op == "get_attr" and not node.users:
                graph.erase_node(node)
        return graph

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable[..., Any], list[Any]]:
        """The example's inputs alone, under forward's own names; all other arguments are what they are by default."""
        root = self.root
        assert isinstance(root, nn.Module)
        plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [p.name for p in inspect.signature(root.forward).parameters.values() if p.kind in plain]
        names += [f"input_{i}" for i in range(len(names), len(self._inputs))]
        given = zip(names, self._inputs, strict=False)
        return (lambda *args: self._as_one(root_fn(*args))), [root, *(self._given(*pair) for pair in given)]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """What stands for a node's value while the model is traced."""
        return ExampleProxy(node, self)

    def create_proxy(self, *args: Any, **kwargs: Any) -> fx.Proxy:
        """Records an operation, and does it to the example's values."""
        made = super().create_proxy(*args, **kwargs)
        self.example(made.node)
        return made

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Records a module's call, unless it is the example's."""
        return forward(*args, **kwargs) if self._beside else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """A module's attribute, recorded unless the example asks for it."""
        return attr_val if self._beside else super().getattr(attr, attr_val, parameter_proxy_cache)

    def truth(self, obj: fx.Proxy) -> bool:
        """The example's answer; TraceError where that depends on the inputs' values."""
        answer = bool(self._settled(obj))
        self.create_node("call_function", answered, (obj.node, answer), {})
        return answer

    def number(self, obj: fx.Proxy) -> Any:
        """The example's number; TraceError where that depends on the inputs' values."""
        number = self._settled(obj)
        if not isinstance(number, Tensor):  # of a constant all inputs have the same
            self.create_node("call_function", sized, (obj.node, number), {})
        return number

    def length(self, obj: fx.Proxy) -> int:
        """How many parts the example has."""
        length = len(self.example(obj.node))
        self.create_node("call_function", sized, (obj.node, length), {})
        return length

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The parts of what is no tensor."""
        if isinstance(self.example(obj.node), Tensor):
            return super().iter(obj)
        return iter([obj[i] for i in range(self.length(obj))])  # type: ignore[index]

    def keys(self, obj: fx.Proxy) -> Any:
        """The names in what has names."""
        return list(self.example(obj.node))

    def example(self, node: fx.Node) -> Any:
        """What a node's value is for the example; torch.fx makes those of constants without a proxy."""
        if node not in self._values:
            self._values[node] = self._computed(node)
        return self._values[node]

    def _settled(self, obj: fx.Proxy) -> Any:
        """A value that inputs of the same sizes share."""
        if obj.node in self._free:
            raise fx.proxy.TraceError("what it does depends on the values of its input")
        return self.example(obj.node)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        before, self._beside = self._beside, True
        try:
            with torch.no_grad():
                yield
        finally:
            self._beside = before

    def _computed(self, node: fx.Node) -> Any:
        """A node's value for the example."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.example)
        if any(n in self._free for n in node.all_input_nodes) and not _asks_sizes(node, args):
            self._free.add(node)
        with self._aside():
            if node.op == "get_attr":
                return _attribute(self.root, str(node.target))
            if node.op == "call_module":
                return self.root.get_submodule(str(node.target))(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            assert callable(node.target)
            return node.target(*args, **kwargs)

    def _given(self, name: str, value: Tensor) -> fx.Proxy:
        """An input."""
        node = self.create_node("placeholder", name, (), {})
        self._values[node] = value
        self._free.add(node)
        return self.proxy(node)

    def _as_one(self, made: Any) -> Any:
        """Outputs that have names are made by the graph as forward makes them."""
        parts = parts_of(made)
        return made if parts is None else self.create_proxy("call_function", type(made), (), parts)


class ExampleProxy(ChangeProxy):
    """A value that is known for the example."""

    tracer: ExampleTracer

    def __getattr__(self, k: str) -> Any:
        """What torch.fx gives, but attributes that are no methods at once, and types as they are."""
        known = self.tracer.example(self.node)
        if isinstance(known, Tensor) and k in _PLAIN:
            return getattr(known, k)
        if callable(getattr(known, k)):  # AttributeError where there is none, as ever
            return super().__getattr__(k)
        return self.tracer.create_proxy("call_function", getattr, (self, k), {})

    def __len__(self) -> int:
        return self.tracer.length(self)

    def __index__(self) -> int:
        return operator.index(self.tracer.number(self))

    def __int__(self) -> int:
        return int(self.tracer.number(self))

    def __float__(self) -> float:
        return float(self.tracer.number(self))


def answered(value: Any, answer: bool) -> None:
    """GraphError where a question is answered otherwise than when the model was traced."""
    if bool(value) != answer:
        raise _other(answer, value)


def sized(value: Any, size: float) -> None:
    """GraphError where a number, or a length, is another one than when the model was traced."""
    found = len(value) if hasattr(value, "__len__") else value
    if found != size:
        raise _other(size, found)


def answers(graph: fx.Graph) -> bool:
    """Whether a graph holds for inputs alone that are like its example."""
    return any(map(is_answer, graph.nodes))


def is_answer(node: fx.Node) -> bool:
    """Whether a node checks that an answer of the example holds."""
    return node.target in (answered, sized)


def both(
    traced: nn.Module, model: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What a trace gives, and what the model gives, for inputs unlike the example; nothing where the model refuses."""
    with repeatable():
        try:
            wanted = tensors(model(*copies(inputs)))
        except Exception:  # a model for batches of one size
            return (), ()
        return tensors(traced(*copies(inputs))), wanted


def _other(traced: Any, found: Any) -> GraphError:
    return GraphError(
        f"Inputs must have the sizes of the example where a forward looks at them; it saw {traced!r} and sees "
        f"{found!r}: give an example like this input."
    )


def _asks_sizes(node: fx.Node, args: tuple[Any, ...]) -> bool:
    """Whether what a node gives says nothing of its input's values."""
    if node.op == "call_method":
        return str(node.target) in _SIZES
    return node.target is getattr and not isinstance(getattr(*args), Tensor)


def _attribute(root: nn.Module, path: str) -> Any:
    """What a dotted path leads to."""
    found: Any = root
    for name in path.split("."):
        found = getattr(found, name)
    return found
