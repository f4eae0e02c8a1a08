"""A layer whose values are open, and what is decided for it."""

from dataclasses import dataclass

from torch import Tensor, nn

from automc.compression.chains import FactoredLayer
from automc.compression.quantize import ActivationQuantizer, QuantizedLayer, bare
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
        return bare(self.holder)

    @property
    def quantizers(self) -> list[ActivationQuantizer | None]:
        """What rounds the input of the layer, or of each of its factors."""
        parts = self.holder.parts if isinstance(self.holder, FactoredLayer) else [self.holder]
        return [part.input if isinstance(part, QuantizedLayer) else None for part in parts]

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
