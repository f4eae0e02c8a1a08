"""Bytes on disk of the saved model: packed weights, scales, everything else, and the file's header.

A weight of b < 32 bits is stored as ceil(n b / 8) bytes of packed codes and a float32 scale per output channel, or
2^b float32 centroids; a pruned one as a bitmap of n bits and its non-zero entries, where that is smaller. What entropy
coding saves on top depends on the weights and is not foreseen: a file is never larger than its policy's size. The
header is bounded from above from the tensors' names, so a policy within a size limit makes a file within it; the dense
model's size is its tensors alone, so that a percentage is never easier to meet than it reads.
"""

import numpy as np

from automc.costs.table import CostTable, FloatArray, Shapes
from automc.policy import FULL_BITS


def _entries(shapes: Shapes, stored_bits: FloatArray) -> FloatArray:
    """Bytes of the weights' codes and of where zeros lie (B, L)."""
    dense: FloatArray = np.ceil(shapes.weights * stored_bits / 8)
    sparsity = shapes.candidates.sparsity
    if not sparsity.any():
        return dense
    sparse = np.ceil(shapes.weights / 8) + np.ceil(shapes.nonzeros * stored_bits / 8)
    fewer: FloatArray = np.where((sparsity > 0) & (stored_bits <= FULL_BITS), np.minimum(dense, sparse), dense)
    return fewer


class _Size:
    name = "size"

    def layers(self, table: CostTable, shapes: Shapes) -> FloatArray:
        candidates, item = shapes.candidates, table.facts.item_bytes
        stored_bits = np.where(candidates.weight_bits < FULL_BITS, candidates.weight_bits, 8 * item)
        # Counted whether or not the layer is quantized: otherwise float could cost less than 8 bits on tiny layers.
        levels, headers = shapes.rows, np.zeros(())
        factored = (candidates.rank < 1) & (shapes.out > 0)
        if factored.any():
            headers = np.where(factored, table.factor_bytes, 0.0)
        if candidates.shared.any():
            # A codebook counts as no smaller than scales, so that k-means never costs less than evenly spaced levels.
            centroids = np.exp2(np.minimum(candidates.weight_bits, 8)) * (1 + factored)
            levels = np.where(candidates.shared > 0, np.maximum(centroids, shapes.rows), shapes.rows)
        entries = _entries(shapes, stored_bits) * table.owns_weight
        stored: FloatArray = entries + headers + (item * levels + 8) + item * shapes.out * table.has_bias
        return stored

    def rest(self, table: CostTable, shapes: Shapes) -> FloatArray:
        norms = shapes.norm @ (table.norm_parameters + table.norm_buffers)
        others = shapes.parameters.sum(axis=1) + table.constant_parameters - shapes.dropped
        stored: FloatArray = table.facts.item_bytes * (norms + others) + table.constant_bytes + table.header_bytes
        return stored

    def dense(self, table: CostTable) -> float:
        return float(table.facts.item_bytes * table.facts.params + table.facts.buffer_bytes)


SIZE = _Size()
