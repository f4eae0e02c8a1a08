"""Things looked up by name and held up to a bound of bytes; the least recently used leave first."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Bounded(Generic[T]):
    """A dictionary that holds at most `limit` bytes; what is larger by itself is not held."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        """Bytes of everything held."""
        self._entries: OrderedDict[str, tuple[T, int]] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def get(self, key: str) -> T | None:
        """What is held under `key`, which counts as a use."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def items(self) -> Iterator[tuple[str, T]]:
        """Everything held, which does not count as a use."""
        return ((key, value) for key, (value, _) in self._entries.items())

    def put(self, key: str, value: T, size: int) -> None:
        """Holds a value of `size` bytes."""
        if key in self._entries:
            self.bytes -= self._entries.pop(key)[1]
        if size > self.limit:
            return
        self.make_room(size)
        self._entries[key] = (value, size)
        self.bytes += size

    def make_room(self, size: int) -> None:
        """Lets go of what was used least recently, until so many bytes are free."""
        while self._entries and self.bytes + size > self.limit:
            self.bytes -= self._entries.popitem(last=False)[1][1]
