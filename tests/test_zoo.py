"""Models as people have them, end to end: searched, applied, saved, loaded, trained towards the dense one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import automc
from automc.errors import GraphError, PolicyError
from automc.graph.trace import trace_model
from automc.policy import BlockDecision, GroupDecision, LayerDecision, Policy
from automc.recovery.distill import Distillation
from automc.recovery.optimize import Schedule
from automc.registry import CRITERIA

IMAGES = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(96, 6, 8, generator=torch.Generator().manual_seed(0))


class Basic(nn.Module):
    """A residual block as torchvision writes it: one ReLU in place for the branch and the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2, self.relu = nn.BatchNorm2d(width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


class Excitation(nn.Module):
    """Squeeze and excitation as it is copied everywhere: sizes nobody reads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, width // 2), nn.Linear(width // 2, width)

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return x * gate.view(b, c, 1, 1)


class Inverted(nn.Module):
    """An inverted residual with excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 2 * width
        self.conv = nn.Sequential(
            nn.Conv2d(width, wide, 1), nn.BatchNorm2d(wide), nn.Hardswish(inplace=True),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide), nn.BatchNorm2d(wide),
            Excitation(wide), nn.ReLU(inplace=True),
            nn.Conv2d(wide, width, 1), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Masked(nn.Module):
    """An argument left out, and an attention with an addition inside of its branch."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.bias = nn.Parameter(torch.zeros(6, 6))
        self.mlp, self.head = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)), nn.Linear(8, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is not None:
            x = x * mask
        scores = self.query(x) @ self.key(x).transpose(1, 2) + self.bias
        x = x + self.out(scores.softmax(-1) @ self.value(x))
        return self.head((x + self.mlp(x)).mean(1))


def resnet() -> nn.Module:
    stem = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True))
    return nn.Sequential(*stem, Basic(8), Basic(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def mobile() -> nn.Module:
    stem = (nn.Conv2d(3, 8, 3, padding=1), nn.Hardswish(inplace=True))
    return nn.Sequential(*stem, Inverted(8), Inverted(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


class Grouped(nn.Module):
    """A residual block with group norms and an activation of its own for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, 2 * width, 3, padding=1), nn.Conv2d(2 * width, width, 1))
        self.norm1, self.norm2 = nn.GroupNorm(8, 2 * width), nn.GroupNorm(4, width)
        self.act = nn.PReLU(2 * width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))


