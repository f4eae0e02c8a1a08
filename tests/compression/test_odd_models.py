"""Models that are legal and unusual: each compresses to what it should, or is refused by name."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import automc
from automc.compression.compress import Compressor
from automc.compression.prefix import worthwhile
from automc.errors import GraphError, PolicyError
from automc.graph.trace import trace_model
from automc.policy import BlockDecision, GroupDecision, LayerDecision, Policy, Recipe
from automc.projection import Costing
from automc.registry import SPACES
from automc.space import SearchSpace
from automc.task import Task

IMAGES = torch.randn(300, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def compressor(model: nn.Module, x: Tensor, targets: Tensor | None = None, **options: Any) -> Compressor:
    y = torch.zeros(len(x), dtype=torch.long) if targets is None else targets
    task = Task(model.eval(), [(x, y)], [(x, y)])
    return Compressor(trace_model(model, task.example_inputs), model, task, **options)


def relative(found: Tensor, wanted: Tensor) -> float:
    """Mean squared error as a share of the variance."""
    return float((found - wanted).square().mean() / wanted.var(dim=0).mean())


def policy(of: Compressor, keep: float = 1.0, recipe: Recipe | None = None, **layers: LayerDecision) -> Policy:
    facts = of.graph.facts
    groups = tuple((g.name, GroupDecision(keep, "l1")) for g in facts.groups) if keep < 1 else ()
    return Policy(facts.fingerprint, groups, tuple(layers.items()), recipe or Recipe(images=300))


class Chain(nn.Module):
    """Convolutions with batch norms and no shortcut: every node is a cut."""

    def __init__(self, inplace: bool = False, depth: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = [3] + [12] * depth
        parts = [
            [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace)]
            for a, b in pairwise(widths)
        ]
        self.features, self.fc = nn.Sequential(*(m for part in parts for m in part)), nn.Linear(12, 5)
        for _ in range(10):
            self(IMAGES)  # statistics that are not those of the start

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


@pytest.mark.parametrize("samples", [300, 100])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_pass_that_begins_in_a_chain_of_norms_is_one_from_the_start(samples: int, inplace: bool) -> None:
    model = Chain(inplace).eval()
    memory = compressor(model, IMAGES[:samples])
    facts = memory.graph.facts
    assert memory.graph.graph is not None and worthwhile(memory.graph.graph, facts)
    for last in (0.5, 0.6, 0.5, 0.3):
        groups = [(g.name, GroupDecision(0.5)) for g in facts.groups[:-1]] + [
            (facts.groups[-1].name, GroupDecision(last))
        ]
        chosen = Policy(facts.fingerprint, tuple(groups), recipe=Recipe(images=samples))
        again, fresh = memory.compress(chosen), compressor(model, IMAGES[:samples]).compress(chosen)
        for name, tensor in fresh.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name


class Siamese(nn.Module):
    """Both inputs' features go through one convolution and one batch norm, whose statistics are none of either's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.c, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.b(F.relu(self.a(x)))))
        return self.fc(F.relu(self.norm(self.c(x) + 3.0)).mean((2, 3)))


def test_a_batch_norm_of_several_calls_keeps_its_statistics() -> None:
    model = Siamese()
    of = compressor(model, IMAGES)
    for chosen in (policy(of, a=LayerDecision(weight_bits=8)), policy(of, 0.8)):
        state = of.compress(chosen).state_dict()
        assert not state["norm.running_mean"].any() and (state["norm.running_var"] == 1).all()
    assert relative(of.compress(policy(of, a=LayerDecision(weight_bits=8)))(IMAGES), model(IMAGES)) < 1e-3


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.norm, self.fc = nn.BatchNorm2d(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.b(F.relu(self.a(x))))).mean((2, 3)))


def test_a_grouped_convolution_that_lost_inputs_is_refitted() -> None:
    model = Grouped()
    of = compressor(model, IMAGES)
    first = of.graph.facts.groups[0].name
    errors = {}
    for kind in ("none", "layerwise", "sequential"):
        recipe = Recipe(reconstruct=kind, images=300)
        chosen = Policy(of.graph.facts.fingerprint, ((first, GroupDecision(0.5, "l1")),), recipe=recipe)
        errors[kind] = relative(of.compress(chosen)(IMAGES), model(IMAGES))
    assert errors["sequential"] < errors["layerwise"] < errors["none"]


