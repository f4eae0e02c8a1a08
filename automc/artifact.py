"""A compressed model on disk: model.safetensors, policy.json, report.json and a manifest of their hashes.

`model.safetensors` is complete by itself: its metadata says which units of which group stay and how many bits each
layer has; few-bit weights are codes and a scale per output channel or a codebook, each weight in the smallest of
several forms (`automc.compression.packing`). The manifest is there because safetensors alone loads flipped bits
silently. Nothing here is code: loading
needs a factory that builds the uncompressed model, whose weights do not matter. Whoever writes a model can write its
manifest, too, so that nothing in the other files is believed either: what they claim is held against that model before
room is made for it.
"""

import json
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from automc.compression import provenance
from automc.compression.packing import Form, Stored, pack_codes, pack_floats, unpack, unpack_bitmap
from automc.compression.quantize import dequantize, quantized_layers
from automc.compression.structure import Bits, Structure, build
from automc.errors import ArtifactError, PolicyError
from automc.files import parsed_json, read_file, sha256, write_together
from automc.graph.describe import check_finite
from automc.graph.trace import trace_model
from automc.policy import FULL_BITS, Codebooks, Policy
from automc.visible import brief, visible

MODEL, POLICY, REPORT, MANIFEST = "model.safetensors", "policy.json", "report.json", "manifest.json"
FORMAT, VERSION = "automc-artifact", 2
MOST_TEXT, MOST_POLICY = 2**26, 2**23
"""Bytes that a report or a manifest may have, and a policy, of which each decision is looked at."""
MOST_INPUTS = 2**26
"""Elements that the inputs may have which a model is traced with."""
FILES = (MODEL, POLICY, REPORT)
"""What a manifest speaks of."""


def save(module: nn.Module, directory: str | Path, *, report: Mapping[str, Any] | None = None) -> int:
    """Writes a module that `apply` or `load` returned; returns the bytes of its model file.

    A module from elsewhere raises ArtifactError, since nobody could load it again.
    """
    origin = provenance.of(module)
    path = Path(directory)
    model = serialized(module)
    files = {
        MODEL: model,
        POLICY: origin.policy.to_json().encode(),
        REPORT: json.dumps(dict(report or {}), indent=1).encode(),
    }
    entries = {name: {"sha256": sha256(data), "bytes": len(data)} for name, data in files.items()}
    manifest = {"format": FORMAT, "version": VERSION, "files": entries}
    files[MANIFEST] = json.dumps(manifest, indent=1).encode()
    write_together({path / name: data for name, data in files.items()})
    return len(model)


def load(directory: str | Path, factory: Callable[[], nn.Module]) -> nn.Module:
    """The module `save` wrote, in eval mode; `factory` builds the uncompressed model. Damage raises ArtifactError."""
    path = Path(directory)
    entries = _manifest(path)
    model = factory()
    metadata, tensors = _model(path / MODEL, _content(path, MODEL, entries, _most_bytes(model)))
    policy = _policy(path / POLICY, _content(path, POLICY, entries, MOST_POLICY))
    _content(path, REPORT, entries)
    try:
        inputs = _inputs(metadata["inputs"])
        graph = trace_model(model, inputs, verify=False)
        units = {g.name: g.units for g in graph.facts.groups}
        structure = _structure(metadata, units)
        small = build(graph, model, structure)
        state = _unpack(tensors, metadata["stored"], small)
        small.load_state_dict(state | {alias: state[name] for alias, name in metadata["aliases"].items()})
        check_finite(small)
    except Exception as error:  # whatever a claim of the file that does not fit the model leads to
        reason = " ".join(visible(str(error)).split())[:200]
        raise ArtifactError(
            f"{path} must fit the model its factory builds; it does not ({reason}): pass the factory it was made with."
        ) from error
    return provenance.attach(small.eval(), policy, structure, units, inputs)


def read_report(directory: str | Path) -> dict[str, Any]:
    """The report saved with a model; ArtifactError where it was changed, or another file is not there or too short."""
    path = Path(directory)
    entries = _manifest(path)
    try:
        report = parsed_json(_content(path, REPORT, entries))
    except ValueError as error:
        raise ArtifactError(f"{path / REPORT} must be JSON; it is not ({error}): save the model again.") from error
    if not isinstance(report, dict):
        raise ArtifactError(
            f"{path / REPORT} must be an object; it is a {type(report).__name__}: save the model again."
        )
    return report


