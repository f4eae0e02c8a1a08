"""Each structure by itself: removing channels equals silencing, by hand, the layers that produce them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from automc.graph.shrink import shrink, shrunk_graph_module
from automc.graph.trace import trace_model


def randomise_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, batch-norm statistics and biases that hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.5 if p.dim() > 1 else 1.0))
        for m in model.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                assert m.running_mean is not None and m.running_var is not None
                m.running_mean.copy_(torch.randn(m.running_mean.shape, generator=generator) * 0.3)
                m.running_var.copy_(torch.rand(m.running_var.shape, generator=generator) + 0.5)
    return model.eval()


def silence_(model: nn.Module, name: str, positions: Any) -> None:
    """Zeroes what comes out of a layer, norm or parameter at these positions."""
    with torch.no_grad():
        if name in dict(model.named_parameters()):
            model.get_parameter(name)[..., positions] = 0
            return
        module = model.get_submodule(name)
        if isinstance(module, nn.ConvTranspose2d):
            module.weight[:, positions] = 0
        for tensor in (module.bias,) if isinstance(module, nn.ConvTranspose2d) else (module.weight, module.bias):
            if isinstance(tensor, torch.Tensor):
                tensor[positions] = 0


class Net(nn.Module):
    """Named modules and a forward given as a function."""

    def __init__(self, forward: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self._forward = forward

    def forward(self, x: torch.Tensor) -> Any:
        return self._forward(self, x)


def conv(i: int, o: int, k: int = 3, **kw: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **kw)


bn = nn.BatchNorm2d


def chain() -> nn.Module:
    return Net(lambda s, x: s.b(F.relu(s.a(x))), a=conv(3, 8), b=conv(8, 5))


def conv_bn() -> nn.Module:
    return Net(lambda s, x: s.b(F.relu(s.n(s.a(x)))), a=conv(3, 8, bias=False), n=bn(8), b=conv(8, 5))


def residual() -> nn.Module:
    def forward(s: Any, x: Any) -> Any:
        x = F.relu(s.n0(s.a(x)))
        return s.head(F.relu(x + s.n2(s.c(F.relu(s.n1(s.b(x)))))).mean([2, 3]))

    return Net(forward, a=conv(3, 8), n0=bn(8), b=conv(8, 6), n1=bn(6), c=conv(6, 8), n2=bn(8), head=nn.Linear(8, 4))


def option_b() -> nn.Module:
    def forward(s: Any, x: Any) -> Any:
        x = F.relu(s.a(x))
        return s.head(F.relu(s.n1(s.c(F.relu(s.b(x)))) + s.n2(s.short(x))).mean([2, 3]))

    return Net(forward, a=conv(3, 8), b=conv(8, 12, stride=2), c=conv(12, 12), n1=bn(12),
               short=nn.Conv2d(8, 12, 1, stride=2), n2=bn(12), head=nn.Linear(12, 4))  # fmt: skip


def option_a() -> nn.Module:
    def forward(s: Any, x: Any) -> Any:
        x = F.relu(s.a(x))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4), "constant", 0)
        return s.head(F.relu(s.n(s.b(x)) + short).mean([2, 3]))

    return Net(forward, a=conv(3, 8), b=conv(8, 16, stride=2), n=bn(16), head=nn.Linear(16, 4))


def depthwise() -> nn.Module:
    return Net(lambda s, x: s.c(F.relu6(s.n(s.b(F.relu(s.a(x)))))), a=conv(3, 8), b=conv(8, 8, groups=8), n=bn(8),
               c=conv(8, 5, 1))  # fmt: skip


def multiplier() -> nn.Module:
    return Net(lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x))))), a=conv(3, 6), b=conv(6, 12, groups=6), c=conv(12, 5, 1))


def grouped() -> nn.Module:
    return Net(lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x))))), a=conv(3, 8), b=conv(8, 12, groups=2), c=conv(12, 5, 1))


def shuffle() -> nn.Module:
    def forward(s: Any, x: Any) -> Any:
        x = F.relu(s.a(x))
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return s.d(F.relu(x))

    return Net(forward, a=conv(3, 12), d=conv(12, 5, 1))


def squeeze_linear() -> nn.Module:
    def forward(s: Any, x: Any) -> Any:
        x = F.relu(s.a(x))
        gate = torch.sigmoid(s.f2(F.relu(s.f1(F.adaptive_avg_pool2d(x, 1).flatten(1)))))
        return s.b(x * gate[:, :, None, None])

    return Net(forward, a=conv(3, 8), f1=nn.Linear(8, 6), f2=nn.Linear(6, 8), b=conv(8, 5))


def squeeze_conv() -> nn.Module:
    def forward(s: Any, x: Any) -> Any:
        x = F.relu(s.a(x))
        return s.b(x * s.f2(F.relu(s.f1(x.mean((2, 3), keepdim=True)))).sigmoid())

    return Net(forward, a=conv(3, 8), f1=conv(8, 6, 1), f2=conv(6, 8, 1), b=conv(8, 5))


def dense_block() -> nn.Module:
    def forward(s: Any, x: Any) -> Any:
        x = F.relu(s.a(x))
        x = torch.cat([x, F.relu(s.b(x))], 1)
        return s.d(torch.cat([x, F.relu(s.c(s.n(x)))], 1))

    return Net(forward, a=conv(3, 8), b=conv(8, 6), n=bn(14), c=conv(14, 6), d=conv(20, 5))


def inception() -> nn.Module:
    return Net(lambda s, x: s.d(torch.cat((F.relu(s.a(x)), F.relu(s.b(x)), F.max_pool2d(s.c(x), 3, 1, 1)), dim=1)),
               a=conv(3, 6), b=conv(3, 8, 1), c=conv(3, 4, 5), d=conv(18, 5))  # fmt: skip


def cat_flatten() -> nn.Module:
    return Net(lambda s, x: s.d(torch.flatten(torch.cat([s.a(x), s.b(x)], 1), 1)), a=conv(3, 6, stride=2),
               b=conv(3, 4, stride=2), d=nn.Linear(10 * 16, 5))  # fmt: skip


def chunked() -> nn.Module:
    def forward(s: Any, x: Any) -> Any:
        u, v = s.a(x).chunk(2, dim=1)
        return s.b(F.relu(u)) + s.c(F.relu(v))

    return Net(forward, a=conv(3, 12), b=conv(6, 5), c=conv(6, 5))


def swapped() -> nn.Module:
    def forward(s: Any, x: Any) -> Any:
        u, v = torch.chunk(F.relu(s.a(x)), 2, 1)
        return s.b(torch.cat([v, u], 1))

    return Net(forward, a=conv(3, 12), b=conv(12, 5))


def split_sizes() -> nn.Module:
    def forward(s: Any, x: Any) -> Any:
        u, v = torch.split(F.relu(s.a(x)), [4, 8], dim=1)
        return s.b(u) + s.c(v)

    return Net(forward, a=conv(3, 12), b=conv(4, 5), c=conv(8, 5))


def sliced() -> nn.Module:
    def forward(s: Any, x: Any) -> Any:
        x = F.relu(s.a(x))
        return s.b(x[:, 8:]) + s.c(x[:, :8])

    return Net(forward, a=conv(3, 12), b=conv(4, 5), c=conv(8, 5))


def strided_channels() -> nn.Module:
    def forward(s: Any, x: Any) -> Any:
        x = F.relu(s.a(x))
        return s.b(x[:, ::2]) + s.c(x[:, 1::2])

    return Net(forward, a=conv(3, 12), b=conv(6, 5), c=conv(6, 5))


def flattened() -> nn.Module:
    return Net(lambda s, x: s.b(F.max_pool2d(F.relu(s.a(x)), 2).view(x.size(0), -1)), a=conv(3, 8),
               b=nn.Linear(8 * 16, 5))  # fmt: skip


def view_constants() -> nn.Module:
    return Net(lambda s, x: s.b(F.relu(s.a(x)).view(-1, 8 * 64)), a=conv(3, 8), b=nn.Linear(512, 5))


def tokens() -> nn.Module:
    def forward(s: Any, x: Any) -> Any:
        t = F.relu(s.a(x)).flatten(2).transpose(1, 2)
        return s.c(F.gelu(s.b(t))).permute(0, 2, 1)

    return Net(forward, a=conv(3, 8), b=nn.Linear(8, 10), c=nn.Linear(10, 5))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 5)
        self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))
        self.shift = nn.Parameter(torch.zeros(8, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x) * self.scale + self.shift)


def shared() -> nn.Module:
    def forward(s: Any, x: Any) -> Any:
        x = F.relu(s.a(x))
        return s.d(F.relu(s.b(F.relu(s.b(x)))))

    return Net(forward, a=conv(3, 8), b=conv(8, 8), d=conv(8, 5))


def tied_linear() -> nn.Module:
    net = Net(lambda s, x: s.out(F.relu(s.b(F.relu(s.mid(F.relu(s.a(x))))))), a=nn.Linear(7, 8), mid=nn.Linear(8, 8),
              b=nn.Linear(8, 8), out=nn.Linear(8, 3))  # fmt: skip
    net.b.weight = net.mid.weight  # type: ignore[union-attr]
    return net


def conv1d() -> nn.Module:
    return Net(lambda s, x: s.b(F.max_pool1d(F.leaky_relu(s.n(s.a(x))), 2)).mean(-1), a=nn.Conv1d(3, 8, 5),
               n=nn.BatchNorm1d(8), b=nn.Conv1d(8, 5, 3))  # fmt: skip


def two_outputs() -> nn.Module:
    def forward(s: Any, x: Any) -> Any:
        x = F.relu(s.a(x))
        return {"one": s.b(x), "two": (s.c(x),)}

    return Net(forward, a=conv(3, 8), b=conv(8, 5), c=conv(8, 2))


def gating() -> nn.Module:
    return Net(lambda s, x: s.c(s.a(x) * torch.tanh(s.b(x))), a=conv(3, 8), b=conv(3, 8), c=conv(8, 5))


def spatial_attention() -> nn.Module:
    def forward(s: Any, x: Any) -> Any:
        x = F.relu(s.a(x))
        return s.b(x * torch.sigmoid(s.m(x)))

    return Net(forward, a=conv(3, 8), m=conv(8, 1), b=conv(8, 5))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 9), nn.BatchNorm1d(9), nn.ReLU(),
                         nn.Linear(9, 3))  # fmt: skip


def pixel_shuffle() -> nn.Module:
    return Net(lambda s, x: s.b(F.pixel_shuffle(F.relu(s.a(x)), 2)), a=conv(3, 24), b=conv(6, 5))


def prelu() -> nn.Module:
    return Net(lambda s, x: s.b(s.act(s.a(x))), a=conv(3, 8), act=nn.PReLU(8), b=conv(8, 5))


def group_norm() -> nn.Module:
    return Net(lambda s, x: s.b(F.relu(s.n(s.a(x)))), a=conv(3, 8), n=nn.GroupNorm(4, 8), b=conv(8, 5))


def instance_norm() -> nn.Module:
    norm = nn.InstanceNorm2d(8, affine=True)
    return Net(lambda s, x: s.b(F.relu(s.n(s.a(x)))), a=conv(3, 8), n=norm, b=conv(8, 5))


def group_norm_stream() -> nn.Module:
    """Norms of different groups along one stream: units are what none of them cuts in two."""

    def forward(s: Any, x: Any) -> Any:
        x = s.a(x)
        x = x + s.c(F.relu(s.n1(s.b(F.relu(s.n0(x))))))
        return s.d(s.n2(x))

    norms = {"n0": nn.GroupNorm(6, 12), "n1": nn.GroupNorm(2, 6), "n2": nn.GroupNorm(4, 12)}
    return Net(forward, a=conv(3, 12), b=conv(12, 6), c=conv(6, 12), d=conv(12, 5), **norms)


def transposed() -> nn.Module:
    up = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1)
    return Net(lambda s, x: s.c(F.relu(s.n(s.b(F.relu(s.a(x)))))), a=conv(3, 8), b=up, n=bn(6), c=conv(6, 4))


def autoencoder() -> nn.Module:
    """A decoder with the encoder's weight, in which inputs and outputs change places."""
    net = Net(lambda s, x: s.b(F.relu(s.a(x))), a=conv(3, 8), b=nn.ConvTranspose2d(8, 3, 3, padding=1))
    net.b.weight = net.a.weight  # type: ignore[union-attr]
    return net


