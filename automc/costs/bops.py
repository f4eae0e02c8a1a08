"""Bit operations per sample: MACs times weight bits times activation bits (HAWQ-V3; GETA), 32 for float.

Deviation: the density of pruned weights is not multiplied in, since no kernel here skips single zeros.
"""

import numpy as np

from automc.costs.table import CostTable, FloatArray, Shapes, total


class _Bops:
    name = "bops"

    def layers(self, table: CostTable, shapes: Shapes) -> FloatArray:
        bits = shapes.candidates.weight_bits * shapes.candidates.activation_bits
        return shapes.macs * bits

    def rest(self, table: CostTable, shapes: Shapes) -> FloatArray:
        return np.zeros(len(shapes.weights))

    def dense(self, table: CostTable) -> float:
        return float(total(self, table, table.shapes(table.dense))[0])


BOPS = _Bops()
