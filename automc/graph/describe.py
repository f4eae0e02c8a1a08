"""Facts about layers, norms and parameters, measured by hooks on the real forward: no tracing needed."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from automc.errors import GraphError
from automc.graph.counting import counted
from automc.graph.facts import Group, LayerFacts, NormFacts, ParameterFacts
from automc.graph.holders import TRANSPOSED, Layer, Norm, as_layer, as_norm, sizes
from automc.graph.runs import batch_size, copies, repeatable, tensors
from automc.visible import brief


@dataclass(slots=True)
class Seen:
    """What the hooks have seen of one layer or norm."""

    positions: int = 0
    input_size: tuple[int, ...] = ()
    output_size: tuple[int, ...] = ()
    calls: int = 0
    reads: str = ""
    """The first layer that read the same tensor; empty for a norm and for what was called several times."""


def check_finite(model: nn.Module) -> None:
    """Raises GraphError naming the first parameter with a NaN or an infinity, or buffer with a NaN.

    Buffers may hold infinities, as masks do, but for batch norms' statistics.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            continue
        strict = name in parameters or name.rpartition(".")[2] in ("running_mean", "running_var")
        if bool(tensor.isnan().any()) or (strict and not bool(torch.isfinite(tensor).all())):
            raise GraphError(f"Weights must be finite; {name!r} holds NaN or infinity: load a sound checkpoint.")


def check_names(model: nn.Module) -> None:
    """Raises GraphError for a name that torch.fx, which writes forwards as Python with names between quotes, would take
    for code.
    """
    for named in (model.named_modules, model.named_parameters, model.named_buffers):
        for name, _ in named(remove_duplicate=False):
            if not name.isprintable() or {'"', "\\"} & set(name):
                raise GraphError(
                    "Names of a model's parts must print and have no double quotes and backslashes; "
                    f"{brief(name)} is none such: rename it."
                )


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the class name and of every state tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Run:
    """One forward pass."""

    seen: dict[str, Seen]
    """Every call of a layer or norm, by module path, in forward order."""
    macs: float
    """Of one sample."""
    outputs: tuple[Tensor, ...]


def watch(model: nn.Module, inputs: tuple[Tensor, ...]) -> Run:
    """Runs the model once."""
    batch = batch_size(inputs)
    seen: dict[str, Seen] = {}
    read: dict[str, Read] = {}
    handles = []
    for name, module in model.named_modules():
        if as_layer(module) is not None or as_norm(module) is not None:
            handles.append(module.register_forward_hook(_hook(seen, read, name, batch), with_kwargs=True))
    try:
        with repeatable(), counted(inputs) as macs:
            outputs = tensors(model(*copies(inputs)))
    finally:
        for handle in handles:
            handle.remove()
    readers: dict[Any, str] = {}
    for name, (x, version) in read.items():
        if seen[name].calls == 1 and as_layer(model.get_submodule(name)) is not None:
            value = x.data_ptr(), tuple(x.shape), x.stride(), x.dtype, version
            seen[name].reads = readers.setdefault(value, name)
    return Run(seen, macs(), outputs)


def layer_facts(model: nn.Module, seen: Mapping[str, Seen], norms: Mapping[str, str]) -> tuple[LayerFacts, ...]:
    """Facts of every layer that was called; `norms` names the batch norm that alone reads a layer."""
    names: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(path)
    facts = []
    for name, record in seen.items():
        layer = as_layer(model.get_submodule(name))
        if layer is not None and opaque(model, name) is None:
            own = (path for path in names[id(layer.weight)] if path != f"{name}.weight")
            tied = tuple(path for path in own if model.get_submodule(path.rpartition(".")[0]) is not layer)
            facts.append(_layer(name, layer, record, norms.get(name), tied))
    return tuple(facts)


def opaque(model: nn.Module, name: str) -> str | None:
    """The first of torch's own modules around a layer or norm: what runs inside cannot be followed or replaced."""
    parts = name.split(".")[:-1]
    paths = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
    return next((path for path in paths if _is_torchs(model.get_submodule(path))), None)