def gated_linear() -> nn.Module:
    return Net(lambda s, x: s.b(F.glu(s.a(x), dim=1)), a=conv(3, 12), b=conv(6, 5))


def embedding() -> nn.Module:
    return Net(lambda s, x: s.out(F.relu(s.a(s.table(x).mean(1)))), table=nn.Embedding(11, 8), a=nn.Linear(8, 6),
               out=nn.Linear(6, 3))  # fmt: skip


def squeezed() -> nn.Module:
    return Net(lambda s, x: s.b(F.adaptive_avg_pool2d(F.relu(s.a(x)), 1).squeeze()), a=conv(3, 8), b=nn.Linear(8, 5))


def bilinear() -> nn.Module:
    return Net(lambda s, x: s.b(F.interpolate(F.silu(s.a(x)), scale_factor=2, mode="bilinear")), a=conv(3, 8),
               b=conv(8, 5))  # fmt: skip


def inplace() -> nn.Module:
    def forward(s: Any, x: Any) -> Any:
        x = s.act(s.a(x))
        x += s.b(x)
        return s.c(s.act(x))

    return Net(forward, a=conv(3, 8), b=conv(8, 8), c=conv(8, 5), act=nn.ReLU(inplace=True))


def unflattened() -> nn.Module:
    return Net(lambda s, x: s.b(F.relu(s.a(x)).flatten(1).unflatten(1, (8, 8, 8))), a=conv(3, 8), b=conv(8, 5))


