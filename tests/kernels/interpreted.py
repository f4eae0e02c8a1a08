"""The kernel of blocks against dense layers; run by tests, with TRITON_INTERPRET=1.

Not in bfloat16: Triton's interpreter multiplies the bits of such numbers.
"""

import itertools

import torch
from torch.nn import functional as F

from automc.kernels.blocks import SIZES, Blocks
from automc.kernels.blocks_triton import run
from tests.kernels.test_blocks import thinned

SHAPES = (
    (64, 64, 32, 0.5),
    (33, 17, 70, 0.5),
    (100, 200, 5, 0.3),
    (40, 70, 1, 0.0),
    (130, 65, 0, 0.7),
    (16, 16, 16, 1),
)
"""Outputs, inputs, tokens, share of blocks that are kept."""


def main() -> None:
    """Ends with the word `right`, or with an error."""
    for (outputs, inputs, tokens, kept), size in itertools.product(SHAPES, SIZES):
        weight, bias = thinned(outputs, inputs, (16, 16), kept), torch.randn(outputs)
        weight[:16] = 0  # a row of blocks without any
        x = torch.randn(tokens, inputs)
        for dtype, near in ((torch.float32, 1e-5), (torch.float16, 2e-3)):
            made = Blocks.of(weight.to(dtype), size)
            for given in (None, bias.to(dtype)):
                found = run(x.to(dtype), made.start, made.column, made.value, given, outputs)
                wanted = F.linear(
                    x.to(dtype).double(), weight.to(dtype).double(), None if given is None else given.double()
                )
                assert found.dtype == dtype
                torch.testing.assert_close(found.double(), wanted, rtol=near, atol=10 * near)
    print("right")


if __name__ == "__main__":
    main()
