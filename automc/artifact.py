"""A compressed model on disk: model.safetensors, policy.json, report.json and a manifest of their hashes.

`model.safetensors` is complete by itself: its metadata says which units of which group stay and how many bits each
layer has; quantized weights are packed codes and a scale per output channel, weights with many zeros a bitmap and
the rest. The manifest is there because safetensors alone loads flipped bits silently. Nothing here is code: loading
needs a factory that builds the uncompressed model, whose weights do not matter.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from automc.compression import provenance
from automc.compression.packing import pack_bitmap, pack_codes, unpack_bitmap, unpack_codes
from automc.compression.quantize import dequantize, quantized_layers, weight_codes
from automc.compression.structure import Structure, build
from automc.errors import ArtifactError, AutomcError
from automc.files import sha256, write_atomic
from automc.graph.trace import trace_model
from automc.policy import FULL_BITS, Policy

MODEL, POLICY, REPORT, MANIFEST = "model.safetensors", "policy.json", "report.json", "manifest.json"
FORMAT, VERSION = "automc-artifact", 1


@dataclass(frozen=True, eq=False, slots=True)
class _Stored:
    """How one weight is stored."""

    bits: int
    shape: tuple[int, ...]
    sparse: bool


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
    bits = {f"{name}.layer.weight": layer.weight_bits for name, layer in quantized_layers(module)}
    scales = {f"{name}.layer.weight": layer.weight_scale for name, layer in quantized_layers(module)}
    stored: dict[str, list[Any]] = {}
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        entries, how = _pack(tensor, bits.get(name, FULL_BITS), scales.get(name))
        packed |= {name + suffix: value for suffix, value in entries.items()}
        if how is not None:
            stored[name] = [how.bits, list(how.shape), how.sparse]
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


def _pack(tensor: Tensor, bits: int, scale: Tensor | None) -> tuple[dict[str, Tensor], _Stored | None]:
    """A tensor's stored entries by suffix, and how to read them; plain where packing gains nothing."""
    plain = {"": tensor}
    if tensor.dim() < 2 or tensor.dtype != torch.float32:
        return plain, None
    flat = tensor.reshape(-1)
    present = (flat != 0).numpy()
    sparse = -(-present.size // 8) + -(-int(present.sum()) * bits // 8) < -(-present.size * bits // 8)
    if bits == FULL_BITS and not sparse:
        return plain, None
    entries = {".present": torch.from_numpy(pack_bitmap(present))} if sparse else {}
    chosen = torch.from_numpy(present) if sparse else torch.ones(len(flat), dtype=torch.bool)
    if bits == FULL_BITS:
        entries[".values"] = flat[chosen]
    else:
        assert scale is not None
        codes = weight_codes(tensor, scale, bits).reshape(-1)[chosen]
        entries[".codes"] = torch.from_numpy(pack_codes(codes.to(torch.int64).numpy(), bits))
    return entries, _Stored(bits, tuple(tensor.shape), sparse)


def _unpack(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> dict[str, Tensor]:
    state = dict(tensors)
    for name, (bits, shape, sparse) in metadata["stored"].items():
        count = int(np.prod(shape))
        present = torch.ones(count, dtype=torch.bool)
        if sparse:
            present = torch.from_numpy(unpack_bitmap(state.pop(f"{name}.present").numpy(), count))
        flat = torch.zeros(count)
        if bits == FULL_BITS:
            flat[present] = state.pop(f"{name}.values")
            state[name] = flat.reshape(shape)
        else:
            codes = unpack_codes(state.pop(f"{name}.codes").numpy(), bits, int(present.sum()))
            flat[present] = torch.from_numpy(codes).to(torch.float32)
            scale = state[name.removesuffix("layer.weight") + "weight_scale"]
            state[name] = dequantize(flat.reshape(shape), scale)
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
    bits = {name: (int(w), int(a)) for name, (w, a) in metadata["bits"].items()}
    return Structure(kept, bits, tuple(metadata["without"]))