def _is_torchs(module: nn.Module) -> bool:
    """Whether a module is one of torch's that does more than hold others."""
    holds = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return type(module).__module__.startswith("torch.nn.modules") and not isinstance(module, holds)


def norm_facts(model: nn.Module, seen: Mapping[str, Seen]) -> tuple[NormFacts, ...]:
    """Facts of every batch norm that was called."""
    open_to = [name for name in seen if opaque(model, name) is None]
    found: list[tuple[str, Norm | None]] = [(name, as_norm(model.get_submodule(name))) for name in open_to]
    return tuple(NormFacts(name, n.num_features, n.affine, n.track_running_stats) for name, n in found if n is not None)


def folded_norms(graph: fx.Graph, calls: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Layer -> the batch norm that is the only reader of its only call, and reads nothing else."""
    nodes = {node.name: node for node in graph.nodes}
    by_node = {node: name for name, made in calls.items() for node in made if len(made) == 1}
    found = {}
    for node_name, name in by_node.items():
        users = list(nodes[node_name].users)
        if len(users) == 1 and users[0].name in by_node:
            found[name] = by_node[users[0].name]
    return found


def parameter_facts(model: nn.Module, groups: Sequence[Group]) -> tuple[ParameterFacts, ...]:
    """Parameters outside layers and norms that some group prunes."""
    names = dict.fromkeys(m.target for group in groups for m in group.members if m.kind == "parameter")
    return tuple(ParameterFacts(name, tuple(model.get_parameter(name).shape)) for name in names)


def other_tensors(model: nn.Module, layers: Sequence[LayerFacts]) -> tuple[str, ...]:
    """State tensors that belong to no layer."""
    modules = [model.get_submodule(layer.name) for layer in layers]
    held = {id(parameter) for module in modules for parameter in module.parameters(recurse=False)}
    owned = {name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in held}
    return tuple(name for name in model.state_dict() if name not in owned)


def buffer_bytes(model: nn.Module) -> int:
    """Bytes of all persistent buffers."""
    stored = set(model.state_dict())
    return sum(buffer.nbytes for name, buffer in model.named_buffers() if name in stored)


def _layer(name: str, layer: Layer, seen: Seen, norm: str | None, tied: tuple[str, ...]) -> LayerFacts:
    out, fan_in, groups = sizes(layer)
    linear = isinstance(layer, nn.Linear)
    facts = LayerFacts(
        name=name,
        kind="linear" if linear else "conv",
        in_channels=fan_in,
        out_channels=out,
        kernel=() if isinstance(layer, nn.Linear) else tuple(layer.kernel_size),
        stride=() if isinstance(layer, nn.Linear) else tuple(layer.stride),
        groups=groups,
        positions=seen.positions,
        input_size=seen.input_size,
        has_bias=layer.bias is not None,
        norm=norm,
        tied=tied,
        output_size=seen.output_size,
        reads=seen.reads,
        calls=seen.calls,
        transposed=isinstance(layer, TRANSPOSED),
    )
    return facts if facts.normable else replace(facts, norm=None)


Read: TypeAlias = tuple[Tensor, int]
"""What a first call read, and how often that was changed in place before; held for the length of a run, so that no
other tensor takes its place in memory."""


def _hook(
    seen: dict[str, Seen], read: dict[str, Read], name: str, batch: int
) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor], Tensor], None]:
    def note(module: nn.Module, args: tuple[Tensor, ...], options: dict[str, Tensor], output: Tensor) -> None:
        x = args[0] if args else options["input"]
        record = seen.setdefault(name, Seen())
        linear = isinstance(module, nn.Linear)
        places = x if isinstance(module, TRANSPOSED) else output
        record.positions += max(1, places.numel() // (batch * places.shape[-1 if linear else 1]))
        if not record.calls:
            record.input_size = tuple(x.shape[1:-1] if linear else x.shape[2:])
            record.output_size = tuple(output.shape[1:-1] if linear else output.shape[2:])
            read[name] = x, 0 if x.is_inference() else x._version
        record.calls += 1

    return note