def grouped() -> nn.Module:
    stem = (nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True), nn.ReLU())
    return nn.Sequential(*stem, Grouped(8), Grouped(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


class Decoder(nn.Module):
    """A class for each pixel: down, and up again by transposed convolutions, one behind the other and past a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.up1, self.up2 = nn.ConvTranspose2d(12, 8, 2, stride=2), nn.ConvTranspose2d(16, 12, 3, stride=2, padding=1)
        self.up3, self.norm, self.head = nn.ConvTranspose2d(12, 8, 2), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down1(x))
        x = torch.cat([x, F.relu(self.up1(F.relu(self.down2(x))))], dim=1)
        return self.head(F.relu(self.norm(self.up3(F.relu(self.up2(x))))))


ZOO: dict[str, tuple[Callable[[], nn.Module], Tensor, int]] = {
    "resnet": (resnet, IMAGES, 2),
    "mobile": (mobile, IMAGES, 2),
    "grouped": (grouped, IMAGES, 2),
    "decoder": (Decoder, IMAGES, 0),
    "masked": (Masked, TOKENS, 2),
}
"""A maker, inputs, and how many blocks may be left out."""


def made(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ZOO[name][0]().eval()


def task(name: str) -> automc.Task:
    model, x = made(name), ZOO[name][1]
    with torch.no_grad():
        y = model(x.clone()).argmax(1)
    batches = [(x[:48], y[:48]), (x[48:], y[48:])]
    return automc.Task(model, batches, batches, name=name)


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore:Layer:UserWarning")
@pytest.mark.parametrize("name", list(ZOO))
def test_a_search_ends_in_a_model_that_is_what_the_study_says(name: str) -> None:
    found = task(name)
    study = automc.search(found, budget="macs<=70%", space="depth-channels", searcher="evolution", trials=5, study=name)
    assert all(e.ok for e in study.evaluations), [e.reason for e in study.evaluations]
    x = ZOO[name][1]
    for evaluation in study.evaluations:
        small = automc.apply(found, evaluation.policy)
        counted = automc.cost(small, found.example_inputs)
        assert counted["macs"] == evaluation.cost("macs") and counted["params"] == evaluation.cost("params")
        automc.save(small, "out")
        assert torch.equal(automc.load("out", lambda: made(name))(x.clone()), small(x.clone()))


@pytest.mark.filterwarnings("ignore:Layer:UserWarning")
@pytest.mark.parametrize("name", list(ZOO))
def test_each_block_takes_along_what_its_facts_say_and_the_rest_can_be_trained(name: str) -> None:
    found = task(name)
    facts = automc.inspect(found)
    assert len(facts.blocks) == ZOO[name][2]
    dense = automc.cost(found.model, found.example_inputs)
    for block in facts.blocks:
        small = automc.apply(found, Policy(facts.fingerprint, blocks=((block.name, BlockDecision(0.0)),)))
        lost = dense["macs"] - automc.cost(small, found.example_inputs)["macs"]
        assert lost == sum(facts.layer(layer).macs for layer in block.layers) + block.other_macs
        automc.distill(small, found, settings=Distillation(schedule=Schedule(epochs=1)))


@pytest.mark.filterwarnings("ignore:Layer:UserWarning")
@pytest.mark.parametrize(
    "criterion", [n for n in CRITERIA if n not in ("sparsegpt", "bn_scale", "kron_obd", "kron_obs")]
)
def test_channels_of_transposed_convolutions_are_ranked_by_criteria_that_need_no_norm_or_factors(
    criterion: str,
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model = nn.Sequential(Decoder(), *pool).eval()
    with torch.no_grad():
        y = model(IMAGES).argmax(1)
    found = automc.Task(model, [(IMAGES, y)], [(IMAGES, y)])
    facts = automc.inspect(found)
    assert {g.name for g in facts.groups} == {f"0.{n}" for n in ("down1", "down2", "up1", "up2", "up3")}
    chosen = Policy(facts.fingerprint, tuple((g.name, GroupDecision(0.5, criterion)) for g in facts.groups))
    assert automc.apply(found, chosen)(IMAGES).shape == (96, 4)


@pytest.mark.filterwarnings("ignore:Layer:UserWarning")
def test_of_a_transposed_convolution_only_channels_are_decided() -> None:
    found = task("decoder")
    facts = automc.inspect(found)
    ups = [x.name for x in facts.layers if x.transposed]
    assert ups == ["up1", "up2", "up3"] and all(x.name not in ups for x in facts.weighed)
    with pytest.raises(PolicyError, match="no transposed convolution to be decided on; 'up2' is one"):
        automc.apply(found, Policy(facts.fingerprint, layers=(("up2", LayerDecision(weight_bits=4)),)))
    study = automc.search(found, budget="size<=80%,macs<=60%", space="joint", searcher="random", trials=3, study="j")
    for evaluation in study.evaluations:
        assert evaluation.ok, evaluation.reason
        small = automc.apply(found, evaluation.policy)
        assert automc.save(small, "out") <= evaluation.cost("size")
        again = automc.load("out", lambda: made("decoder"))
        assert torch.equal(again(IMAGES.clone()), small(IMAGES.clone()))


def test_a_gate_is_no_second_maker_of_its_channels() -> None:
    facts = automc.inspect(task("mobile"))
    wide = [g for g in facts.groups if g.units == 16]
    assert len(wide) == 2 and all(g.gates and not g.coupled for g in wide)
    assert any(g.coupled for g in facts.groups)  # the stream itself
    assert not any(g.gates for g in automc.inspect(task("resnet")).groups)


def test_a_model_that_runs_what_no_copy_has_is_refused() -> None:
    class Closure(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)
            self.both = lambda x: self.b(self.a(x))

        def forward(self, x: Tensor) -> Tensor:
            return self.both(x)

    with pytest.raises(GraphError, match="runs 'a' of the original"):
        trace_model(Closure(), (torch.randn(2, 8),))


def test_a_buffer_cut_to_the_input_is_followed() -> None:
    class Positions(nn.Module):
        ids: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.table, self.a, self.b = nn.Embedding(10, 8), nn.Linear(8, 16), nn.Linear(16, 4)
            self.register_buffer("ids", torch.arange(10)[None])

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x + self.table(self.ids[:, : x.size(1)]))))

    facts = trace_model(Positions().eval(), (torch.randn(2, 6, 8),)).facts
    assert facts.traceable and [g.name for g in facts.groups] == ["a"]


def test_what_a_model_asserts_is_taken_to_hold_and_what_it_branches_on_is_not() -> None:
    class Asserting(nn.Module):
        def __init__(self, branch: bool) -> None:
            super().__init__()
            self.a, self.b, self.branch = nn.Linear(8, 16), nn.Linear(16, 4), branch

        def forward(self, x: Tensor) -> Tensor:
            _, tokens, _ = x.shape
            assert tokens <= 10, f"at most 10 tokens, not {tokens}"
            assert x.dim() == 3
            if self.branch and x.mean() > 3:
                x = 2 * x
            return self.b(F.relu(self.a(x)))

    x = torch.randn(2, 6, 8)
    facts = trace_model(Asserting(False).eval(), (x,)).facts
    assert facts.traceable and [g.name for g in facts.groups] == ["a"]
    assert not trace_model(Asserting(True).eval(), (x,)).facts.traceable


def test_a_model_with_several_outputs_is_searched_and_trained() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.boxes, self.scores = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor | None]:
            h = F.relu(self.a(x))
            return {"boxes": self.boxes(h), "scores": self.scores(h).mean(1), "loss": None}

    def right(module: nn.Module) -> float:
        return float((module(TOKENS)["scores"].argmax(1) == truth).double().mean())

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Heads().eval()
    truth = model(TOKENS)["scores"].argmax(1)
    found = automc.Task(model, [TOKENS], [], evaluate=right, name="heads")
    study = automc.search(found, budget="macs<=70%", searcher="random", trials=2, study="heads")
    small = automc.apply(found, study.best.policy)

    def gap() -> float:
        with torch.no_grad():
            return float(F.mse_loss(small(TOKENS)["boxes"], model(TOKENS)["boxes"]))

    before = gap()
    automc.distill(small, found, settings=Distillation(schedule=Schedule(epochs=5)))
    assert gap() < before


class Root(nn.Module):
    """A norm of somebody's own, as Llama has it: what it holds is a bare parameter."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Scaled(nn.Module):
    """Constants made in forward, a plain tensor that is kept, and blocks behind norms of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        self.norms = nn.ModuleList(Root(8) for _ in range(2))
        self.inner = nn.ModuleList(nn.Sequential(nn.Linear(8, 24), nn.SiLU(), nn.Linear(24, 8)) for _ in range(2))
        self.scale = torch.tensor(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x) * torch.tensor(2.0) + torch.linspace(0, 1, 6)[:, None]
        for norm, inner in zip(self.norms, self.inner, strict=True):
            x = x + inner(norm(x)) * self.scale
        return self.head(x.mean(1))


def test_constants_and_norms_of_ones_own_are_no_trouble() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Scaled().eval()
    labels = model(TOKENS).argmax(1)
    found = automc.Task(model, calibration=[((TOKENS,), labels)], validation=[((TOKENS,), labels)], name="scaled")
    facts = trace_model(model, (TOKENS,)).facts
    assert len(facts.blocks) == 2 and len(facts.groups) == 2 and not hasattr(model, "_tensor_constant0")
    for block in facts.blocks:
        small = automc.apply(found, Policy(facts.fingerprint, blocks=((block.name, BlockDecision(0.0)),)))
        assert small(TOKENS[:5]).shape == (5, 4)
        assert sum(p.numel() for p in small.parameters()) == facts.params - 8 - (8 * 24 + 24 + 24 * 8 + 8)
    study = automc.search(found, budget="macs<=70%", space="joint", searcher="random", trials=6, study="scaled")
    assert all(e.ok for e in study.evaluations), [e.reason for e in study.evaluations]
