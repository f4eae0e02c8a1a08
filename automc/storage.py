"""Where studies are kept: a journal file, or a database by URL; and what may go wrong there, in one sentence."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage

from automc import journal
from automc.errors import AutomcError, StudyError


def open_storage(where: str, *, create: bool) -> BaseStorage:
    """The storage at a path or URL; StudyError where a file must exist and does not."""
    path = _file(where)
    if path is not None and not create and not path.is_file():
        raise StudyError(f"A study must exist; there is no {path}: run `automc search` first, or give its path.")
    if "://" in where:
        return _database(where)
    return journal.open_storage(Path(where), writing=create)


@contextlib.contextmanager
def owned(where: str) -> Iterator[None]:
    """Keeps other searches from the file behind a storage; a server looks after itself."""
    path = _file(where)
    if path is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        with readable_errors(where):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(journal.exclusive(path))
        yield


def _database(url: str) -> BaseStorage:
    """Optuna's database storage; SQLite with a write-ahead log, which is four times as fast and survives a kill."""
    from sqlalchemy import event

    storage = optuna.storages.RDBStorage(url)
    if url.startswith("sqlite"):

        @event.listens_for(storage.engine, "connect")
        def _set_pragmas(connection: Any, _record: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")

        storage.engine.dispose()
    return storage


def _file(where: str) -> Path | None:
    """The file behind a storage; None for a server, StudyError for SQLite in memory, which no later command finds."""
    if "://" not in where:
        return Path(where)
    if not where.startswith("sqlite"):
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
    names = [s.study_name for s in storage.get_all_studies()]
    if not names:
        raise StudyError(f"A study must exist; {where} holds none: run `automc search` first.")
    if name is None and len(names) > 1 and usual not in names:
        raise StudyError(
            f"A study must be named where there are several; {where} holds {', '.join(names)}: give --study."
        )
    if name is not None and name not in names:
        raise StudyError(
            f"A study must exist; {where} holds {', '.join(names)} and no {name!r}: give one of these by --study."
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
        text = " ".join(str(error.__cause__ or error).split())[:200]
        raise StudyError(
            f"{where} must be a study's storage; it cannot be used ({text}): give a journal file or a URL."
        ) from error