@pytest.mark.parametrize("tokens", [8, 6])
def test_a_batch_norm_over_tokens_is_none_over_channels(tokens: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.norm, self.fc = (
                nn.Linear(4, 16),
                nn.Linear(16, 8),
                nn.BatchNorm1d(tokens),
                nn.Linear(8, 5),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.norm(self.b(F.relu(self.a(x))))).mean(1))

    model, x = Net(), torch.randn(300, tokens, 4) * torch.linspace(0.2, 5, tokens)[None, :, None]
    for _ in range(50):
        model(x)
    of = compressor(model, x)
    assert of.graph.facts.layer("b").norm is None
    for kind in ("none", "layerwise", "sequential"):
        recipe = Recipe(reconstruct=kind, images=300)
        small = of.compress(policy(of, recipe=recipe, a=LayerDecision(weight_bits=8)))
        assert relative(small(x), model(x)) < 1e-3


def test_view_behind_a_convolution_runs_as_it_does_for_its_owner() -> None:
    class LeNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8 * 9, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.avg_pool2d(F.gelu(self.a(x)), 2).view(x.size(0), -1))

    model = LeNet()
    batches = [(IMAGES[:64], model.eval()(IMAGES[:64]).argmax(1))]
    task = Task(model, batches, batches, name="lenet")
    study = automc.search(task, budget="macs<=60%", searcher="random", trials=2, study="v")
    assert all(e.ok for e in study.evaluations) and study.meta["dense"]["score"] == 1.0


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def layer_decisions(model: nn.Module, x: Tensor) -> dict[str, set[str]]:
    """Fields that all spaces together open, by layer."""
    facts = trace_model(model, (x,)).facts
    found: dict[str, set[str]] = {}
    for name in ("bits", "weight-bits", "codebooks", "weights", "ranks", "joint"):
        for axis in SPACES.load(name)(facts):
            if axis.kind == "layer":
                found.setdefault(axis.place, set()).add(axis.field)
    return found


def test_layers_inside_of_torchs_own_modules_are_left_alone_and_counted() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)
            self.encoder, self.fc = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 40)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.encoder(self.a(x)).mean(1))

    model, x = Net().eval(), torch.randn(300, 5, 8)
    facts = trace_model(model, (x[:2],)).facts
    assert [layer.name for layer in facts.layers] == ["a", "fc"]
    assert any(r.where == "encoder" and "TransformerEncoderLayer" in r.operation for r in facts.refused)
    assert set(layer_decisions(model, x[:2])) <= {"a", "fc"}
    assert facts.macs == automc.cost(model, x)["macs"]
    of = compressor(model, x)
    small = of.compress(policy(of, fc=LayerDecision(weight_bits=4)))
    assert (
        automc.save(small, "out") <= Costing(SearchSpace(facts, ())).of_policy(policy(of, fc=LayerDecision(4)))["size"]
    )


class Tied(nn.Module):
    """Two layers with one weight, and a third."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.i, self.a, self.b, self.fc = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 40)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.a(F.relu(self.i(x)))))))


class Shared(nn.Module):
    """One layer under two names, called by both."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.i, self.a, self.fc = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 40)
        self.again = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.again(10.0 * F.relu(self.a(F.relu(self.i(x)))))))


def test_layers_with_one_weight_decide_nothing() -> None:
    model, x = Tied(), torch.randn(300, 6)
    of = compressor(model, x)
    assert set(layer_decisions(model, x[:2])) == {"i", "fc"}
    for decision in (LayerDecision(weight_bits=3), LayerDecision(sparsity=0.5), LayerDecision(rank=0.5)):
        with pytest.raises(PolicyError, match="must own its weight"):
            of.compress(policy(of, a=decision))
    small = of.compress(policy(of, 0.5))
    first, second = small.get_submodule("a"), small.get_submodule("b")
    assert first.weight is second.weight and small(x).isfinite().all()


def test_a_layer_under_two_names_is_replaced_under_both() -> None:
    model, x = Shared(), torch.randn(300, 6)
    of = compressor(model, x)
    assert "activation_bits" not in layer_decisions(model, x[:2])["a"]
    with pytest.raises(PolicyError, match="must run once"):
        of.compress(policy(of, a=LayerDecision(activation_bits=8)))
    small = of.compress(policy(of, a=LayerDecision(weight_bits=3)))
    assert small.get_submodule("a") is small.get_submodule("again")
    automc.save(small, "out")
    assert torch.equal(automc.load("out", Shared)(x), small(x))


