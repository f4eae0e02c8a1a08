"""A layer whose values are open, and what is decided for it."""

from dataclasses import dataclass

from torch import Tensor, nn

from automc.compression.quantize import QuantizedLayer
from automc.graph.facts import LayerFacts
from automc.policy import LayerDecision


@dataclass(frozen=True, eq=False, slots=True)
class Place:
    """One layer of the compressed model, before its weights are settled."""

    facts: LayerFacts
    decision: LayerDecision
    holder: nn.Module
    """The layer itself, or the module that quantizes it."""

    @property
    def layer(self) -> nn.Module:
        """The layer itself."""
        inner = self.holder.layer if isinstance(self.holder, QuantizedLayer) else self.holder
        assert isinstance(inner, nn.Module)
        return inner

    @property
    def weight(self) -> Tensor:
        """The layer's weight (out, in / groups, *kernel)."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def conv_groups(self) -> int:
        """Conv-groups the layer has now; a depthwise layer loses some with its channels."""
        return int(getattr(self.layer, "groups", 1))
