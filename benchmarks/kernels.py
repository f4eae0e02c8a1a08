"""Sparse float kernels against the best dense ones: 3x3 convolutions of ResNet-56, linear layers of MiniLM, whole nets.

    python benchmarks/kernels.py                     everything, one thread
    python benchmarks/kernels.py --only convolutions

Everything is timed in turn, each way a few times one after the other, as a model that is run again and again, and
compared by medians. A convolution is one of a chain of eight, dense and sparse alike, so that values come from where
they come from in a network; linear layers are those of two blocks of MiniLM, one after the other. Masks and weights are
random, and memory is not given back in between. Dense is the best of PyTorch's default, channels last, and weights
packed once by oneDNN; PyTorch's default stands beside it. Sparse is what the dispatcher takes. Of the whole net dense
is torch's best form, compiled or not.
"""

import argparse
import contextlib
import copy
import ctypes
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from results import write
from torch import Tensor, nn
from torch.nn import functional as F

from automc.deployment.forms import forms
from automc.deployment.layers import token_choices
from automc.deployment.network import fastest_choice
from automc.deployment.timing import in_turns, seconds_of
from automc.kernels import images, tokens
from automc.kernels.build import compiled
from automc.kernels.images import planned
from automc.kernels.steps import Steps, Window
from automc.kernels.tokens import PlannedLinear
from automc.tasks.resnet import ResNet

Way = Callable[[], object]
ZEROS = (0.5, 0.7, 0.8, 0.9, 0.95)
STAGES = ((16, 32), (32, 16), (64, 8))
"""Channels and size of ResNet-56's stages; each has as many multiply-accumulates as any other."""
LINEAR = ((384, 384),) * 4 + ((384, 1536), (1536, 384))
"""Inputs and outputs of the layers of a block of MiniLM."""
CHAIN = 8
ROUNDS, TURN, RUNS = 15, 4e-3, 5
"""Turns of each way, their seconds, and how often at least it runs in one, behind a run that does not count."""


def keep_memory() -> None:
    """Lets the C library keep what is freed: else page faults of large outputs are by turns in and out of a figure."""
    with contextlib.suppress(AttributeError):  # another C library
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            ctypes.CDLL(None).mallopt(parameter, 1 << 30)


def medians(ways: Sequence[Way]) -> list[float]:
    """Median seconds of each, taken in turn."""
    return [statistics.median(own) for own in in_turns(ways, ROUNDS, TURN, runs=RUNS)]