def test_a_cache_tells_labels_and_activations_apart(tmp_path: Path) -> None:
    def scores(targets: Tensor, act: type[nn.Module], folder: Path | None) -> Sequence[float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), act(), nn.Linear(16, 3))
        of = compressor(model, x, targets, cache=folder)
        name = of.graph.facts.groups[0].name
        kept = [of.bank(Recipe(images=300)).kept(of.graph.facts.group(name), c, 8) for c in ("taylor", "activation")]
        return [float(n) for k in kept for n in k]

    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    labels = [torch.randint(0, 3, (300,), generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    for targets in labels:
        for act in (nn.ReLU, nn.Softplus):
            assert scores(targets, act, tmp_path) == scores(targets, act, None)


def test_infinities_in_a_mask_are_no_unsound_weights() -> None:
    class Masked(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 5)
            self.register_buffer("mask", torch.triu(torch.full((5, 5), value), 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a((self.get_buffer("mask") + x @ x.transpose(1, 2)).softmax(-1) @ x))).mean(1)

    model, x = Masked(float("-inf")), torch.randn(300, 5, 4)
    of = compressor(model, x)
    assert of.compress(policy(of, 0.5))(x).isfinite().all()
    with pytest.raises(GraphError, match="'mask' holds NaN"):
        trace_model(Masked(float("nan")), (x[:2],))


def test_an_unread_head_and_inputs_by_name_are_no_obstacle() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.aux, self.b = nn.Linear(4, 16), nn.Linear(16, 3), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x))
            self.aux(x)
            return self.b(input=x)

    model, x = Net(), torch.randn(300, 4)
    of = compressor(model, x)
    assert [g.name for g in of.graph.facts.groups] == ["a"]
    assert any(r.where == "aux" for r in of.graph.facts.refused)
    small = of.compress(policy(of, 0.5))
    assert small(x).shape == (300, 8)
    for criterion in ("obs", "grasp", "sensitivity", "taylor"):
        assert len(of.bank(Recipe(images=300)).kept(of.graph.facts.groups[0], criterion, 8)) == 8


def test_double_precision_takes_the_bytes_it_takes() -> None:
    model, x = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40)).double(), torch.randn(300, 6).double()
    of = compressor(model, x)
    zeros = Policy(of.graph.facts.fingerprint, (), (("2", LayerDecision(sparsity=0.5)),), Recipe(images=300))
    for chosen in (policy(of), policy(of, 0.5), zeros):
        costs = Costing(SearchSpace(of.graph.facts, ())).of_policy(chosen)
        assert automc.save(of.compress(chosen), "out") <= costs["size"]
    assert Costing(SearchSpace(of.graph.facts, ())).dense()["size"] == 8 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("shared", [False, True])
def test_a_prelu_that_a_group_prunes_leaves_with_its_block_and_is_counted_once(shared: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.i, self.a, self.b = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
            self.act, self.fc = nn.PReLU(8), nn.Linear(8, 5)
            self.last = self.act if shared else nn.PReLU(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.i(x)
            return self.fc(self.last(x + self.b(self.act(self.a(x)))).mean((2, 3)))

    of = compressor(Net().eval(), IMAGES)
    facts = of.graph.facts
    (block,) = facts.blocks
    assert block.layers == ("a", "b") and block.parameters == (() if shared else ("act.weight",))
    assert any(p.name == "act.weight" for p in facts.parameters)
    costing = Costing(SearchSpace(facts, ()))
    for keep, there in ((1.0, 0.0), (0.5, 1.0), (0.5, 0.0)):
        groups = tuple((g.name, GroupDecision(keep)) for g in facts.groups)
        chosen = Policy(facts.fingerprint, groups, (), Recipe(images=300), ((block.name, BlockDecision(there)),))
        small = of.compress(chosen)
        assert costing.of_policy(chosen)["params"] == sum(p.numel() for p in small.parameters())
        assert automc.save(small, "out") <= costing.of_policy(chosen)["size"]


def test_one_policy_has_one_digest_whether_a_number_has_a_point() -> None:
    text = Policy("f", (("a", GroupDecision(0.5)),)).to_json()
    assert "0.5" in text
    one, other = (Policy.from_json(text.replace("0.5", number)) for number in ("1", "1.0"))
    assert one == other and one.digest == other.digest
