"""Entropy coding of integer symbols: Huffman and a range coder, both of the `constriction` library.

A blob says all about itself: which method, how many symbols, which alphabet with what counts, then the code words. The
alphabet is coded as gaps between sorted symbols and counts, all as varints, so a blob's length is what a file takes.
Probabilities are the counts over their sum, integers on every platform; Huffman's code lengths follow from the counts
alone (Huffman 1952; ties by the smaller symbol), the range coder is constriction's 32-bit one with 24-bit
probabilities. Decoding what encoding gave is exact.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from automc.errors import ArtifactError

Symbols = NDArray[np.int64]
Method = Literal["huffman", "range"]
_METHODS: tuple[Method, ...] = ("huffman", "range")
MOST_SYMBOLS = 2**31


def encode(symbols: Symbols, method: Method = "range") -> bytes:
    """A blob that `decode` reads back; symbols are integers of any shape, read in memory order."""
    flat = np.ascontiguousarray(symbols, dtype=np.int64).reshape(-1)
    alphabet, indices, counts = np.unique(flat, return_inverse=True, return_counts=True)
    head = bytes([_METHODS.index(method)]) + _varints([len(flat), len(alphabet)])
    if len(alphabet) == 0:
        return head
    gaps = np.diff(alphabet)
    head += _varints([_zigzag(int(alphabet[0])), *gaps.tolist(), *counts.tolist()])
    if len(alphabet) == 1:
        return head
    return head + _coded(indices.reshape(-1).astype(np.int32), counts, method).astype("<u4").tobytes()


def decode(blob: bytes, most: int = MOST_SYMBOLS) -> Symbols:
    """The symbols of a blob, one-dimensional and at most `most`; anything `encode` did not write raises ArtifactError.

    A few bytes may promise any number of equal symbols: whoever knows how many there can be says so.
    """
    try:
        return _decoded(blob, most)
    except ArtifactError:
        raise
    except Exception as error:  # the coder's own complaints about words that fit no symbol
        raise _damaged(str(error)) from error


def entropy_bits(symbols: Symbols) -> float:
    """Shannon's lower bound for coding the symbols one by one with their own frequencies, in bits."""
    counts = np.unique(symbols, return_counts=True)[1].astype(np.float64)
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def _decoded(blob: bytes, most: int) -> Symbols:
    if not blob or blob[0] >= len(_METHODS):
        raise _damaged("it names no known method")
    reader = _Varints(blob, 1)
    count, size = next(reader), next(reader)
    if count > most or size > count or (count > 0) != (size > 0):
        raise _damaged(f"it promises {count} symbols of {size} kinds")
    if not count:
        return np.zeros(0, dtype=np.int64)
    if size > len(blob):
        raise _damaged("it is shorter than its alphabet")
    first = _unzigzag(next(reader))
    gaps = [next(reader) for _ in range(size - 1)]
    counts = np.array([next(reader) for _ in range(size)], dtype=np.int64)
    if any(gap < 1 for gap in gaps) or counts.min() < 1 or int(counts.sum()) != count:
        raise _damaged("its counts do not add up")
    alphabet = first + np.concatenate([[0], np.cumsum(np.array(gaps, dtype=np.int64))]).astype(np.int64)
    if size == 1:
        return np.full(count, alphabet[0], dtype=np.int64)
    rest = blob[reader.position :]
    if len(rest) % 4:
        raise _damaged("it ends within a word")
    indices = _uncoded(np.frombuffer(rest, dtype="<u4").astype(np.uint32), counts, count, _METHODS[blob[0]])
    if not np.array_equal(np.bincount(indices, minlength=size), counts):
        raise _damaged("its symbols are not those it counts")
    found: Symbols = alphabet[indices]
    return found


def _coded(indices: NDArray[np.int32], counts: Symbols, method: Method) -> NDArray[np.uint32]:
    import constriction

    if method == "range":
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode(indices, _model(counts))
        return np.asarray(encoder.get_compressed(), dtype=np.uint32)
    codebook = constriction.symbol.huffman.EncoderHuffmanTree(counts.astype(np.float32))
    queue = constriction.symbol.QueueEncoder()
    for index in indices.tolist():
        queue.encode_symbol(index, codebook)
    return np.asarray(queue.get_compressed()[0], dtype=np.uint32)


def _uncoded(words: NDArray[np.uint32], counts: Symbols, count: int, method: Method) -> NDArray[np.int64]:
    import constriction

    if method == "range":
        decoder = constriction.stream.queue.RangeDecoder(words)
        return np.asarray(decoder.decode(_model(counts), count), dtype=np.int64)
    codebook = constriction.symbol.huffman.DecoderHuffmanTree(counts.astype(np.float32))
    queue = constriction.symbol.QueueDecoder(words)
    return np.array([queue.decode_symbol(codebook) for _ in range(count)], dtype=np.int64)


def _model(counts: Symbols):  # type: ignore[no-untyped-def]
    import constriction

    return constriction.stream.model.Categorical(counts.astype(np.float64) / counts.sum(), perfect=False)


def _varints(numbers: list[int]) -> bytes:
    out = bytearray()
    for number in numbers:
        while number >= 128:
            out.append(number & 127 | 128)
            number >>= 7
        out.append(number)
    return bytes(out)


class _Varints(Iterator[int]):
    """Reads varints from a place in a blob on."""

    def __init__(self, blob: bytes, position: int) -> None:
        self._blob, self.position = blob, position

    def __next__(self) -> int:
        number = shift = 0
        while True:
            if self.position >= len(self._blob) or shift > 63:
                raise _damaged("it ends within its head")
            byte = self._blob[self.position]
            self.position += 1
            number |= (byte & 127) << shift
            if byte < 128:
                return number
            shift += 7


def _zigzag(number: int) -> int:
    return number << 1 if number >= 0 else (-number << 1) - 1


def _unzigzag(number: int) -> int:
    return number >> 1 if not number & 1 else -(number + 1 >> 1)


def _damaged(what: str) -> ArtifactError:
    return ArtifactError(f"A coded array must be as it was written; this one is damaged ({what}): save it again.")