def masked(weight: Tensor, zeros: float, block: int, generator: torch.Generator) -> Tensor:
    """The weight with blocks of `block` outputs by one input removed at random."""
    rows = weight.flatten(1)
    keep = torch.rand(-(-len(rows) // block), rows.shape[1], generator=generator) >= zeros
    return (rows * keep.repeat_interleave(block, 0)[: len(rows)]).reshape(weight.shape)


def convolutions(batch: int, block: int, limits: dict[str, float]) -> list[dict[str, Any]]:
    """Every share of zeros: the stages' seconds, dense and sparse, and their speed-up together."""
    generator, rows = torch.Generator().manual_seed(0), []
    for zeros in ZEROS:
        stages = [_stage(channels, size, batch, block, zeros, generator) for channels, size in STAGES]
        sparse, dense, default = (sum(s[k] for s in stages) for k in ("sparse", "dense", "default"))
        work = sum(s["flops"] for s in stages)
        rows.append(
            {
                "zeros": zeros,
                "speed_up": dense / sparse,
                "over_default": default / sparse,
                "each": [s["dense"] / s["sparse"] for s in stages],
                "least": min(s["dense"] / min(s["sparse"], s["dense"]) for s in stages),
                "of_peak": work / sparse / limits["registers"],
                "of_memory_roof": work / sparse / limits["second_cache"],
                "stages": stages,
            }
        )
        print(
            f"3x3, batch {batch}, {block}x1, {zeros:.0%} zeros: {rows[-1]['speed_up']:.2f} "
            f"(by stage {', '.join(f'{x:.2f}' for x in rows[-1]['each'])}; over PyTorch's default "
            f"{rows[-1]['over_default']:.2f}; {rows[-1]['of_peak']:.0%} of the peak)",
            flush=True,
        )
    return rows


def _stage(
    channels: int, size: int, batch: int, block: int, zeros: float, generator: torch.Generator
) -> dict[str, Any]:
    x = torch.randn(batch, channels, size, size, generator=generator)
    weights = [masked(_weight(channels, channels, 3, generator), zeros, block, generator) for _ in range(CHAIN)]
    network = Steps()
    value = network.given((size, size, channels))
    for weight in weights:
        value = network.convolution(value, weight.numpy(), None, Window((3, 3), (1, 1), (1, 1)))
    choice = fastest_choice(network, 0)
    plan = planned(network, 0, value, dict.fromkeys(network.products, choice))
    dense = _dense_chains(weights, x)
    found = medians([partial(images.run, x, plan, (channels, size, size)), *dense])
    sparse, *others = (seconds / CHAIN for seconds in found)
    kept = statistics.mean(int(w.count_nonzero()) for w in weights)
    return {
        "channels": channels,
        "sparse": sparse,
        "dense": min(others),
        "default": others[0],
        "flops": 2.0 * kept * size * size * batch,
        "choice": str(choice),
    }


def _dense_chains(weights: Sequence[Tensor], x: Tensor) -> list[Way]:
    """PyTorch's default, channels last, and weights packed by oneDNN."""
    last = x.to(memory_format=torch.channels_last)
    lasts = [w.to(memory_format=torch.channels_last) for w in weights]
    sizes = ([1, 1], [1, 1], [1, 1], 1)
    packed = [torch._C._nn.mkldnn_reorder_conv2d_weight(w.to_mkldnn(), *sizes, list(x.shape)) for w in weights]

    def chain(kernels: Sequence[Tensor], value: Tensor) -> None:
        for kernel in kernels:
            value = F.conv2d(value, kernel, padding=1)

    def by_onednn(value: Tensor) -> None:
        for kernel in packed:
            value = torch.ops.mkldnn._convolution_pointwise(value, kernel, None, *sizes, "none", [], "")

    return [partial(chain, weights, x), partial(chain, lasts, last), partial(by_onednn, last)]


def _weight(out: int, inputs: int, side: int, generator: torch.Generator) -> Tensor:
    return torch.randn(out, inputs, side, side, generator=generator) / (inputs * side * side) ** 0.5


def linear(count: int, block: int, limits: dict[str, float]) -> list[dict[str, Any]]:
    """The linear layers of two blocks of MiniLM on so many tokens: every share of zeros."""
    generator, rows = torch.Generator().manual_seed(0), []
    x = {inputs: torch.randn(count, inputs, generator=generator) for inputs in (384, 1536)}
    for zeros in ZEROS:
        layers = [nn.Linear(*shape) for shape in 2 * LINEAR]
        weights = [masked(layer.weight.detach(), zeros, block, generator) for layer in layers]
        biases = [layer.bias.detach() for layer in layers]
        ways = [_fastest(w, b, x[w.shape[1]]) for w, b in zip(weights, biases, strict=True)]
        packed = [torch.ops.mkldnn._reorder_linear_weight(w, count) for w in weights]
        given = [x[w.shape[1]] for w in weights]

        def all_of(calls: Sequence[Way]) -> None:
            for call in calls:
                call()

        by_onednn = torch.ops.mkldnn._linear_pointwise
        chains = [
            [partial(planned, x) for (planned, _), x in zip(ways, given, strict=True)],
            [partial(F.linear, x, w, b) for x, w, b in zip(given, weights, biases, strict=True)],
            [partial(by_onednn, x, w, b, "none", [], "") for x, w, b in zip(given, packed, biases, strict=True)],
        ]
        csr = [
            partial(torch.sparse.mm, w.to_sparse_csr(), x.T.contiguous()) for w, x in zip(weights, given, strict=True)
        ]
        sparse, default, onednn, by_sparse = medians([partial(all_of, chain) for chain in (*chains, csr)])
        dense = min(default, onednn)
        work = sum(2.0 * int(w.count_nonzero()) * count for w in weights)
        rows.append(
            {
                "zeros": zeros,
                "speed_up": dense / sparse,
                "over_default": default / sparse,
                "over_torch_sparse": by_sparse / sparse,
                "of_peak": work / sparse / limits["registers"],
                "of_memory_roof": work / sparse / limits["second_cache"],
                "seconds": {"sparse": sparse, "default": default, "onednn": onednn, "torch_sparse": by_sparse},
                "choices": sorted({choice for _, choice in ways}),
            }
        )
        print(
            f"linear, {count} tokens, {block}x1, {zeros:.0%} zeros: {rows[-1]['speed_up']:.2f} (over PyTorch's default "
            f"{rows[-1]['over_default']:.2f}, over torch.sparse {rows[-1]['over_torch_sparse']:.1f}; "
            f"{rows[-1]['of_peak']:.0%} of the peak)",
            flush=True,
        )
    return rows


def _fastest(weight: Tensor, bias: Tensor, x: Tensor) -> tuple[PlannedLinear, str]:
    """The layer as the dispatcher would have it, and how."""
    choices = token_choices(weight.numpy(), len(x))
    plans = [tokens.planned(weight.numpy(), bias.numpy(), choice) for choice in choices]
    best = int(np.argmin(seconds_of([partial(tokens.run, x, plan) for plan in plans])))
    return PlannedLinear(plans[best], weight.shape[1], weight.shape[0]), str(choices[best])


class Encoder(nn.Module):
    """A layer of MiniLM-L6-H384: attention of twelve heads and a feed-forward part, norms behind both."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(384, 384) for _ in range(4))
        self.up, self.down = nn.Linear(384, 1536), nn.Linear(1536, 384)
        self.first, self.second = nn.LayerNorm(384), nn.LayerNorm(384)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, 384)"""
        heads = (part(x).unflatten(2, (12, 32)).transpose(1, 2) for part in (self.query, self.key, self.value))
        x = self.first(x + self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)))
        found: Tensor = self.second(x + self.down(F.gelu(self.up(x))))
        return found


