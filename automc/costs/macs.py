"""Multiply-accumulate operations per sample.

Counted as `torch.utils.flop_counter` counts them (it reports two operations each) on the shrunk module: zeros
inside a kept weight are still multiplied.
"""

from automc.costs.table import CostTable, FloatArray, Shapes, total


class _Macs:
    name = "macs"

    def layers(self, table: CostTable, shapes: Shapes) -> FloatArray:
        return shapes.macs

    def rest(self, table: CostTable, shapes: Shapes) -> FloatArray:
        return shapes.other_macs

    def dense(self, table: CostTable) -> float:
        return float(total(self, table, table.shapes(table.dense))[0])


MACS = _Macs()
