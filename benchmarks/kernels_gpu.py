"""Sparse kernels against dense ones on a CUDA device: linear layers in 2:4 and in blocks, by type and number of tokens.

    python benchmarks/kernels_gpu.py                  everything
    python benchmarks/kernels_gpu.py --only blocks

Layers are those of two blocks of a transformer, one after the other: MiniLM's and ViT-L's shapes. Masks and weights are
random. Everything is timed in turn, each way for a few milliseconds at a time, and compared by medians; the device is
waited for before and after each turn. Dense is torch's own layer of the same type; sparse is what the dispatcher would
take if dense were not there.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from kernels import LINEAR
from results import write
from torch import Tensor, nn

from automc.deployment.layers import all_ways
from automc.deployment.timing import in_turns, seconds_of
from automc.kernels.blocks import BlockLinear
from automc.kernels.semistructured import BACKENDS, Backend, SemiStructuredLinear

Way = Callable[[], object]
MODELS = {"MiniLM": LINEAR, "ViT-L": ((1024, 1024),) * 4 + ((1024, 4096), (4096, 1024))}
"""Inputs and outputs of the layers of a block."""
TOKENS = (128, 4096)
ZEROS = (0.5, 0.7, 0.8, 0.9, 0.95)
SIDES = (16, 32, 64)
"""Of square blocks that were pruned."""
TYPES = (torch.float32, torch.float16, torch.bfloat16)
ROUNDS, TURN = 15, 4e-3
"""Turns of each way, and their seconds."""


def medians(ways: Sequence[Way]) -> list[float]:
    """Median seconds of each, taken in turn."""
    return [statistics.median(own) for own in in_turns(ways, ROUNDS, TURN)]


def layers_of(model: str, dtype: torch.dtype, prune: Callable[[Tensor], Tensor]) -> list[nn.Linear]:
    """The layers of two blocks, pruned."""
    found = [nn.Linear(*shape, device="cuda") for shape in 2 * MODELS[model]]
    for layer in found:
        layer.weight.copy_(prune(layer.weight))
    return [layer.to(dtype) for layer in found]


def two_of_four(weight: Tensor) -> Tensor:
    """The larger two of every four inputs."""
    fours = weight.unflatten(1, (-1, 4))
    return (fours * torch.zeros_like(fours).scatter(2, fours.abs().topk(2).indices, 1.0)).flatten(1)


def in_blocks(weight: Tensor, zeros: float, side: int, generator: torch.Generator) -> Tensor:
    """The weight with so many blocks removed at random."""
    keep = torch.rand(weight.shape[0] // side, weight.shape[1] // side, generator=generator) >= zeros
    return weight * keep.to(weight.device).repeat_interleave(side, 0).repeat_interleave(side, 1)


def chain(ways: Sequence[nn.Module], given: Sequence[Tensor]) -> Way:
    """One after the other; what the last one gives says where to wait."""

    def run() -> Tensor:
        return [way(x) for way, x in zip(ways, given, strict=True)][-1]

    return run


def inputs_of(layers: Sequence[nn.Linear], tokens: int) -> list[Tensor]:
    made: dict[int, Tensor] = {}
    for layer in layers:
        width = layer.in_features
        made.setdefault(width, torch.randn(tokens, width, device="cuda").to(layer.weight.dtype))
    return [made[layer.in_features] for layer in layers]


def semistructured(model: str, tokens: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Of each library that runs here: seconds and speed-up."""
    layers = layers_of(model, dtype, two_of_four)
    given = inputs_of(layers, tokens)
    found = {backend: _by_library(layers, given, backend) for backend in BACKENDS}
    runs = {backend: ways for backend, ways in found.items() if ways}
    dense, *sparse = medians([chain(layers, given), *(chain(ways, given) for ways in runs.values())])
    rows = [
        {"library": b, "sparse": s, "dense": dense, "speed_up": dense / s} for b, s in zip(runs, sparse, strict=True)
    ]
    for row in rows:
        print(f"2:4, {row['library']}, {model}, {tokens} tokens, {dtype}: {row['speed_up']:.2f}", flush=True)
    return rows


def _by_library(layers: Sequence[nn.Linear], given: Sequence[Tensor], backend: Backend) -> list[nn.Module]:
    """Every layer by a library; none where one of them does not run by it."""
    ways = [
        next((w for w in all_ways(layer, x) if isinstance(w, SemiStructuredLinear) and w.backend == backend), None)
        for layer, x in zip(layers, given, strict=True)
    ]
    return [way for way in ways if way is not None] if None not in ways else []


def blocks(model: str, tokens: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Every share of zeros and side: seconds and speed-up."""
    generator, rows = torch.Generator().manual_seed(0), []
    for side in SIDES:
        for zeros in ZEROS:
            layers = layers_of(model, dtype, partial(in_blocks, zeros=zeros, side=side, generator=generator))
            given = inputs_of(layers, tokens)
            ways = [_fastest(layer, x) for layer, x in zip(layers, given, strict=True)]
            if None in ways:
                continue  # a layer with more entries than are tried
            dense, sparse = medians([chain(layers, given), chain([way for way in ways if way is not None], given)])
            rows.append({"side": side, "zeros": zeros, "sparse": sparse, "dense": dense, "speed_up": dense / sparse})
            print(
                f"blocks of {side}x{side}, {zeros:.0%} zeros, {model}, {tokens} tokens, {dtype}: {dense / sparse:.2f}",
                flush=True,
            )
    return rows


def _fastest(layer: nn.Linear, x: Tensor) -> nn.Module | None:
    """The layer in the blocks that the dispatcher would take; None where it would try none."""
    ways = [way for way in all_ways(layer, x) if isinstance(way, BlockLinear)]
    return ways[int(np.argmin(seconds_of([partial(way, x) for way in ways])))] if ways else None


def device() -> dict[str, Any]:
    """What the figures hold for."""
    major, minor = torch.cuda.get_device_capability()
    return {"name": torch.cuda.get_device_name(), "capability": f"{major}.{minor}", "cuda": torch.version.cuda}


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("semistructured", "blocks"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("Kernels for GPUs must be measured on a CUDA device; torch finds none here: run this on one.")
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    figures: dict[str, Any] = {"device": device()}
    for name, measure in (("semistructured", semistructured), ("blocks", blocks)):
        if arguments.only in (None, name):
            types = TYPES if measure is blocks else TYPES[1:]
            figures[name] = [
                {"model": model, "tokens": tokens, "type": str(dtype), "rows": measure(model, tokens, dtype)}
                for model in MODELS
                for tokens in TOKENS
                for dtype in types
            ]
    write("kernels_gpu" if arguments.only is None else f"kernels_gpu_{arguments.only}", figures, seeds=[0])


if __name__ == "__main__":
    main()
