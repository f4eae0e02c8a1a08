"""The journal file behind a study: Optuna's format, made safe against kills and full disks.

Optuna appends one JSON line an operation. A line torn by a kill or a full disk reads fine, but the next append is glued
to it and from then on nothing can be read (Optuna 5.0). Deviations from Optuna's own file backend: an append that
fails is taken back at once, an append after somebody else's torn line repairs the file first, and a lock whose owner
is dead is removed. What a repair cuts off is kept in `<file>.corrupt`.
"""

import contextlib
import errno
import io
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from automc.errors import StudyError
from automc.files import write_atomic
from automc.visible import visible

_START = b'{"op_code":'
_log = logging.getLogger("automc")
PATIENCE = 5.0
"""Seconds that searches which share a file wait for each other's first look at it."""
GRACE = 30.0
"""Seconds after which the lock of an append, which takes milliseconds, is that of somebody who is no longer there."""

BROKEN = (ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, RecursionError)
"""What Optuna raises while it reads a damaged journal."""
MOST_BYTES = 2**31
"""That a journal may have."""
NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""How files beside a journal are opened: a folder from elsewhere may have links there, or pipes."""


class Lock(JournalFileSymlinkLock):
    """The lock of a journal's appends, a link beside it, as Optuna has it.

    Optuna looks at the file that the link leads to, to see how old the lock is, and where there is none, never ends:
    that of a search that was killed, begun in another folder, or a link from elsewhere. Here the link itself is looked
    at.
    """

    def __init__(self, path: Path) -> None:
        self._target, self._link = str(path.absolute()), path.with_name(f"{path.name}.lock")
        super().__init__(self._target)

    def acquire(self) -> bool:
        """Waits for the lock; one that has not changed hands for `GRACE` seconds is nobody's any more."""
        pause, since, holder = 0.001, time.monotonic(), (0, 0)
        while True:
            with contextlib.suppress(FileExistsError):
                os.symlink(self._target, self._link)
                return True
            with contextlib.suppress(FileNotFoundError):  # it has just been released
                found = os.lstat(self._link)
                if holder != (found.st_ino, found.st_mtime_ns):
                    since, holder = time.monotonic(), (found.st_ino, found.st_mtime_ns)
                elif time.monotonic() - since > GRACE:
                    _log.warning("%s: removed a lock that was held for more than %g s.", self._link, GRACE)
                    self.release()
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def release(self) -> None:
        """Removes the link."""
        self._link.unlink(missing_ok=True)


class Journal(JournalFileBackend):
    """Optuna's journal file, except that an append happens wholly or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._append_lock = Lock(path)
        self._syncing: Future[None] | None = None
        """The last append on its way to the disk."""
        self._behind: ThreadPoolExecutor | None = None
        super().__init__(str(path), self._append_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Appends operations under the lock; on OSError the file is as it was."""
        data = b"".join(json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs)
        self._settle()
        with _held(self._append_lock):
            _cut_torn_tail(self.path)
            if self._behind is None:
                _append(self.path, data)
            else:
                self._syncing = self._behind.submit(_sync, _written(self.path, data)[0])

    @contextlib.contextmanager
    def behind(self) -> Iterator[None]:
        """While open, what is appended goes to the disk behind the caller's back, who is held up by the next append at
        most, and in the end.

        It is in the file at once, so that no end of the process loses it; what the power's end may cost is the last
        append. OSError where the disk does not take it.
        """
        with ThreadPoolExecutor(1, "automc-journal") as self._behind:
            try:
                yield
            finally:
                self._behind = None
                self._settle()

    def _settle(self) -> None:
        """Waits until the last append is on the disk."""
        syncing, self._syncing = self._syncing, None
        if syncing is not None:
            syncing.result()


def open_storage(path: Path, *, writing: bool) -> JournalStorage:
    """The storage in a journal file, which is repaired first if that is needed to read it, or to write to it.

    Whoever opens it for writing must own it by `owned`, or be making it.
    """
    if path.is_file():
        _refuse_other_kinds(path)
        if writing and not _ends_well(path):
            repair(path)
    try:
        return JournalStorage(Journal(path))
    except BROKEN:
        with contextlib.nullcontext() if writing else owned(path):
            repair(path)
        return JournalStorage(Journal(path))


def repair(path: Path) -> int:
    """Removes every line that is no whole record, under the journal's lock; returns the number of bytes removed.

    Removed bytes are appended to `<path>.corrupt` first. A record glued to the end of a torn one is saved.
    """
    with _held(Lock(path)):
        data = path.read_bytes()
        kept, removed = _split(data)
        if removed:
            _keep_aside(path, removed)
            if data.startswith(kept):
                os.truncate(path, len(kept))  # needs no free space
            else:
                write_atomic(path, kept)
        return len(removed)


