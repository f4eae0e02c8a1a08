"""Axes as Optuna distributions, levels as Optuna parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from automc.space import Axis, IntArray, Value


def distribution(axis: Axis) -> BaseDistribution:
    """Words are categories, whole numbers in a row integers, other numbers floats between the least and the largest."""
    if any(isinstance(v, str) for v in axis.values):
        return CategoricalDistribution(axis.values)
    numbers = [float(v) for v in axis.values]
    if axis.field in ("weight_bits", "activation_bits"):
        contiguous = numbers == list(range(int(numbers[0]), int(numbers[0]) + len(numbers)))
        return (
            IntDistribution(int(numbers[0]), int(numbers[-1])) if contiguous else CategoricalDistribution(axis.values)
        )
    return FloatDistribution(min(numbers), max(numbers))


def distributions(axes: Sequence[Axis]) -> dict[str, BaseDistribution]:
    """The distribution of every axis by its key."""
    return {axis.key: distribution(axis) for axis in axes}


def parameters(axes: Sequence[Axis], levels: Sequence[int] | IntArray) -> dict[str, Value]:
    """The values at a point, by axis key."""
    return {axis.key: axis.values[int(level)] for axis, level in zip(axes, levels, strict=True)}


def levels_of(axes: Sequence[Axis], params: Mapping[str, Any]) -> IntArray:
    """The point nearest to parameters; a missing one stands for the top level."""
    return np.array([a.level(params[a.key]) if a.key in params else len(a.values) - 1 for a in axes], dtype=np.int64)