def _manifest(path: Path) -> dict[str, tuple[str, int]]:
    """SHA-256 and bytes of each file of an artifact, which is there and has so many."""
    try:
        manifest = parsed_json(read_file(path / MANIFEST, MOST_TEXT))
        entries = {name: (manifest["files"][name]["sha256"], manifest["files"][name]["bytes"]) for name in FILES}
        whole = {name: {"sha256": digest, "bytes": size} for name, (digest, size) in entries.items()}
        known = manifest == {"format": FORMAT, "version": VERSION, "files": whole}
        sizes = {name: (path / name).stat().st_size for name in FILES}
    except OSError as error:
        raise ArtifactError(
            f"{path} must hold a saved model; {error.filename} cannot be read ({error.strerror}): run `automc apply` "
            "first."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path / MANIFEST} must be automc's manifest; it cannot be read: save the model again."
        ) from error
    if not known:
        raise ArtifactError(f"{path / MANIFEST} must be of {FORMAT} {VERSION}; it is another: save the model again.")
    for name, (_, size) in entries.items():
        if sizes[name] != size:
            raise _changed(path / name)
    return entries


def _content(path: Path, name: str, entries: Mapping[str, tuple[str, int]], most: int = MOST_TEXT) -> bytes:
    """What a file of an artifact holds, which is what its manifest says."""
    try:
        data = read_file(path / name, most)
    except OSError as error:
        raise ArtifactError(
            f"{path / name} must be a file of a saved model; it is not ({error.strerror}): save the model again."
        ) from error
    if sha256(data) != entries[name][0]:
        raise _changed(path / name)
    return data


def _changed(path: Path) -> ArtifactError:
    return ArtifactError(f"{path} must match its manifest; its content has changed: save the model again.")


def _most_bytes(model: nn.Module) -> int:
    """Bytes that the compressed form of a model can take, generously: what was applied never makes it larger."""
    return 2**20 + sum(2 * int(x.nbytes) + 4096 for x in model.state_dict().values())


def serialized(module: nn.Module) -> bytes:
    """The bytes of a module's model file; a module that `apply` did not make is stored as plain tensors."""
    tensors, aliases = _unique(module)
    origin = getattr(module, "automc", None)
    layers = {f"{name}.layer.weight": layer for name, layer in quantized_layers(module)}
    stored: dict[str, list[Any]] = {}
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dim() < 2 or tensor.dtype != torch.float32:
            packed[name] = tensor
            continue
        layer = layers.get(name)
        codes = None if layer is None else layer.codes
        if layer is None or codes is None:
            entries, how = pack_floats(tensor)
        else:
            entries, how = pack_codes(codes, layer.weight_bits, layer.lowest_code)
        packed |= {name + suffix: value for suffix, value in entries.items()}
        if how is not None:
            stored[name] = [how.bits, list(how.shape), how.form, how.lowest]
    metadata: dict[str, Any] = {"version": VERSION, "stored": stored, "aliases": aliases}
    if origin is not None:
        metadata |= origin.to_dict()
    return save_tensors(packed, metadata={"automc": json.dumps(metadata, separators=(",", ":"))})


