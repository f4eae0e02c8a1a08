"""Sparse float kernels against the best dense ones: 3x3 convolutions of ResNet-56, linear layers of MiniLM, whole nets.

    python benchmarks/kernels.py                     everything, one thread
    python benchmarks/kernels.py --only convolutions

Everything is timed in turn and compared by medians. A convolution is one of a chain of eight, dense and sparse alike,
so that values come from where they come from in a network; masks and weights are random. Dense is the best of
PyTorch's default, channels last, and weights packed once by oneDNN; PyTorch's default stands beside it. Sparse is what
the dispatcher takes. Of the whole net dense is the best form by torch, compiled or not.
"""

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from results import write
from torch import Tensor, nn
from torch.nn import functional as F

from automc.deployment.forms import forms
from automc.deployment.layers import PlannedLinear, _choices
from automc.deployment.network import _choice
from automc.deployment.timing import seconds_of
from automc.kernels import images, tokens
from automc.kernels.build import compiled
from automc.kernels.images import Network, planned
from automc.kernels.tiles import Window
from automc.tasks.resnet import ResNet

Way = Callable[[], object]
ZEROS = (0.5, 0.7, 0.8, 0.9, 0.95)
STAGES = ((16, 32), (32, 16), (64, 8))
"""Channels and size of ResNet-56's stages; each has as many multiply-accumulates as any other."""
LINEAR = ((384, 384), (384, 1536), (1536, 384))
"""Inputs and outputs of MiniLM's layers: four, one and one of each block's six."""
SHARES = (4, 1, 1)
CHAIN = 8
ROUNDS = 15


def medians(ways: Sequence[Way], rounds: int = ROUNDS) -> list[float]:
    """Median seconds of each, taken in turn, two warm-up rounds aside."""
    times: list[list[float]] = [[] for _ in ways]
    for turn in range(rounds + 2):
        for way, own in zip(ways, times, strict=True):
            start = time.perf_counter()
            way()
            if turn > 1:
                own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times]


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
    network = Network()
    value = network.given((size, size, channels))
    for weight in weights:
        value = network.convolution(value, weight.numpy(), None, Window((3, 3), (1, 1), (1, 1)))
    choice = _choice(network, 0)
    plan = planned(network, 0, value, dict.fromkeys(network.products, choice))
    dense = _dense_chains(weights, x)
    found = medians([partial(images.run, x, plan, (channels, size, size)), *dense], ROUNDS if batch > 1 else 60)
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
    """MiniLM's layers on so many tokens: every share of zeros, weighted as they occur in a block."""
    generator, rows = torch.Generator().manual_seed(0), []
    for zeros in ZEROS:
        layers = [_layer(inputs, outputs, count, block, zeros, generator) for inputs, outputs in LINEAR]
        sparse, dense, default, work = (
            sum(share * layer[k] for share, layer in zip(SHARES, layers, strict=True))
            for k in ("sparse", "dense", "default", "flops")
        )
        rows.append(
            {
                "zeros": zeros,
                "speed_up": dense / sparse,
                "over_default": default / sparse,
                "each": [layer["dense"] / layer["sparse"] for layer in layers],
                "over_torch_sparse": [layer["csr"] / layer["sparse"] for layer in layers],
                "of_peak": work / sparse / limits["registers"],
                "of_memory_roof": work / sparse / limits["second_cache"],
                "layers": layers,
            }
        )
        print(
            f"linear, {count} tokens, {block}x1, {zeros:.0%} zeros: {rows[-1]['speed_up']:.2f} "
            f"(by layer {', '.join(f'{x:.2f}' for x in rows[-1]['each'])}; over torch.sparse at least "
            f"{min(rows[-1]['over_torch_sparse']):.1f}; {rows[-1]['of_peak']:.0%} of the peak)",
            flush=True,
        )
    return rows


def _layer(
    inputs: int, outputs: int, count: int, block: int, zeros: float, generator: torch.Generator
) -> dict[str, Any]:
    layer = nn.Linear(inputs, outputs)
    x = torch.randn(count, inputs, generator=generator)
    weight = masked(layer.weight.detach(), zeros, block, generator)
    bias = layer.bias.detach()
    choices = _choices(weight.numpy(), count)
    plans = [tokens.planned(weight.numpy(), bias.numpy(), choice) for choice in choices]
    best = int(np.argmin(seconds_of([partial(tokens.run, x, plan) for plan in plans])))
    planned_layer = PlannedLinear(plans[best], inputs, outputs)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, count)
    csr, columns = weight.to_sparse_csr(), x.T.contiguous()
    found = medians(
        [
            partial(planned_layer, x),
            partial(F.linear, x, weight, bias),
            partial(torch.ops.mkldnn._linear_pointwise, x, packed, bias, "none", [], ""),
            partial(torch.sparse.mm, csr, columns),
        ],
        40,
    )
    return {
        "inputs": inputs,
        "outputs": outputs,
        "sparse": found[0],
        "default": found[1],
        "dense": min(found[1:3]),
        "csr": found[3],
        "flops": 2.0 * int(weight.count_nonzero()) * count,
        "choice": str(choices[best]),
    }


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
        seconds = medians([partial(way, *x) for way in ways.values()], ROUNDS if batch > 1 else 60)
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
    write("kernels" if arguments.only is None else f"kernels_{arguments.only}", figures, seeds=[0])


if __name__ == "__main__":
    main()
