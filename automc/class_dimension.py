"""Along which dimension of a model's outputs the classes lie, from shapes alone.

cross_entropy's (B, C, d1, ...) with targets (B, d1, ...) has them in dimension 1, a transformer's (B, T, C) with
targets (B, T) in the last. Targets decide where just one of these fits. Where both fit (T == C) or neither does,
outputs of three dimensions have their classes last, as tokens do, all others in dimension 1, as images do.
"""

from collections.abc import Sequence


def class_dimension(outputs: Sequence[int], targets: Sequence[int] = ()) -> int:
    """The dimension of class scores of shape `outputs` (B, ...); `targets` is the targets' shape."""
    last = len(outputs) - 1
    fits = {dim for dim in (1, last) if _without(outputs, dim) == tuple(targets)}
    if len(fits) == 1:
        return fits.pop()
    return last if len(outputs) == 3 else 1


def _without(shape: Sequence[int], dim: int) -> tuple[int, ...]:
    return tuple(size for d, size in enumerate(shape) if d != dim)
