"""Sparse layers of 8 bits against the fastest dense ones that torch has, one thread, operations by themselves.

    python benchmarks/kernels_int8.py
    python benchmarks/kernels_int8.py --tokens 128 --rounds 300

Layers of MiniLM, random blocks, rounding of the input counted on both sides. Each sparse layer takes turns with the
fastest dense one, run once before it is timed, so that both find the caches their own; memory is not given back in
between. Figures are microseconds of the thread's processor time, the least and the median of all rounds. The fastest
dense one is chosen among dynamic and static linear of the engines x86, onednn and fbgemm, and onednn's
qlinear_pointwise after quantize_per_tensor, as torch.compile uses it. `bound`: if rounding and the fastest product
were all, which no code does.

All is done twice: with all instructions, and in a process of its own with neither side using AMX
(ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI), as on processors that have none.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from kernels import keep_memory
from results import write
from torch import Tensor

from automc.kernels import sparse8
from automc.kernels.sparse8 import PATTERNS, SparseInt8Linear

SHAPES = ((384, 384), (384, 1536), (1536, 384))
TOKENS = (1, 16, 128, 1024)
ZEROS = (50, 70, 80, 90, 95)
"""Percent."""
WANTED = dict(zip(ZEROS, (1.5, 2.4, 3.5, 5.0, 7.0), strict=True))
"""Speed-ups hoped for at 128 tokens with blocks of 16x4."""
LEVELS = (0.03, 120.0, 255.0)
CAPPED = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}
Row = dict[str, Any]


def taken(work: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Least and median microseconds of each, in turns, each run once before it is timed."""
    found: dict[str, list[int]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            run()
            begin = time.thread_time_ns()
            run()
            found[name].append(time.thread_time_ns() - begin)
    return {name: (min(t) / 1e3, sorted(t)[len(t) // 2] / 1e3) for name, t in found.items()}


def dense(x: Tensor, outputs: int) -> tuple[dict[str, Callable[[], object]], dict[str, Callable[[], object]]]:
    """Whole dense layers of 8 bits, and the parts of one: rounding and product."""
    inputs = x.shape[1]
    step, zero = LEVELS[0], int(LEVELS[1])
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
    scale, zeros = torch.full((outputs,), 0.03), torch.zeros(outputs, dtype=torch.int64)
    codes = torch.randint(-127, 128, weight.shape, dtype=torch.int8)
    whole: dict[str, Callable[[], object]] = {}
    for engine in ("x86", "onednn", "fbgemm"):
        torch.backends.quantized.engine = engine
        held = torch.quantize_per_channel(weight, scale.double(), zeros, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(held, bias)
        whole[f"{engine} dynamic"] = lambda p=packed: torch.ops.quantized.linear_dynamic(x, p)
        if engine != "onednn":  # which has none
            static = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
            whole[f"{engine} static"] = lambda p=packed, f=static: f(x, step, zero, p)
    packed8 = torch.ops.onednn.qlinear_prepack(codes, list(x.shape))

    def product(levels: Tensor) -> Tensor:
        arguments = (levels, step, zero, packed8, scale, zeros, bias, 1.0, 0, torch.float32, "none", [], "")
        return torch.ops.onednn.qlinear_pointwise(*arguments)  # type: ignore[no-any-return]

    def rounded() -> Tensor:
        return torch.quantize_per_tensor(x, step, zero, torch.quint8)

    levels = rounded().int_repr()
    whole["onednn pointwise"] = lambda: product(rounded().int_repr())
    signed, turned = levels.view(torch.int8), codes.t()
    return whole, {
        "rounding": rounded,
        "pointwise": lambda: product(levels),
        "int_mm": lambda: torch._int_mm(signed, turned),
    }


def sparse(inputs: int, outputs: int, rows: int, percent: int) -> SparseInt8Linear:
    """A layer of which so many random blocks are zero."""
    size = (rows, 4 if rows == 16 else 1)
    keep = torch.rand(outputs // size[0], inputs // size[1]) >= percent / 100
    codes = torch.randint(-127, 128, (outputs, inputs)) * keep.repeat_interleave(size[0], 0).repeat_interleave(
        size[1], 1
    )
    return SparseInt8Linear(codes, torch.rand(outputs) * 0.01, torch.randn(outputs), LEVELS, rows=rows)


def measured(inputs: int, outputs: int, tokens: int, rounds: int) -> Row:
    """One shape: dense, its bound, and every sparse layer."""
    x, rounds = torch.randn(tokens, inputs), rounds if tokens < 1000 else max(20, rounds // 5)
    whole, parts = dense(x, outputs)
    plain = torch.nn.Linear(inputs, outputs)
    alone = taken(whole | parts | {"fp32": lambda: plain(x)}, rounds // 2)
    best = min(whole, key=lambda name: alone[name][0])
    product = min(("pointwise", "int_mm"), key=lambda name: alone[name][0])
    row: Row = {"inputs": inputs, "outputs": outputs, "tokens": tokens, "best": best, "dense_us": alone, "sparse": {}}
    for rows in PATTERNS:
        for percent in ZEROS:
            layer = sparse(inputs, outputs, rows, percent)
            compared = {"dense": whole[best], "rounding": parts["rounding"], "product": parts[product]}
            us = taken(compared | {"sparse": lambda layer=layer: layer(x)}, rounds)
            row["sparse"][f"{PATTERNS[rows]} {percent}"] = {
                "us": us["sparse"],
                "dense_us": us["dense"],
                "speed_up": [us["dense"][i] / us["sparse"][i] for i in (0, 1)],
                "speed_up_on_bound": [(us["rounding"][i] + us["product"][i]) / us["sparse"][i] for i in (0, 1)],
                "gmacs": layer.codes.numel() * tokens / us["sparse"][0] / 1e3,
            }
    print(line(row), flush=True)
    return row


def line(row: Row) -> str:
    """A shape's speed-ups at a glance: over the fastest dense layer and, in brackets, over the bound."""
    us = row["dense_us"]
    text = f"{row['inputs']:4d}-{row['outputs']:4d} T {row['tokens']:4d}: {row['best']} {us[row['best']][0]:.0f} us"
    text += f", fp32 {us['fp32'][0]:.0f}"
    for pattern in PATTERNS.values():
        found = [row["sparse"][f"{pattern} {z}"] for z in ZEROS]
        text += f" | {pattern} " + " ".join(
            f"{f['us'][0]:.0f}us {f['speed_up'][0]:.1f}({f['speed_up_on_bound'][0]:.1f})" for f in found
        )
    return text


def main() -> None:
    """Measures with and without AMX, prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--capped", action="store_true", help="what the second process is told")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    keep_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.capped:
        sparse8.TILED = sys.maxsize
    rows = [measured(*shape, tokens, arguments.rounds) for shape in SHAPES for tokens in arguments.tokens]
    if arguments.capped:
        print(json.dumps(rows))
        return
    print("without AMX", flush=True)
    command = [sys.executable, *sys.argv, "--capped"]
    capped = subprocess.run(command, env=os.environ | CAPPED, stdout=subprocess.PIPE, text=True, check=True).stdout
    print("\n".join(capped.splitlines()[:-1]))
    figures = {"wanted": WANTED, "all": rows, "without_amx": json.loads(capped.splitlines()[-1])}
    write("kernels_int8", figures | {"level": sparse8.level()}, seeds=[0])


if __name__ == "__main__":
    main()