def minilm() -> dict[str, Any]:
    """Six layers of MiniLM with 80 % zeros in blocks of 4x1, one sequence of 128 tokens, by form."""
    generator = torch.Generator().manual_seed(0)
    dense = nn.Sequential(*(Encoder() for _ in range(6))).eval()
    sparse = copy.deepcopy(dense)
    for layer in sparse.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(masked(layer.weight, 0.8, 4, generator))
    x = (torch.randn(1, 128, 384, generator=generator),)
    ways = {f"dense, {name}": form for name, form in forms(dense, x, kernels=False).items()}
    ways["dense, compiled"] = torch.compile(copy.deepcopy(dense))
    ways |= {f"sparse, {name}": form for name, form in forms(sparse, x).items()}
    timed = dict(zip(ways, medians([partial(way, *x) for way in ways.values()]), strict=True))
    found = min(v for k, v in timed.items() if k.startswith("dense")) / timed["sparse, sparse layers"]
    print(f"MiniLM, 80 % zeros in blocks of 4x1, 128 tokens: {found:.2f} over the best of torch", flush=True)
    return {"seconds": timed, "speed_up": found}


def networks() -> dict[str, Any]:
    """ResNet-56 with 90 % zeros in its convolutions but the first, at one image and at 64, by form."""
    generator = torch.Generator().manual_seed(0)
    dense, sparse = ResNet(56).eval(), ResNet(56).eval()
    with torch.no_grad():
        for layer in sparse.modules():
            if isinstance(layer, nn.Conv2d) and layer.in_channels > 3:
                layer.weight.copy_(masked(layer.weight, 0.9, 1, generator))
    found = {}
    for batch in (1, 64):
        x = (torch.randn(batch, 3, 32, 32, generator=generator),)
        ways = {f"dense, {name}": form for name, form in forms(dense, x, kernels=False).items()}
        ways["dense, compiled"] = torch.compile(ResNet(56).eval())
        ways |= {f"sparse, {name}": form for name, form in forms(sparse, x).items()}
        ways["dense, one plan"] = forms(dense, x)["one plan"]
        seconds = medians([partial(way, *x) for way in ways.values()])
        timed = dict(zip(ways, seconds, strict=True))
        by_torch = min(v for k, v in timed.items() if k.startswith("dense") and k != "dense, one plan")
        found[f"batch_{batch}"] = {
            "seconds": timed,
            "speed_up": by_torch / timed["sparse, one plan"],
            "over_own_dense": timed["dense, one plan"] / timed["sparse, one plan"],
        }
        print(
            f"ResNet-56, 90 % zeros, batch {batch}: {found[f'batch_{batch}']['speed_up']:.2f} over the best of torch, "
            f"{found[f'batch_{batch}']['over_own_dense']:.2f} over the same kernels without zeros",
            flush=True,
        )
    return found


def processor_limits() -> dict[str, float]:
    """Floating point operations a second: from registers, and with one operand from the first and the second cache."""
    library = compiled("limits")
    assert library is not None, "the kernels need a C compiler"
    library.limits_registers.argtypes = [ctypes.c_long, ctypes.c_float]
    library.limits_memory.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_long, ctypes.c_float]
    lanes, sums = library.limits_lanes(), library.limits_sums()
    rounds = 200_000
    register_seconds = min(seconds_of([partial(library.limits_registers, rounds, 0.5)]))
    found = {"registers": 2.0 * rounds * sums * lanes / register_seconds}
    for name, kilobytes in (("first_cache", 24), ("second_cache", 512)):
        vectors = kilobytes * 256 // lanes // sums * sums
        values = torch.ones(vectors * lanes)
        passes = max(1, 20_000_000 // (vectors * lanes))
        seconds = min(seconds_of([partial(library.limits_memory, values.data_ptr(), vectors, passes, 0.5)]))
        found[name] = 2.0 * passes * vectors * lanes / seconds
    print({k: f"{v / 1e9:.0f} GF/s" for k, v in found.items()}, flush=True)
    return found


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("convolutions", "linear", "networks"))
    arguments = parser.parse_args()
    keep_memory()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    limits = processor_limits()
    figures: dict[str, Any] = {"limits": limits}
    if arguments.only in (None, "convolutions"):
        for batch in (1, 64):
            for block in (1, 4):
                figures[f"conv_batch{batch}_{block}x1"] = convolutions(batch, block, limits)
    if arguments.only in (None, "linear"):
        for block in (1, 4, 16):
            figures[f"linear_128_{block}x1"] = linear(128, block, limits)
    if arguments.only in (None, "networks"):
        figures["networks"] = networks()
        figures["minilm"] = minilm()
    write("kernels" if arguments.only is None else f"kernels_{arguments.only}", figures, seeds=[0])


if __name__ == "__main__":
    main()
