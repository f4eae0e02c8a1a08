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
    """The file behind a storage; None for a server."""
    if "://" not in where:
        return Path(where)
    return Path(where.partition(":///")[2]) if where.startswith("sqlite") else None


def only_name(storage: BaseStorage, where: str) -> str:
    """The name of the one study a storage holds; StudyError where there are none or several."""
    names = [s.study_name for s in storage.get_all_studies()]
    if len(names) == 1:
        return names[0]
    if not names:
        raise StudyError(f"A study must exist; {where} holds none: run `automc search` first.")
    raise StudyError(f"A study must be named where there are several; {where} holds {', '.join(names)}: give --study.")


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
    except KeyError as error:
        raise StudyError(f"A study must exist; {where} has none of that name: see its names with --study.") from error
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, *journal.BROKEN) as error:
        text = " ".join(str(error.__cause__ or error).split())[:200]
        raise StudyError(
            f"{where} must be a study's storage; it cannot be used ({text}): give a journal file or a URL."
        ) from error
