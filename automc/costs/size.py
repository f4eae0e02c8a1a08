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


class _Size:
    name = "size"

    def layers(self, table: CostTable, shapes: Shapes) -> FloatArray:
        bits, sparsity = shapes.candidates.weight_bits, shapes.candidates.sparsity
        item = table.facts.item_bytes
        stored_bits = np.where(bits < FULL_BITS, bits, 8 * item)
        dense = np.ceil(shapes.weights * stored_bits / 8)
        sparse = np.ceil(shapes.weights / 8) + np.ceil(shapes.nonzeros * stored_bits / 8)
        weights = np.where((sparsity > 0) & (stored_bits <= FULL_BITS), np.minimum(dense, sparse), dense)
        # Counted whether or not the layer is quantized: otherwise float could cost less than 8 bits on tiny layers.
        # A codebook counts as no smaller than scales, so that k-means never costs less than evenly spaced levels.
        factored = (shapes.candidates.rank < 1) & (shapes.out > 0)
        centroids = np.maximum(2.0 ** np.minimum(bits, 8) * (1 + factored), shapes.rows)
        levels = np.where(shapes.candidates.shared > 0, centroids, shapes.rows)
        scales_and_range = item * levels + 8
        headers = np.where(factored, table.factor_bytes, 0.0)
        stored: FloatArray = (
            weights * table.owns_weight + headers + scales_and_range + item * shapes.out * table.has_bias
        )
        return stored

    def rest(self, table: CostTable, shapes: Shapes) -> FloatArray:
        norms = shapes.norm @ (table.norm_parameters + table.norm_buffers)
        others = shapes.parameters.sum(axis=1) + table.constant_parameters - shapes.dropped
        stored: FloatArray = table.facts.item_bytes * (norms + others) + table.constant_bytes + table.header_bytes
        return stored

    def dense(self, table: CostTable) -> float:
        return float(table.facts.item_bytes * table.facts.params + table.facts.buffer_bytes)


SIZE = _Size()
