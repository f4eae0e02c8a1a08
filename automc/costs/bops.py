"""Bit operations per sample: MACs times weight bits times activation bits (HAWQ-V3; GETA), 32 for float.

A multiplication by a weight that is zero is none, whatever its pattern, as Frantar and Alistarh 2022 (Optimal Brain
Compression, section 6) count their compound models. Deviations: what is outside layers counts at 32 bits.
"""

import numpy as np

from automc.costs.table import CostTable, FloatArray, Shapes, total
from automc.policy import FULL_BITS


class _Bops:
    name = "bops"

    def layers(self, table: CostTable, shapes: Shapes) -> FloatArray:
        bits = shapes.candidates.weight_bits * shapes.candidates.activation_bits
        kept: FloatArray = shapes.nonzeros / np.maximum(shapes.weights, 1.0)
        return shapes.macs * kept * bits

    def rest(self, table: CostTable, shapes: Shapes) -> FloatArray:
        return shapes.other_macs * FULL_BITS**2

    def dense(self, table: CostTable) -> float:
        return float(total(self, table, table.shapes(table.dense))[0])


BOPS = _Bops()
