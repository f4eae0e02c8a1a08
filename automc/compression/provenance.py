"""What a compressed module carries along: the policy it came from and the structure to rebuild it by."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from automc.compression.packing import bitmap
from automc.compression.structure import Structure
from automc.errors import ArtifactError
from automc.policy import Policy


@dataclass(frozen=True, eq=False, slots=True)
class Provenance:
    """Where a compressed module comes from."""

    policy: Policy
    structure: Structure
    units: dict[str, int]
    """Units of each pruned group before pruning."""
    inputs: tuple[tuple[tuple[int, ...], str], ...]
    """Shape and type of each example input, for tracing the model when it is loaded."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form kept in the model file's header: kept units as hexadecimal bitmaps."""
        kept = {}
        for name, units in self.structure.kept.items():
            present = np.zeros(self.units[name], dtype=np.bool_)
            present[units] = True
            kept[name] = bitmap(present).tobytes().hex()
        return {
            "fingerprint": self.policy.fingerprint,
            "kept": kept,
            "factors": {name: [method, list(ranks)] for name, (method, ranks) in self.structure.factors.items()},
            "without": list(self.structure.without),
            "bits": {name: list(bits) for name, bits in self.structure.bits.items()},
            "inputs": [[list(shape), dtype] for shape, dtype in self.inputs],
        }


def attach(
    module: nn.Module, policy: Policy, structure: Structure, units: dict[str, int], inputs: tuple[Tensor, ...]
) -> nn.Module:
    """Gives a module its provenance, as the plain attribute `automc`."""
    described = tuple((tuple(x.shape), str(x.dtype).removeprefix("torch.")) for x in inputs)
    pruned = {name: units[name] for name in structure.kept}
    object.__setattr__(module, "automc", Provenance(policy, structure, pruned, described))
    return module


def known(module: nn.Module) -> Provenance | None:
    """A module's provenance, if automc made it."""
    found = getattr(module, "automc", None)
    return found if isinstance(found, Provenance) else None


def of(module: nn.Module) -> Provenance:
    """A module's provenance; ArtifactError for one that automc did not make."""
    found = known(module)
    if found is None:
        raise ArtifactError(
            "Only a module that automc.apply or automc.load returned can be saved or exported; this one is none: "
            "apply a policy."
        )
    return found
