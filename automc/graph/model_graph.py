"""What tracing a model leaves behind: its facts, and what shrinking it needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from automc.graph.channels import Lanes
from automc.graph.facts import IntArray, ModelFacts


@dataclass(frozen=True, eq=False, slots=True)
class ModelGraph:
    """A traced model, without its weights."""

    facts: ModelFacts
    graph: fx.Graph | None
    """The traced forward; None for a model that cannot be traced."""
    inputs: tuple[Tensor, ...]
    """The example inputs the channels were followed with."""
    lanes: Mapping[str, Lanes] = field(default_factory=dict)
    """Where the channels of each node's value lie, as final channel classes."""
    concrete: Mapping[str, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    """Arguments of each function and method node in the dense run."""
    unit_classes: Mapping[str, IntArray] = field(default_factory=dict)
    """The channel class of each unit (units,) per group."""
    class_count: int = 1
