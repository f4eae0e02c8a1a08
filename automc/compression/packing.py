"""How weights are stored: the smallest of several exact forms.

    packed   every code in b bits
    bitmap   a bit for each weight, then the codes (or floats) of those that are not zero
    coded    all codes, zeros among them, by the range coder
    gaps     distances between weights that are not zero by the range coder, then their codes, coded too, or floats

Relative indices of fixed width with filler zeros (Han et al. 2016, Deep Compression, section 2) are here to be compared
with: the range coder needs no fillers.
"""

from dataclasses import dataclass
from math import prod
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from automc.compression.entropy import decode, encode
from automc.errors import ArtifactError
from automc.policy import FULL_BITS

Bytes = NDArray[np.uint8]
Form = Literal["packed", "bitmap", "coded", "gaps"]
T = TypeVar("T", Tensor, NDArray[np.int64])


@dataclass(frozen=True, slots=True)
class Stored:
    """How one weight is stored."""

    bits: int
    shape: tuple[int, ...]
    form: Form
    lowest: int = 0
    """Smallest code there may be."""


def pack_floats(weight: Tensor) -> tuple[dict[str, Tensor], Stored | None]:
    """The smallest form of a float weight: its entries by suffix, and how to read them; None where it stays plain."""
    flat = weight.reshape(-1)
    present = (flat != 0).numpy()
    values = flat[torch.from_numpy(present)]
    forms: dict[Form, dict[str, Tensor]] = {
        "bitmap": {".present": _tensor(bitmap(present)), ".values": values},
        "gaps": {".gaps": _blob(gaps_of(present)), ".values": values},
    }
    best = min(forms, key=lambda form: _bytes(forms[form]))
    if _bytes(forms[best]) >= 4 * flat.numel():
        return {"": weight}, None
    return forms[best], Stored(FULL_BITS, tuple(weight.shape), best)


def pack_codes(codes: Tensor, bits: int, lowest: int) -> tuple[dict[str, Tensor], Stored]:
    """The smallest form of integer codes in [lowest, lowest + 2^bits - 1], 0 meaning zero."""
    flat = codes.reshape(-1).numpy()
    present = flat != 0
    forms: dict[Form, dict[str, Tensor]] = {
        "packed": {".codes": _tensor(packed(flat, bits, lowest))},
        "coded": {".codes": _blob(flat)},
        "bitmap": {".present": _tensor(bitmap(present)), ".codes": _tensor(packed(flat[present], bits, lowest))},
        "gaps": {".gaps": _blob(gaps_of(present)), ".codes": _blob(flat[present])},
    }
    best = min(forms, key=lambda form: _bytes(forms[form]))
    return forms[best], Stored(bits, tuple(codes.shape), best, lowest)


def unpack(entries: dict[str, Tensor], how: Stored) -> Tensor:
    """The floats or codes (int64) that were packed, exactly; entries that were not packed so raise ArtifactError.

    Entries may be anybody's; `how` must be of a weight that there is room for.
    """
    count = prod(how.shape)
    present = np.ones(count, dtype=np.bool_)
    if how.form == "bitmap":
        present = unpack_bitmap(entries[".present"].numpy(), count)
    elif how.form == "gaps":
        present = present_of(decode(entries[".gaps"].numpy().tobytes(), count), count)
    left = int(present.sum())
    if how.bits == FULL_BITS:
        floats = torch.zeros(count)
        floats[torch.from_numpy(present)] = _whole(entries[".values"], left)
        return floats.reshape(how.shape)
    stored = entries[".codes"].numpy()
    coded = how.form in ("coded", "gaps")
    flat = np.zeros(count, dtype=np.int64)
    flat[present] = _whole(
        decode(stored.tobytes(), left) if coded else unpacked(stored, how.bits, how.lowest, left), left
    )
    return torch.from_numpy(flat).reshape(how.shape)


def _whole(values: T, count: int) -> T:
    """Values, one for each of `count` weights: a single one would be spread over all."""
    if tuple(values.shape) != (count,):
        raise ArtifactError(
            f"A weight must have a value for each of its {count} entries; here are {tuple(values.shape)}: save the "
            "model again."
        )
    return values


def gaps_of(present: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many zeros lie before each weight that is present."""
    return np.diff(np.flatnonzero(present), prepend=-1) - 1


def present_of(gaps: NDArray[np.int64], count: int) -> NDArray[np.bool_]:
    """The inverse of `gaps_of` for `count` weights."""
    if len(gaps) and (gaps.min() < 0 or gaps.max() >= count or gaps.sum() + len(gaps) > count):
        raise ArtifactError(f"Gaps must lie within {count} weights; these do not: save the model again.")
    present = np.zeros(count, dtype=np.bool_)
    present[np.cumsum(gaps + 1) - 1] = True
    return present


def relative_indices(present: NDArray[np.bool_], bits: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Gaps of fixed width as in Deep Compression: a gap of 2^bits or more takes filler zeros.

    Returns the gaps (each below 2^bits) and which of them stand before a real weight; the others before a filler.
    """
    limit = 2**bits
    gaps = gaps_of(present)
    fillers = gaps // limit
    ends = np.cumsum(fillers + 1) - 1
    found = np.full(int((fillers + 1).sum()), limit - 1, dtype=np.int64)
    real = np.zeros(len(found), dtype=np.bool_)
    found[ends], real[ends] = gaps % limit, True
    return found, real


def _blob(symbols: NDArray[np.int64]) -> Tensor:
    return _tensor(np.frombuffer(encode(symbols), dtype=np.uint8).copy())


def _tensor(data: Bytes) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(data))


def _bytes(entries: dict[str, Tensor]) -> int:
    """What entries take in a file, the header's longer name included."""
    return sum(x.nbytes + 64 for x in entries.values())


def packed(codes: NDArray[np.int64], bits: int, lowest: int) -> Bytes:
    """Codes in [lowest, lowest + 2^bits - 1] in ceil(n bits / 8) bytes."""
    unsigned = (codes.reshape(-1) - lowest).astype(np.uint8)
    return np.packbits(np.unpackbits(unsigned[:, None], axis=1)[:, 8 - bits :])


def unpacked(data: Bytes, bits: int, lowest: int, count: int) -> NDArray[np.int64]:
    """The `count` codes `packed` packed."""
    flat = _flags(data, count * bits).reshape(count, bits)
    weights = 2 ** np.arange(bits - 1, -1, -1, dtype=np.int64)
    codes: NDArray[np.int64] = flat.astype(np.int64) @ weights + lowest
    return codes


def bitmap(present: NDArray[np.bool_]) -> Bytes:
    """One bit for each entry."""
    return np.packbits(present.reshape(-1))


def unpack_bitmap(data: Bytes, count: int) -> NDArray[np.bool_]:
    """The `count` flags of a bitmap."""
    return _flags(data, count).astype(np.bool_)


def _flags(data: Bytes, count: int) -> Bytes:
    """So many bits, which numpy would make up where there are fewer."""
    if data.dtype != np.uint8 or data.shape != (-(-count // 8),):
        raise ArtifactError(
            f"Bits of {count} entries must take {-(-count // 8)} bytes; they do not: save the model again."
        )
    return np.unpackbits(data, count=count)