def _unique(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every state tensor once, and the other names of tied ones."""
    first: dict[tuple[int, tuple[int, ...]], str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in module.state_dict().items():
        key = (tensor.data_ptr(), tuple(tensor.shape))
        if tensor.numel() and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            tensors[name] = tensor.detach().contiguous()
    return tensors, aliases


def _unpack(tensors: dict[str, Tensor], stored: Mapping[str, Any], small: nn.Module) -> dict[str, Tensor]:
    """The state of a module, whose weights say how much there is to unpack."""
    state, expected = dict(tensors), small.state_dict()
    holders = {f"{name}.layer.weight": layer for name, layer in quantized_layers(small)}
    for name, entry in stored.items():
        how = _stored(name, entry, expected[name], holders[name].weight_bits if name in holders else FULL_BITS)
        names = {suffix: name + suffix for suffix in (".present", ".gaps", ".codes", ".values")}
        entries = {suffix: state.pop(key) for suffix, key in names.items() if key in state}
        unpacked = unpack(entries, how)
        if how.bits < FULL_BITS:
            holder = name.removesuffix("layer.weight")
            scale, centroids = state.get(f"{holder}weight_scale"), state.get(f"{holder}centroids")
            unpacked = centroids[unpacked] if scale is None else dequantize(unpacked.to(torch.float32), scale)  # type: ignore[index]
        state[name] = unpacked
    return state


def _stored(name: str, entry: Any, weight: Tensor, bits: int) -> Stored:
    """How a weight is stored; ArtifactError unless it is this weight, of so many bits or a float."""
    found, shape, form, lowest = entry
    sound = isinstance(lowest, int) and form in get_args(Form) and tuple(shape) == tuple(weight.shape)
    if not sound or found not in (bits, FULL_BITS):
        raise ArtifactError(
            f"A stored weight must be one of the model's; {brief(name)} is not ({brief(entry)}): save it again."
        )
    return Stored(found, tuple(weight.shape), form, lowest)


def _model(path: Path, data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a model file's header says, and its tensors."""
    try:
        length = int.from_bytes(data[:8], "little")
        found = parsed_json(parsed_json(data[8 : 8 + length])["__metadata__"]["automc"])
        version, _ = found["version"], found["kept"]
        tensors = load_tensors(data)
    except Exception as error:  # safetensors raises its own, and Python's for types it does not know
        raise ArtifactError(
            f"{path} must be a model automc saved; its header says nothing of it: save it again."
        ) from error
    if version != VERSION:
        raise ArtifactError(
            f"{path} must be version {VERSION} of an applied model; it is not: save it again with this automc."
        )
    return found, tensors


def _policy(path: Path, data: bytes) -> Policy:
    try:
        return Policy.from_json(data)
    except PolicyError as error:
        raise ArtifactError(f"{path} must be the policy that was applied; it is not one. {error}") from error


def _inputs(described: Any) -> tuple[Tensor, ...]:
    """Zeros of the shapes and types that are said; ArtifactError where there is no such type, or no room for them."""
    kinds = [getattr(torch, name, None) for _, name in described]
    known = all(isinstance(kind, torch.dtype) for kind in kinds)
    if not known or sum(prod(shape) for shape, _ in described) > MOST_INPUTS:
        raise ArtifactError(
            f"Example inputs must be tensors of {MOST_INPUTS} elements at most; {brief(described)} are not: save the "
            "model again."
        )
    return tuple(torch.zeros(shape, dtype=kind) for (shape, _), kind in zip(described, kinds, strict=True))


def _structure(metadata: dict[str, Any], units: dict[str, int]) -> Structure:
    unknown = set(metadata["kept"]) - set(units)
    if unknown:
        raise ArtifactError(
            f"Every pruned group must be the factory's model's; {brief(min(unknown))} is not: pass the right one."
        )
    kept = {
        name: np.flatnonzero(unpack_bitmap(np.frombuffer(bytes.fromhex(bitmap), dtype=np.uint8), units[name]))
        for name, bitmap in metadata["kept"].items()
    }
    bits = {name: _bits(name, entry) for name, entry in metadata["bits"].items()}
    factors = {name: (method, tuple(ranks)) for name, (method, ranks) in metadata["factors"].items()}
    return Structure(kept, bits, factors, tuple(metadata["without"]))


def _bits(name: str, entry: Any) -> Bits:
    """Bits of weights and inputs, and the codebook, of a layer; ArtifactError for what no policy decides."""
    weights, inputs, book = entry
    few = (*range(2, 9), FULL_BITS)
    if type(weights) is not int or type(inputs) is not int or weights not in few or inputs not in few:
        raise ArtifactError(
            f"Bits of a layer must be 2-8 or 32; {brief(name)} has {brief(entry)}: save the model again."
        )
    if book not in get_args(Codebooks):
        raise ArtifactError(
            f"A codebook must be one of {get_args(Codebooks)}; {brief(name)} has {brief(book)}: save the model again."
        )
    return weights, inputs, book
