"""How much of a residual sum comes from its branch: the error of leaving the block out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from automc.compression.segments import CHUNK
from automc.graph.facts import Block
from automc.task import Inputs

SAMPLES = 256


@torch.no_grad()
def branch_errors(module: fx.GraphModule, blocks: Sequence[Block], inputs: Inputs) -> dict[str, float]:
    """By block, the branch's energy relative to the sum's, on at most `SAMPLES` calibration samples."""
    watch = _Energies(module, blocks)
    for start in range(0, min(SAMPLES, len(inputs[0])), CHUNK):
        watch.run(*(x[start : min(start + CHUNK, SAMPLES)] for x in inputs))
    return {b.name: watch.branch[b.at] / max(watch.sum[b.at], 1e-30) for b in blocks}


class _Energies(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, blocks: Sequence[Block]) -> None:
        super().__init__(module)
        self._sides = {b.at: b.side for b in blocks}
        self.branch = dict.fromkeys(self._sides, 0.0)
        self.sum = dict.fromkeys(self._sides, 0.0)

    def run_node(self, n: fx.Node) -> Any:
        if n.name not in self._sides:
            return super().run_node(n)
        branch = self.env[n.args[self._sides[n.name]]]  # type: ignore[index]
        assert isinstance(branch, Tensor)
        energy = float(branch.square().sum())  # before the addition, which may work in place
        total = super().run_node(n)
        self.branch[n.name] += energy
        self.sum[n.name] += float(total.square().sum())
        return total
