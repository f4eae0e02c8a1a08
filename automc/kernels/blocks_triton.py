"""The kernel of `blocks`; to import it needs Triton.

A program makes one row of blocks' outputs for some tokens. It reads the blocks of its row one after another, and of the
inputs only the runs that these are multiplied with.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TOKENS = 64
"""Of a program at most; at least the 16 that tensor cores multiply at once."""


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    x,
    start,
    column,
    value,
    bias,
    out,
    tokens,
    inputs,
    outputs,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(1)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    output = row * ROWS + tl.arange(0, ROWS)
    run = tl.arange(0, COLUMNS)
    here = token[:, None] < tokens
    given = x + token[:, None].to(tl.int64) * inputs  # more than 2^31 inputs in all are not unheard of
    inside = run[:, None] + tl.arange(0, ROWS)[None, :] * COLUMNS  # a block lies as (rows, columns), and is transposed
    total = tl.zeros((TOKENS, ROWS), dtype=tl.float32)
    for at in range(tl.load(start + row), tl.load(start + row + 1)):
        source = tl.load(column + at) * COLUMNS + run
        read = tl.load(given + source[None, :], mask=here & (source[None, :] < inputs), other=0.0)
        block = tl.load(value + at * (ROWS * COLUMNS) + inside)
        total = tl.dot(read, block, total, input_precision="ieee")
    if bias is not None:
        total += tl.load(bias + output, mask=output < outputs, other=0.0).to(tl.float32)[None, :]
    made = out + token[:, None].to(tl.int64) * outputs + output[None, :]
    tl.store(made, total.to(out.dtype.element_ty), mask=here & (output[None, :] < outputs))


def run(x: Tensor, start: Tensor, column: Tensor, value: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """x (tokens, in), contiguous, on the device where the blocks lie; (tokens, out)"""
    out = x.new_empty(len(x), outputs)
    if not out.numel():
        return out
    rows, columns = value.shape[1:]
    together = min(TOKENS, max(16, triton.next_power_of_2(len(x))))
    grid = (triton.cdiv(len(x), together), len(start) - 1)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]  # where Triton starts it
        _kernel[grid](x, start, column, value, bias, out, *x.shape, outputs, together, rows, columns)
    return out
