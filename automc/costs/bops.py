"""Bit operations per sample: MACs times weight bits times activation bits (HAWQ-V3; GETA), 32 for float.

Deviations: what is outside layers counts at 32 bits; the density of pruned weights is not multiplied in, since no
kernel here skips single zeros.
"""

from automc.costs.table import CostTable, FloatArray, Shapes, total
from automc.policy import FULL_BITS


class _Bops:
    name = "bops"

    def layers(self, table: CostTable, shapes: Shapes) -> FloatArray:
        bits = shapes.candidates.weight_bits * shapes.candidates.activation_bits
        return shapes.macs * bits

    def rest(self, table: CostTable, shapes: Shapes) -> FloatArray:
        return shapes.other_macs * FULL_BITS**2

    def dense(self, table: CostTable) -> float:
        return float(total(self, table, table.shapes(table.dense))[0])


BOPS = _Bops()
