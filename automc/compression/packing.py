"""Bits and bytes: integer codes packed to b bits each, and bitmaps of what is not zero. A round trip is exact."""

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def pack_codes(codes: NDArray[np.int64], bits: int) -> Bytes:
    """Packs signed codes in [-(2^(bits-1) - 1), 2^(bits-1) - 1] into ceil(n bits / 8) bytes."""
    unsigned = (codes.reshape(-1) + 2 ** (bits - 1) - 1).astype(np.uint8)
    return np.packbits(np.unpackbits(unsigned[:, None], axis=1)[:, 8 - bits :])


def unpack_codes(packed: Bytes, bits: int, count: int) -> NDArray[np.int64]:
    """The `count` codes `pack_codes` packed."""
    flat = np.unpackbits(packed, count=count * bits).reshape(count, bits)
    weights = 2 ** np.arange(bits - 1, -1, -1, dtype=np.int64)
    codes: NDArray[np.int64] = flat.astype(np.int64) @ weights - (2 ** (bits - 1) - 1)
    return codes


def pack_bitmap(present: NDArray[np.bool_]) -> Bytes:
    """One bit for each entry."""
    return np.packbits(present.reshape(-1))


def unpack_bitmap(packed: Bytes, count: int) -> NDArray[np.bool_]:
    """The `count` flags `pack_bitmap` packed."""
    return np.unpackbits(packed, count=count).astype(np.bool_)
