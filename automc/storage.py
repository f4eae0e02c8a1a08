"""Where studies are kept: a journal file, or a database by URL; and what may go wrong there, in one sentence."""

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.storages import BaseStorage, JournalStorage

from automc import journal
from automc.errors import AutomcError, StudyError
from automc.visible import brief, visible

CLAIMS = " claims"
"""What the study of claims is called after the name of the one it belongs to (see `automc.claims`)."""
T = TypeVar("T")
_log = logging.getLogger("automc")
WAITING = 600.0
"""Seconds that a server may be away while a search runs."""
CONNECTING = 5
"""How often a server is tried before it counts as not there."""


def open_storage(where: str, *, create: bool) -> BaseStorage:
    """The storage at a path or URL; StudyError where a file must exist and does not."""
    path = _file(where)
    if path is not None and not create and not path.is_file():
        raise StudyError(f"A study must exist; there is no {path}: run `automc search` first, or give its path.")
    if path is not None and path.exists() and not path.is_file():
        raise StudyError(f"A study must be kept in a file; {path} is something else: name a file, runs/name.journal.")
    if "://" in where:
        return _database(where)
    return journal.open_storage(Path(where), writing=create)


@contextlib.contextmanager
def owned(where: str, *, shared: bool = False) -> Iterator[None]:
    """Keeps other searches from the file behind a storage, or those that do not share it; a server looks after
    itself."""
    with _holding(where, lambda path: journal.owned(path, shared=shared)):
        yield


@contextlib.contextmanager
def making(where: str, *, shared: bool = False) -> Iterator[None]:
    """As `owned`, while a study is made or found; searches that share it come one after the other."""
    if shared and where.startswith("sqlite"):
        raise StudyError(
            f"A study to be shared must be in a journal file or on a server; {where} fails where several write: give "
            "runs/name.journal, or the URL of PostgreSQL or MySQL."
        )
    with _holding(where, journal.making if shared else journal.owned):
        yield


@contextlib.contextmanager
def behind(where: str, backend: BaseStorage) -> Iterator[None]:
    """While open, what is appended to a journal goes to the disk meanwhile (see `Journal.behind`); a database does as
    it does."""
    held = backend._backend if isinstance(backend, JournalStorage) else None
    if not isinstance(held, journal.Journal):
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(held.behind())
        try:
            yield
        finally:
            with readable_errors(where):
                stack.close()


@contextlib.contextmanager
def _holding(where: str, lock: Callable[[Path], contextlib.AbstractContextManager[None]]) -> Iterator[None]:
    """While the file behind a storage, if there is one, is locked."""
    path = _file(where)
    if path is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        with readable_errors(where):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock(path))
        yield


def _database(url: str) -> BaseStorage:
    """Optuna's database storage; SQLite with a write-ahead log, which is four times as fast and survives a kill."""
    from sqlalchemy import event

    storage = _connected(url)
    if url.startswith("sqlite"):

        @event.listens_for(storage.engine, "connect")
        def _set_pragmas(connection: Any, _record: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")

        storage.engine.dispose()
    return storage


def _connected(url: str) -> optuna.storages.RDBStorage:
    """Optuna's storage on a server; of several that make its tables at once, all but one have to look again."""
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    for attempt in range(1, CONNECTING + 1):
        try:
            return optuna.storages.RDBStorage(_driven(url), engine_kwargs={"pool_pre_ping": True})
        except SQLAlchemyError as error:
            passes = _is_server(url) or isinstance(error, OperationalError)  # a file that is no database stays so
            if attempt == CONNECTING or not passes:
                raise
            time.sleep(0.2 * attempt)
        except ImportError as error:
            raise StudyError(
                f"A study on a server must have a driver; {_short(error)} for {shown(url)}: pip install "
                "automc[postgres], or what another database needs."
            ) from error
    raise AssertionError("unreachable")


def _driven(url: str) -> str:
    """A URL of PostgreSQL with the driver that automc[postgres] brings, unless it names one or the usual one is here.

    SQLAlchemy 2.1 takes psycopg where none is named, and 2.0 psycopg2.
    """
    scheme, separator, rest = url.partition("://")
    return f"{scheme}+psycopg2{separator}{rest}" if scheme == "postgresql" and not find_spec("psycopg") else url


def _file(where: str) -> Path | None:
    """The file behind a storage; None for a server, StudyError for SQLite in memory, which no later command finds."""
    if "://" not in where:
        return Path(where)
    if _is_server(where):
        return None
    path = where.partition(":///")[2]
    if not path.partition("?")[0] or ":memory:" in path or "mode=memory" in path:
        raise StudyError(
            f"A study must be kept in a file or on a server; {where} is gone with its process: give a journal file or "
            "sqlite:///name.db."
        )
    return Path(path)


def find_name(storage: BaseStorage, where: str, name: str | None = None, usual: str | None = None) -> str:
    """The name of a study in a storage: `name`, or else `usual` where there is such a one, or else the only one.

    StudyError, with the names there are, where that is none.
    """
    every = [s.study_name for s in storage.get_all_studies()]
    names = [n for n in every if not (n.endswith(CLAIMS) and n.removesuffix(CLAIMS) in every)]
    if not names:
        raise StudyError(f"A study must exist; {where} holds none: run `automc search` first.")
    if name is None and len(names) > 1 and usual not in names:
        raise StudyError(
            f"A study must be named where there are several; {where} holds {_listed(names)}: give --study."
        )
    if name is not None and name not in names:
        raise StudyError(
            f"A study must exist; {where} holds {_listed(names)} and no {brief(name)}: give one of these by --study."
        )
    return name or (usual if usual in names else None) or names[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Optuna's notes on studies made and on its experimental calls are no news to the user."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def patiently(where: str, action: Callable[[], T]) -> T:
    """What an action gives; a server that does not answer is asked again for as long as `WAITING`, which is said.

    The action may have been done although it seemed to fail, and is then done twice.
    """
    from sqlalchemy.exc import DBAPIError

    waited, pause = 0.0, 0.25
    while True:
        try:
            return action()
        except (DBAPIError, optuna.exceptions.StorageInternalError) as error:
            if not _is_server(where) or waited >= WAITING:
                raise
            if not waited:
                _log.warning(
                    "%s does not answer (%s); it is asked again for %g s.", shown(where), _short(error), WAITING
                )
        time.sleep(pause)
        waited, pause = waited + pause, min(2 * pause, 8.0)


def shown(where: str) -> str:
    """A storage's path or URL as it may be printed: without a password."""
    if "://" not in where:
        return where
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(where).render_as_string(hide_password=True)
    except ArgumentError:
        return where


@contextlib.contextmanager
def readable_errors(where: str) -> Iterator[None]:
    """Turns what a storage raises into one StudyError that names it."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except AutomcError:
        raise
    except OSError as error:
        raise StudyError(
            f"{error.filename or where} must be readable and writable; the system says {error.strerror or error}: free "
            "space or mend its rights, then repeat the command (nothing recorded is lost)."
        ) from error
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, *journal.BROKEN) as error:
        raise StudyError(
            f"{shown(where)} must be a study's storage; it cannot be used ({_short(error)}): give a journal file or a "
            "URL."
        ) from error


def _short(error: Exception) -> str:
    return visible(" ".join(str(error.__cause__ or error).split())[:200])


def _listed(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(visible(name)[:80] for name in names[:most]) + more


def _is_server(where: str) -> bool:
    return "://" in where and not where.startswith("sqlite")
