"""An agent on disk: one safetensors file, complete, that only walks of its own kind may load.

Tensors stand under the path that leads to them; everything else of the agent's state is JSON in the file's header,
beside the agent's name, the walk's digest (model, decisions, form of states and actions; see `Walk.digest`) and a
SHA-256 over all of it, since safetensors alone loads flipped bits silently. Written whole or not at all.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from automc.agent import Agent
from automc.episode import Walk, run_episode, transitions
from automc.errors import ArtifactError
from automc.files import parsed_json, read_file, sha256, write_atomic

FORMAT = "automc agent 1"
MOST_BYTES = 2**30
"""That a checkpoint may have; off-policy agents keep their replay buffer in it."""


def save(path: str | Path, agent: Agent, walk: Walk) -> None:
    """Writes an agent's whole state; ArtifactError where the path cannot be written."""
    tensors: dict[str, Tensor] = {}
    state = _flattened(agent.state_dict(), "", tensors)
    header = {"format": FORMAT, "agent": _kind(agent), "walk": walk.digest, "state": json.dumps(state)}
    header["sha256"] = _digest(header, tensors)
    write_atomic(Path(path), save_tensors(tensors, metadata=header))


def load(path: str | Path, agent: Agent, walk: Walk) -> None:
    """Restores an agent from what `save` wrote.

    ArtifactError, and the agent as it was, where the file cannot be read, was changed, or is of another agent or of a
    walk over another space.
    """
    header, tensors = _read(Path(path))
    for name, mine, what in (("agent", _kind(agent), "agent"), ("walk", walk.digest, "space")):
        if header[name] != mine:
            raise ArtifactError(
                f"An agent must go back to where it was saved; {path} is an agent checkpoint of another {what}: "
                "repeat the search's model, space and searcher, or start a new agent."
            )
    before = agent.state_dict()
    try:
        state = _unflattened(parsed_json(header["state"]), tensors)
        agent.load_state_dict(state)
        _try(agent, walk)
        agent.load_state_dict(state)
    except Exception as error:  # whatever an agent makes of a state that somebody made up
        agent.load_state_dict(before)
        raise _damaged(Path(path)) from error


def _try(agent: Agent, walk: Walk) -> None:
    """Has an agent act and learn once: what in its state it cannot use shows now, and not in the midst of a search."""
    rng = np.random.default_rng(0)
    walked = run_episode(walk, walk.space.largest, lambda state: agent.act(state, rng))
    agent.observe(transitions(walk, walked, 0.0), rng, updates=1)


def _read(path: Path) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    """Header and tensors of a checkpoint nobody changed."""
    try:
        data = read_file(path, MOST_BYTES)
    except OSError as error:
        raise ArtifactError(
            f"An agent checkpoint must be readable; the system says {error.strerror} of {path}: name another file."
        ) from error
    try:
        tensors = load_tensors(data)
        header: Mapping[str, str] = parsed_json(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        whole = header.keys() == {"format", "agent", "walk", "state", "sha256"}
        sound = whole and header["format"] == FORMAT and header["sha256"] == _digest(header, tensors)
        finite = all(bool(x.isfinite().all()) for x in tensors.values())
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _damaged(path) from error
    if not (sound and finite):
        raise _damaged(path)
    return header, tensors


def _damaged(path: Path) -> ArtifactError:
    return ArtifactError(
        f"An agent checkpoint must be as it was written; {path} is damaged or something else: take an earlier one."
    )


def _kind(agent: Agent) -> str:
    """What tells agents apart whose states have the same form: class and settings."""
    return f"{type(agent).__module__}.{type(agent).__qualname__} {getattr(agent, 'settings', '')}"


def _digest(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the header, without itself, and every tensor."""
    parts = [json.dumps({k: v for k, v in sorted(header.items()) if k != "sha256"}).encode()]
    for name, tensor in sorted(tensors.items()):
        parts += [f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), tensor.contiguous().numpy().tobytes()]
    return sha256(b"\0".join(parts))


def _flattened(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON with every tensor moved to `tensors`, and what JSON would change of a dict's keys or a tuple marked."""
    if isinstance(value, Tensor):
        name = path or "state"
        tensors[name] = value.detach().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        items = [[key, _flattened(item, f"{path}.{key}".lstrip("."), tensors)] for key, item in value.items()]
        return {"dict": items}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_flattened(item, f"{path}.{i}", tensors) for i, item in enumerate(value)]}
    return value


def _unflattened(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} in a state")
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unflattened(item, tensors) for key, item in content}
    items = [_unflattened(item, tensors) for item in content]
    return items if kind == "list" else tuple(items)