def heads() -> nn.Module:
    def forward(s: Any, x: Any) -> Any:
        h = F.relu(s.a(x)).reshape(x.shape[0], 5, 3, 4)
        return s.b(h.transpose(1, 2).mean(2).flatten(1))

    return Net(forward, a=nn.Linear(7, 12), b=nn.Linear(12, 5))


def picked() -> nn.Module:
    def forward(s: Any, x: Any) -> Any:
        x = F.relu(s.a(x))
        return s.b(x) + x[:, 5, None] - x[:, -1][:, None]

    return Net(forward, a=conv(3, 8), b=conv(8, 5))


def same(u: np.ndarray) -> np.ndarray:
    return u


def at(*offsets: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda u: np.concatenate([u + o for o in offsets])


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    group: str
    units: int
    silence: dict[str, Callable[[np.ndarray], Any]]
    """Layers that make the channels, by hand: units -> positions."""
    shape: tuple[int, ...] = (2, 3, 8, 8)
    integers: int = 0


CASES = [
    Case(chain, "a", 8, {"a": same}),
    Case(conv_bn, "a", 8, {"n": same}),
    Case(residual, "a", 8, {"n0": same, "n2": same}),
    Case(residual, "b", 6, {"n1": same}),
    Case(option_b, "c", 12, {"n1": same, "n2": same}),
    Case(option_a, "a", 8, {"a": same, "n": at(4)}),
    Case(option_a, "b", 8, {"n": lambda u: np.where(u < 4, u, u + 8)}),
    Case(depthwise, "a", 8, {"n": same}),
    Case(multiplier, "a", 6, {"b": lambda u: np.concatenate([2 * u, 2 * u + 1])}),
    Case(grouped, "a", 4, {"a": at(0, 4)}),
    Case(grouped, "b", 6, {"b": at(0, 6)}),
    Case(shuffle, "a", 6, {"a": at(0, 6)}),
    Case(squeeze_linear, "a", 8, {"a": same}),
    Case(squeeze_linear, "f1", 6, {"f1": same}),
    Case(squeeze_conv, "a", 8, {"a": same}),
    Case(squeeze_conv, "f1", 6, {"f1": same}),
    Case(dense_block, "a", 8, {"a": same, "n": same}),
    Case(dense_block, "b", 6, {"b": same, "n": at(8)}),
    Case(dense_block, "c", 6, {"c": same}),
    Case(inception, "b", 8, {"b": same}),
    Case(inception, "c", 4, {"c": same}),
    Case(cat_flatten, "a", 6, {"a": same}),
    Case(cat_flatten, "b", 4, {"b": same}),
    Case(chunked, "a", 6, {"a": same}),
    Case(chunked, "a#2", 6, {"a": at(6)}),
    Case(swapped, "a", 12, {"a": same}),
    Case(split_sizes, "a", 4, {"a": same}),
    Case(split_sizes, "a#2", 8, {"a": at(4)}),
    Case(sliced, "a", 8, {"a": same}),
    Case(sliced, "a#2", 4, {"a": at(8)}),
    Case(strided_channels, "a", 6, {"a": lambda u: 2 * u}),
    Case(flattened, "a", 8, {"a": same}),
    Case(view_constants, "a", 8, {"a": same}),
    Case(tokens, "a", 8, {"a": same}),
    Case(tokens, "b", 10, {"b": same}),
    Case(Scaled, "a", 8, {"a": same, "shift": lambda u: (u, 0, 0)}),
    Case(shared, "a", 8, {"a": same, "b": same}),
    Case(tied_linear, "a", 8, {"a": same, "mid": same, "b": same}, shape=(2, 7)),
    Case(conv1d, "a", 8, {"n": same}, shape=(2, 3, 32)),
    Case(two_outputs, "a", 8, {"a": same}),
    Case(gating, "a", 8, {"a": same}),
    Case(spatial_attention, "a", 8, {"a": same}),
    Case(mlp, "0", 12, {"0": same}, shape=(2, 7)),
    Case(mlp, "3", 9, {"4": same}, shape=(2, 7)),
    Case(pixel_shuffle, "a", 6, {"a": lambda u: np.concatenate([4 * u + i for i in range(4)])}),
    Case(prelu, "a", 8, {"a": same}),
    Case(group_norm, "a", 4, {"n": lambda u: np.concatenate([2 * u, 2 * u + 1])}),
    Case(instance_norm, "a", 8, {"n": same}),
    Case(group_norm_stream, "b", 2, {"n1": lambda u: np.concatenate([3 * u + i for i in range(3)])}),
    Case(transposed, "a", 8, {"a": same}),
    Case(transposed, "b", 6, {"n": same}),
    Case(autoencoder, "a", 8, {"a": same}),
    Case(gated_linear, "a", 6, {"a": at(0, 6)}),
    Case(embedding, "table.weight", 8, {"table.weight": same}, shape=(2, 5), integers=11),
    Case(squeezed, "a", 8, {"a": same}),
    Case(bilinear, "a", 8, {"a": same}),
    Case(unflattened, "a", 8, {"a": same}),
    Case(heads, "a", 4, {"a": at(0, 4, 8)}, shape=(2, 5, 7)),
    Case(picked, "a", 6, {"a": lambda u: np.where(u < 5, u, 6)}),
    Case(inplace, "a", 8, {"a": same, "b": same}),
]


def example(case: Case, batch: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    shape = case.shape if batch is None else (batch, *case.shape[1:])
    if case.integers:
        return torch.randint(case.integers, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def flat(output: Any) -> list[torch.Tensor]:
    if isinstance(output, dict):
        output = list(output.values())
    return [output] if isinstance(output, torch.Tensor) else [t for part in output for t in flat(part)]


def gap(first: Any, second: Any) -> float:
    return max(
        float(((a - b).abs().max() / a.abs().max()).item()) for a, b in zip(flat(first), flat(second), strict=True)
    )


def silenced(case: Case, model: nn.Module, gone: np.ndarray) -> nn.Module:
    dense = randomise_(case.make())
    dense.load_state_dict(model.state_dict())
    for name, where in case.silence.items():
        positions = where(gone)
        if isinstance(positions, tuple):  # a parameter whose channels are not in the last dimension
            with torch.no_grad():
                dense.get_parameter(name)[positions[0]] = 0
        else:
            silence_(dense, name, positions)
    return dense


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.make.__name__}-{c.group}")
def test_removing_channels_equals_silencing_their_makers(case: Case) -> None:
    model = randomise_(case.make())
    x = example(case)
    graph = trace_model(model, (x,))
    group = graph.facts.group(case.group)
    assert group.units == case.units
    rng = np.random.default_rng(3)
    for lost in {1, case.units // 2, case.units - 1}:
        order = rng.permutation(case.units)
        kept = {group.name: np.sort(order[lost:])}
        dense = silenced(case, model, np.sort(order[:lost]))
        small = shrink(graph, model, kept)
        traced = shrunk_graph_module(graph, model, kept)
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
        with torch.no_grad():
            assert gap(dense(x), small(x)) < 1e-4
            assert gap(dense(x), traced(x)) < 1e-4
            y = example(case, batch=5)
            if case.make not in (view_constants,):
                assert gap(dense(y), small(y)) < 1e-4


@pytest.mark.parametrize("make", dict.fromkeys(c.make for c in CASES), ids=lambda m: m.__name__)
def test_all_groups_can_lose_channels_at_once(make: Callable[[], nn.Module]) -> None:
    case = next(c for c in CASES if c.make is make)
    model = randomise_(make())
    graph = trace_model(model, (example(case),))
    kept = {g.name: np.arange(0, g.units, 2) for g in graph.facts.groups}
    with torch.no_grad():
        small = shrink(graph, model, kept)(example(case))
    assert [t.shape for t in flat(small)] == [t.shape for t in flat(model(example(case)))]
