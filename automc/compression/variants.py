"""What one layer becomes by one decision when nothing else changes: its weights and its relative output error.

A variant is settled from the dense model's own moments (the refit towards the layer's own dense output), so it depends
on the decision alone: pattern, criterion, sparsity, bits, codebook, rank. The error is ||(W' - W) X||^2 / ||W X||^2
over the calibration rows X minus their mean, since a norm or a bias takes up the shift of the mean.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from automc.compression.place import Place
from automc.compression.regression import Regression, rows_of
from automc.compression.settle import Known, settle
from automc.compression.structure import Factors, opened
from automc.criteria.criterion import fan_in_view
from automc.graph.facts import LayerFacts
from automc.graph.ranks import Shape, ranks
from automc.policy import LayerDecision, Recipe

_ERROR = "error"


@dataclass(frozen=True, eq=False, slots=True)
class Variant:
    """A settled layer."""

    state: Mapping[str, Tensor]
    """State of the layer as `opened` makes it, without the bias."""
    error: float

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "Variant":
        """From what `tensors` gave."""
        return cls({name: x for name, x in tensors.items() if name != _ERROR}, float(tensors[_ERROR]))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything as tensors, to be stored."""
        return {**self.state, _ERROR: torch.tensor(self.error, dtype=torch.float64)}

    def settle_(self, holder: nn.Module) -> None:
        """Gives a layer of this form the variant's values; what is not among them stays."""
        set_weights(holder, self.state)


def settled(
    layer: nn.Module,
    facts: LayerFacts,
    decision: LayerDecision,
    recipe: Recipe,
    fit: Regression | None,
    known: Known,
) -> Variant:
    """The variant of a dense layer; `fit` holds its moments, None where no input rows can be formed."""
    rows = fan_in_view(layer.weight.detach())  # type: ignore[operator]
    shares = decision.codebook if decision.weight_bits < 32 else "uniform"
    holder = opened(copy.deepcopy(layer), (decision.weight_bits, 32, shares), factors_of(facts, decision))
    place = Place(facts, decision, holder)
    given = rows if decision.rank < 1 or (fit is not None and recipe.reconstruct != "none") else None
    settle(place, recipe, fit, given, known)
    return Variant(weights_of(holder), relative_error(rows, rows_of(place.layer).detach(), fit))


def weights_of(holder: nn.Module) -> dict[str, Tensor]:
    """Copies of a settled layer's state, save for its bias and for what rounds its inputs; named alike whether or not
    something does, since that does not change them."""
    state = holder.state_dict().items()
    return {_name(k): x.detach().clone() for k, x in state if not k.endswith("bias") and "input" not in k.split(".")}


def set_weights(holder: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives a layer of the same form what `weights_of` took; what is not among its state stays out."""
    own = {name: weights[_name(name)] for name in holder.state_dict() if _name(name) in weights}
    holder.load_state_dict(own, strict=False)


def _name(entry: str) -> str:
    """An entry's name in the layer itself, not in the holder that quantizes it."""
    return ".".join(part for part in entry.split(".") if part != "layer")


def factors_of(facts: LayerFacts, decision: LayerDecision, sides: tuple[int, int] | None = None) -> Factors | None:
    """How a layer is factored, and to which ranks with so many inputs and outputs left; None for a whole one."""
    if decision.rank == 1:
        return None
    shape = Shape.of(facts) if sides is None else Shape.of(facts).narrowed(*sides)
    return decision.factorization, ranks(shape, decision.factorization, decision.rank)


def relative_error(rows: Tensor, changed: Tensor, fit: Regression | None) -> float:
    """Relative squared error of changed weight rows (out, n), of the weights alone where no moments are known."""
    rows, changed = rows.to(torch.float64), changed.to(torch.float64)
    if fit is None:
        return float((changed - rows).square().sum() / rows.square().sum().clamp_min(1e-30))
    lost, whole = (float(fit.output(x)[1].sum()) for x in (changed - rows, rows))
    return lost / max(whole, 1e-30)
