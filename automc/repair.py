"""HAQ's way to a budget: lower a finished policy step by step (Wang et al. 2019, section 3.3).

The published loop goes from the last layer to the first, takes one bit off the activations and then one off the
weights, and begins again until the budget is met. Deviations: it works on levels, so on any ordered decisions; limits
may be several, of any cost that never rises when a level falls; pinned layers are axes with few levels, where the
released code resets them after every step and may go round for ever; a budget below the lowest levels is refused.
"""

from collections.abc import Sequence

import numpy as np

from automc.errors import BudgetError
from automc.projection import Projector
from automc.space import IntArray


def repaired(projector: Projector, levels: IntArray, order: Sequence[int]) -> IntArray:
    """The first feasible point met by lowering the axes of `order` one level each in turn, round after round.

    All other axes stay; BudgetError where the axes of `order` at their lowest do not meet the limits.
    """
    point = levels
    while not projector.feasible(point):
        falling = [axis for axis in order if point[axis] > 0]
        if not falling:
            raise BudgetError(
                "A repair must end within the budget; with every decision it may lower at its lowest level, the others "
                "still cost too much: lower these too."
            )
        steps = np.zeros((len(falling), len(point)), dtype=np.int64)
        steps[np.arange(len(falling)), falling] = 1
        lowered = point - np.cumsum(steps, axis=0)
        met = np.flatnonzero(projector.fits(lowered))
        point = lowered[met[0] if met.size else -1]
    return point
