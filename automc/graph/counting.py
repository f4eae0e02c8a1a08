"""Multiply-accumulates of a forward pass, as `torch.utils.flop_counter` counts operations: two of them are one.

Deviations: attention on a processor is counted, which the counter has no formula for, and nn.TransformerEncoder runs
without its fused path, which would hide everything inside, from hooks as well. A recurrent layer is one operation
without a formula: it counts as nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from automc.graph.runs import batch_size, copies


def forward_macs(model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Multiply-accumulates of one sample of a batch, in evaluation mode."""
    was_training = model.training
    try:
        with torch.no_grad(), counted(inputs) as macs:
            model.eval()(*copies(inputs))
    finally:
        model.train(was_training)
    return macs()


@contextmanager
def counted(inputs: tuple[Tensor, ...]) -> Iterator[Callable[[], float]]:
    """Counts everything that runs inside on a batch; what it gives tells the sum so far, of one sample."""
    batch = batch_size(inputs)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(
            display=False, custom_mapping={torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
        ) as counter:
            yield lambda: counter.get_total_flops() / 2 / batch
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Operations of scaled dot-product attention; arguments are shapes (batch, heads, length, width)."""
    batch, heads, length, width = query
    return 2 * int(batch * heads * length * key[-2] * (width + value[-1]))
