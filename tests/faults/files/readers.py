"""Every kind of file automc reads: a good one, how it is read, and how whoever changed it makes its digests right."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

import automc
from automc import artifact
from automc.agent import AgentSetting
from automc.agents.ddpg import DDPGAgent
from automc.compression import provenance, store
from automc.costs.latency import LatencyTable
from automc.episode import Walk, WalkSettings, run_episode, transitions
from automc.policy import GroupDecision, LayerDecision, Policy
from automc.report import decisions, front, text
from automc.search_spaces import files
from automc.searchers import checkpoint
from automc.study import Study
from automc.task import Task
from automc.tasks import trained
from tests.faults.files import hostile
from tests.searchers import table
from tests.spaces import models
from tests.study import lab

WALK = Walk(table.problem("channels-bits", "macs<=60%,size<=30%", depth=8), WalkSettings(("keep", "weight_bits")))
SPACE = """
open: [channels, weights, bits]
channels: {least_keep: 0.2, multiple_of: 4, most_levels: 8}
weights: {sparsities: [0.5, 0.75], patterns: ["N:8", "4x1"], criteria: [l1]}
bits: {weights: [2, 4, 8], activations: [8], ends: [8]}
only: ["layer*"]
except: ["layer3.0.conv1"]
ties: [["layer2.0.conv1", "layer2.0.conv2"]]
"""
GONE = "the same as if there were none"
"""What a reader gives for a file that it makes anew: caches."""


@dataclass(frozen=True)
class Reader:
    """One kind of file."""

    make: Callable[[Path], Path]
    """Writes a good one, and whatever belongs to it, in a folder."""
    read: Callable[[Path], Any]
    """Reads it, and looks at everything in it; what it gives compares."""
    changes: tuple[hostile.Mutation, ...]
    reseal: Callable[[Path], None] | None = None
    """Makes the digests fit what stands there."""
    sealed: bool = False
    """Whether a digest or a parser tells any change of a byte."""
    named: bool = True
    """Whether the reader knows which file it reads."""


class Net(nn.Module):
    """Few layers, so that it is read often."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.third = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, 4)
        self.tied = nn.Linear(12, 4, bias=False)
        self.tied.weight = self.head.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.third(self.second(self.norm(self.first(x)).relu()).relu()).relu().mean((2, 3))
        return self.head(x) + self.tied(x)


@cache
def task() -> Task:
    """The net on noise."""
    generator = torch.Generator().manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    x = torch.randn(32, 3, 6, 6, generator=generator)
    batch = (x, model(x).argmax(dim=1))
    return Task(model, [batch], [batch], name="net", factory=Net)


@cache
def small() -> nn.Module:
    """The net with a decision of every kind."""
    facts = automc.inspect(task())
    layers = (
        ("first", LayerDecision(weight_bits=4, activation_bits=8)),
        ("second", LayerDecision(weight_bits=3, codebook="kmeans", sparsity=0.5)),
        ("third", LayerDecision(rank=0.5)),
    )
    groups = tuple((g.name, GroupDecision(0.5)) for g in facts.groups[:1])
    return automc.apply(task(), Policy(facts.fingerprint, groups, layers))


def _saved(folder: Path, name: str) -> Path:
    automc.save(small(), folder, report={"reference": "digits", "compressed": {"score": 0.5}})
    return folder / name


def _loaded(path: Path) -> Any:
    module = automc.load(path.parent, Net)
    origin = provenance.of(module)
    return {k: v.tolist() for k, v in module.state_dict().items()}, origin.to_dict(), origin.policy


def reseal_saved(path: Path) -> None:
    """A manifest of what stands in the folder."""
    names = (artifact.MODEL, artifact.POLICY, artifact.REPORT)
    data = {name: (path.parent / name).read_bytes() for name in names}
    entries = {n: {"sha256": hashlib.sha256(d).hexdigest(), "bytes": len(d)} for n, d in data.items()}
    manifest = {"format": artifact.FORMAT, "version": artifact.VERSION, "files": entries}
    (path.parent / artifact.MANIFEST).write_text(json.dumps(manifest))


def _policy_file(folder: Path) -> Path:
    path = folder / "policy.json"
    path.write_text(provenance.of(small()).policy.to_json())
    return path


def fresh_agent() -> DDPGAgent:
    return DDPGAgent(AgentSetting(WALK.state_size, WALK.action_size, len(WALK.steps), knobs={"hidden": 4, "replay": 3}))


def _checkpoint(folder: Path) -> Path:
    agent, rng = fresh_agent(), np.random.default_rng(0)
    for reward in (0.5, 0.7):
        walked = run_episode(WALK, WALK.space.largest, lambda state: agent.act(state, rng))
        agent.observe(transitions(WALK, walked, reward), rng)
    checkpoint.save(folder / "agent.safetensors", agent, WALK)
    return folder / "agent.safetensors"


def _restored(path: Path) -> Any:
    agent, rng = fresh_agent(), np.random.default_rng(0)
    before = agent.state_dict()
    try:
        checkpoint.load(path, agent, WALK)
    except automc.errors.ArtifactError:
        assert plain(agent.state_dict()) == plain(before)
        raise
    walked = run_episode(WALK, WALK.space.largest, lambda state: agent.act(state, rng))
    agent.observe(transitions(WALK, walked, 0.5), rng)
    return plain(agent.state_dict())