@contextlib.contextmanager
def owned(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Lets one process at a time search on a study, or several that agreed to share it; a lock left by a dead one is
    removed.

    The owner file is locked by the kernel, so it falls free with its process. Content in it that nobody holds means the
    owner was killed; the append lock it may have left is then nobody's.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such lock, and its searches must look after themselves
        yield
        return
    owner = path.with_name(f".{path.name}.owner")
    descriptor = os.open(owner, os.O_RDWR | os.O_CREAT | NO_LINK, 0o644)
    try:
        alone = _lock_or_refuse(fcntl, descriptor, path, shared=shared)
        if alone:
            previous = visible(os.read(descriptor, 200).decode(errors="replace"))
            if previous:
                _remove_dead_lock(path, previous)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        if shared:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        try:
            yield
        finally:
            if not shared:  # others may go on; what the first of them wrote says nothing of these
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def making(path: Path) -> Iterator[None]:
    """Has processes make the study of a file one after the other."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(path.with_name(f".{path.name}.making"), os.O_RDWR | os.O_CREAT | NO_LINK, 0o644)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _refuse_other_kinds(path: Path) -> None:
    with path.open("rb") as file:
        begin, size = file.read(len(_START)), file.seek(0, os.SEEK_END)
    if not _START.startswith(begin):
        raise StudyError(f"A study must be an automc journal; {path} is another kind of file: give a .journal file.")
    if size > MOST_BYTES:
        raise StudyError(
            f"A journal must have at most {MOST_BYTES} bytes, since all of it is read; {path} has {size}: search anew, "
            "and keep what is larger in a database."
        )


def _ends_well(path: Path) -> bool:
    """Whether the last line is a whole record; every earlier one is checked when Optuna reads the file."""
    with path.open("rb") as file:
        size, reach = file.seek(0, os.SEEK_END), 1 << 16
        while True:
            file.seek(max(0, size - reach))
            tail = file.read()
            lines = tail.splitlines(keepends=True)
            if len(lines) > 1 or reach >= size:
                return not lines or _whole_record(lines[-1]) == lines[-1]
            reach *= 2


def _lock_or_refuse(fcntl: Any, descriptor: int, path: Path, *, shared: bool) -> bool:
    """Locks the owner file, and says whether nobody else had it."""
    if _locked(fcntl, descriptor, fcntl.LOCK_EX):
        return True
    until = time.monotonic() + PATIENCE
    while shared and time.monotonic() < until:  # one that also shares may just be at its first look
        if _locked(fcntl, descriptor, fcntl.LOCK_SH):
            return False
        time.sleep(PATIENCE / 100)
    holder = visible(os.read(descriptor, 200).decode(errors="replace")) or "another process"
    raise StudyError(
        f"One search at a time may write {path}, unless all are told to share it; {holder} is doing so: wait for it, "
        "or give another --study name."
    )


def _locked(fcntl: Any, descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)  # on a file system without locks all may
    return True


def _remove_dead_lock(path: Path, previous: str) -> None:
    lock = path.with_name(path.name + ".lock")
    if lock.is_symlink():
        lock.unlink(missing_ok=True)
        _log.warning("%s: removed the lock of %s, which was killed.", path, previous)


@contextlib.contextmanager
def _held(lock: Lock) -> Iterator[None]:
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _append(path: Path, data: bytes, how: int = 0) -> None:
    """Writes at the end and syncs; on any failure cuts the file back to what it was."""
    descriptor, size = _written(path, data, how)
    try:
        _sync(descriptor)
    except BaseException:
        os.truncate(path, size)
        raise


def _written(path: Path, data: bytes, how: int = 0) -> tuple[int, int]:
    """An open file to whose end data was written, and its size before; on any failure the file is as it was."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | how, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(descriptor, left) :]
        except BaseException:
            os.ftruncate(descriptor, size)
            raise
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, size


def _sync(descriptor: int) -> None:
    """Has the disk take what was written to an open file, and closes it."""
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cut_torn_tail(path: Path) -> None:
    """Cuts what stands after the last line end; the journal's lock must be held."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size == 0:
                return
            file.seek(size - 1)
            if file.read(1) == b"\n":
                return
            file.seek(0)
            end = file.read().rfind(b"\n") + 1
            file.seek(end)
            _keep_aside(path, file.read())
    except FileNotFoundError:
        return
    os.truncate(path, end)


def _split(data: bytes) -> tuple[bytes, bytes]:
    """Whole records, and everything else."""
    kept, removed = [], []
    for line in io.BytesIO(data):
        good = _whole_record(line)
        removed.append(line[: len(line) - len(good)])
        kept.append(good)
    return b"".join(kept), b"".join(removed)


def _whole_record(line: bytes) -> bytes:
    """The line if it is a record, the record at its end if something torn is glued before it, or nothing."""
    if not line.endswith(b"\n"):
        return b""
    for start in (0, line.rfind(_START)):
        try:
            json.loads(line[max(start, 0) :])
        except (ValueError, RecursionError):
            continue
        return line[start:] if line.startswith(_START, start) else b""
    return b""


def _keep_aside(path: Path, removed: bytes) -> None:
    aside = path.with_name(path.name + ".corrupt")
    _append(aside, removed + b"\n" * (not removed.endswith(b"\n")), NO_LINK)
    _log.warning("%s: removed %d bytes of a torn record; they are kept in %s.", path, len(removed), aside)
