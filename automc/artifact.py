"""A compressed model on disk: model.safetensors, policy.json, report.json and a manifest of their hashes.

`model.safetensors` is complete by itself: its metadata says which units of which group stay and how many bits each
layer has; few-bit weights are codes and a scale per output channel or a codebook, each weight in the smallest of
several forms (`automc.compression.packing`). The manifest is there because safetensors alone loads flipped bits
silently. Nothing here is code: loading
needs a factory that builds the uncompressed model, whose weights do not matter.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from automc.compression import provenance
from automc.compression.packing import Stored, pack_codes, pack_floats, unpack, unpack_bitmap
from automc.compression.quantize import dequantize, quantized_layers
from automc.compression.structure import Structure, build
from automc.errors import ArtifactError, AutomcError
from automc.files import sha256, write_atomic
from automc.graph.trace import trace_model
from automc.policy import FULL_BITS, Policy

MODEL, POLICY, REPORT, MANIFEST = "model.safetensors", "policy.json", "report.json", "manifest.json"
FORMAT, VERSION = "automc-artifact", 2


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
    for name, data in files.items():
        write_atomic(path / name, data)
    entries = {name: {"sha256": sha256(data), "bytes": len(data)} for name, data in files.items()}
    manifest = {"format": FORMAT, "version": VERSION, "files": entries}
    write_atomic(path / MANIFEST, json.dumps(manifest, indent=1).encode())
    return len(model)


def load(directory: str | Path, factory: Callable[[], nn.Module]) -> nn.Module:
    """The module `save` wrote, in eval mode; `factory` builds the uncompressed model. Damage raises ArtifactError."""
    path = Path(directory)
    files = verified(path)
    metadata = _metadata(path, files[MODEL])
    try:
        tensors = load_tensors(files[MODEL])
        inputs = tuple(torch.zeros(shape, dtype=getattr(torch, dtype)) for shape, dtype in metadata["inputs"])
        model = factory()
        graph = trace_model(model, inputs, verify=False)
        units = {g.name: g.units for g in graph.facts.groups}
        structure = _structure(metadata, units)
        small = build(graph, model, structure)
        state = _unpack(tensors, metadata)
        small.load_state_dict(state | {alias: state[name] for alias, name in metadata["aliases"].items()})
    except ArtifactError:
        raise
    except (AutomcError, KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"{path} must fit the model its factory builds; it does not ({reason}): pass the factory it was made with."
        ) from error
    policy = Policy.from_json(files[POLICY].decode())
    return provenance.attach(small.eval(), policy, structure, units, inputs)


def read_report(directory: str | Path) -> dict[str, Any]:
    """The report saved with a model."""
    report: dict[str, Any] = json.loads(verified(Path(directory))[REPORT])
    return report


def verified(path: Path) -> dict[str, bytes]:
    """Every file of an artifact, checked against the manifest; anything missing or changed raises ArtifactError."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT or manifest["version"] != VERSION:
            raise ArtifactError(
                f"{path / MANIFEST} must be of {FORMAT} {VERSION}; it is another: save the model again."
            )
        entries = manifest["files"]
        files = {name: (path / name).read_bytes() for name in (MODEL, POLICY, REPORT)}
    except OSError as error:
        raise ArtifactError(
            f"{path} must hold a saved model; {error.filename} cannot be read: run `automc apply` first."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path / MANIFEST} must be automc's manifest; it cannot be read: save the model again."
        ) from error
    for name, data in files.items():
        if entries.get(name, {}).get("sha256") != sha256(data):
            raise ArtifactError(
                f"{path / name} must match its manifest; its content has changed: save the model again."
            )
    return files


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


def _unpack(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> dict[str, Tensor]:
    state = dict(tensors)
    for name, (bits, shape, form, lowest) in metadata["stored"].items():
        names = {suffix: name + suffix for suffix in (".present", ".gaps", ".codes", ".values")}
        entries = {suffix: state.pop(key) for suffix, key in names.items() if key in state}
        unpacked = unpack(entries, Stored(bits, tuple(shape), form, lowest))
        if bits < FULL_BITS:
            holder = name.removesuffix("layer.weight")
            scale, centroids = state.get(f"{holder}weight_scale"), state.get(f"{holder}centroids")
            unpacked = centroids[unpacked] if scale is None else dequantize(unpacked.to(torch.float32), scale)  # type: ignore[index]
        state[name] = unpacked
    return state


def _metadata(path: Path, data: bytes) -> dict[str, Any]:
    try:
        length = int.from_bytes(data[:8], "little")
        found: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["automc"])
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise ArtifactError(
            f"{path / MODEL} must be a model automc saved; its header says nothing of it: save it again."
        ) from error
    if found.get("version") != VERSION or "kept" not in found:
        raise ArtifactError(
            f"{path / MODEL} must be version {VERSION} of an applied model; it is not: save it again with this automc."
        )
    return found


def _structure(metadata: dict[str, Any], units: dict[str, int]) -> Structure:
    unknown = set(metadata["kept"]) - set(units)
    if unknown:
        raise ArtifactError(
            f"Every pruned group must be the factory's model's; {sorted(unknown)[0]!r} is not: pass the right one."
        )
    kept = {
        name: np.flatnonzero(unpack_bitmap(np.frombuffer(bytes.fromhex(bitmap), dtype=np.uint8), units[name]))
        for name, bitmap in metadata["kept"].items()
    }
    bits = {name: (int(w), int(a), book) for name, (w, a, book) in metadata["bits"].items()}
    factors = {name: (method, tuple(ranks)) for name, (method, ranks) in metadata["factors"].items()}
    return Structure(kept, bits, factors, tuple(metadata["without"]))