def plain(value: Any) -> Any:
    """Tensors as lists, for comparing."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _reseal_checkpoint(path: Path) -> None:
    data = path.read_bytes()
    try:
        tensors = load_tensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        path.write_bytes(save_tensors(tensors, metadata=header | {"sha256": checkpoint._digest(header, tensors)}))
    except Exception:
        return


KEY = "layer conv1 moments"


def _stored(folder: Path) -> Path:
    x = torch.arange(12.0).reshape(3, 4)
    store.TensorStore(1 << 20, folder / "bank").get(KEY, lambda: {"moment": x, "order": torch.arange(5)})
    [path] = (folder / "bank").iterdir()
    return path


def _fetched(path: Path) -> Any:
    found = store.TensorStore(1 << 20, path.parent).get(KEY, lambda: {})
    return plain(dict(found)) or GONE


def _reseal_stored(path: Path) -> None:
    try:
        path.write_bytes(store._packed(KEY, load_tensors(path.read_bytes())))
    except Exception:
        return


def _cached(folder: Path) -> Path:
    path = folder / "net.safetensors"
    trained._write({"w": torch.arange(6.0).reshape(2, 3)}, path)
    return path


def _cache_read(path: Path) -> Any:
    return plain(trained._read(path) or {}) or GONE


def _space(folder: Path) -> Path:
    path = folder / "space.yaml"
    path.write_text(SPACE)
    return path


def _opened(path: Path) -> Any:
    space = files.read(path)
    return space.name, space(models.facts_of("option_a"))


def _latency(folder: Path) -> Path:
    facts = models.facts_of("option_a")
    kind = {"layers": ["layer2.0.conv1"], "inputs": [4, 8], "outputs": [8, 16], "seconds": [[1e-5, 2e-5], [2e-5, 4e-5]]}
    kind |= {"zeros": {"element": [[0.5, 0.9]], "2:4": [[0.5, 0.8]]}, "factors": {"svd": [[0.5, 0.6]]}}
    said = {"fingerprint": facts.fingerprint, "device": "d", "threads": 1, "batch": 1, "dense": 0.002, "noise": 0.1}
    said |= {"kinds": [kind], "models": [[1e-3, 2e-3]], "versions": {"torch": "2"}, "scale": 1.1, "fetch": 1e-10}
    LatencyTable.model_validate(said).write(folder / "latency.json")
    return folder / "latency.json"


def _timed(path: Path) -> Any:
    found = LatencyTable.read(path)
    found.check(models.facts_of("option_a"))
    [kind] = found.kinds[:1]
    seconds = kind.of(np.array([[5.0]]), np.array([[9.0]]))
    assert np.isfinite(seconds).all() and (seconds > 0).all()
    return found.model_dump(), text.latency_lines(found)


def _journal(folder: Path, url: str = "{}") -> Path:
    path = folder / "lab.journal"
    record = lab.study(url.format(path), space="channels", searcher="draws", seed=0, score="metric", metric="accuracy")
    rng = np.random.default_rng(1)
    for _ in range(3):
        record.record(lab.lookup(lab.draw(rng)))
    record.append(lab.pruned(lab.lookup(lab.draw(rng))))
    record.note("uniform", {"score": 0.4, "metric": 0.4, "costs": {"macs": 690.0, "size": 2900.0}})
    return path


def _database(folder: Path) -> Path:
    return _journal(folder, "sqlite:///{}")


def seen(storage: str | Path) -> Any:
    """Everything that commands show of a study."""
    study = Study.open(storage)
    best = study.best
    front.table(study, study.costs)
    document = front.document(study, study.costs)
    decisions.tables(best.policy)
    lines = [text.scores_line(best, study.meta), text.counts_line(study.evaluations)]
    lines.append(text.costs_line(best, study.meta["dense"]["costs"], study.costs))
    json.dumps([text.as_json(e) for e in study.evaluations])
    front._traces(study, study.costs[0], _Plain, legend=True)
    return document, lines, study.axes, study.meta, study.cheapest(1e9), study.evaluations


class _Plain:
    """Plotly's graph objects cost milliseconds; what they are made of is what counts."""

    Scatter = dict


READERS = {
    "policy": Reader(
        _policy_file, lambda p: Policy.from_json(p.read_bytes()), (hostile.of_bytes, hostile.of_json), named=False
    ),
    "saved model": Reader(
        lambda f: _saved(f, artifact.MODEL),
        _loaded,
        (hostile.of_bytes, hostile.of_safetensors, hostile.of_safetensors),
        reseal_saved,
        sealed=True,
    ),
    "saved policy": Reader(
        lambda f: _saved(f, artifact.POLICY), _loaded, (hostile.of_bytes, hostile.of_json), reseal_saved, sealed=True
    ),
    "manifest": Reader(
        lambda f: _saved(f, artifact.MANIFEST), _loaded, (hostile.of_bytes, hostile.of_json), sealed=True
    ),
    "report": Reader(
        lambda f: _saved(f, artifact.REPORT),
        lambda p: artifact.read_report(p.parent),
        (hostile.of_bytes, hostile.of_json),
        reseal_saved,
        sealed=True,
    ),
    "checkpoint": Reader(
        _checkpoint, _restored, (hostile.of_bytes, hostile.of_safetensors), _reseal_checkpoint, sealed=True
    ),
    "bank": Reader(_stored, _fetched, (hostile.of_bytes, hostile.of_safetensors), _reseal_stored, sealed=True),
    "trained network": Reader(_cached, _cache_read, (hostile.of_bytes, hostile.of_safetensors), sealed=True),
    "space": Reader(_space, _opened, (hostile.of_bytes,)),
    "latency table": Reader(_latency, _timed, (hostile.of_bytes, hostile.of_json)),
    "journal": Reader(_journal, seen, (hostile.of_bytes, hostile.of_lines)),
    "database": Reader(_database, lambda p: seen(f"sqlite:///{p}"), (hostile.of_bytes,)),
}
"""By name, what is read."""
