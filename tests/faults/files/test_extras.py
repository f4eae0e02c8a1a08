"""Packages that are extras: without any of them digits are searched, and what needs one says how to get it."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
USERS = [extra for extra in EXTRAS if extra != "dev"]
NAMED_OTHERWISE = {"psycopg2-binary": "psycopg2"}
CHILD = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import automc
for name in automc.__all__:
    getattr(automc, name)
from automc import cli
for command in {commands!r}:
    try:
        cli.main(command)
    except SystemExit as stopped:
        assert stopped.code == 0
"""
ASKING = """
from automc.agent import AgentSetting
from automc.leaving.export import ready
from automc.registry import AGENTS
from automc.storage import open_storage
for ask in (
    lambda: AGENTS.load("td3")(AgentSetting(3, 1, 2)),
    lambda: ready("model.onnx", "onnx"),
    lambda: open_storage("postgresql://me@localhost/x", create=True),
):
    try:
        ask()
    except automc.AutomcError as error:
        print(error)
"""
"""For the agent, the format and the driver of `NEEDED`."""
SEARCH = ("search", "digits", "--budget", "macs<=50%", "--searcher", "random", "--trials", "2", "--study", "x")
NEEDED = ("sb3", "onnx", "postgres")


def modules(extra: str) -> tuple[str, ...]:
    """What the packages of an extra are imported as."""
    names = [re.split(r"[\[<>=,;\s]", requirement)[0] for requirement in EXTRAS[extra]]
    return tuple(NAMED_OTHERWISE.get(name, name.replace("-", "_")) for name in names)


def ran(folder: Path, blocked: tuple[str, ...], *commands: tuple[str, ...], then: str = "") -> str:
    """What commands, and then some code, say in a process where some packages cannot be imported."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CHILD.format(blocked=blocked, commands=commands) + then]
    done = subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.slow
def test_without_any_extra_digits_are_searched_and_what_needs_one_names_it(tmp_path: Path) -> None:
    blocked = (*(name for extra in USERS for name in modules(extra)), "psycopg")
    said = ran(tmp_path, blocked, SEARCH, then=ASKING)
    assert all(f"pip install automc[{e}]" in line for e, line in zip(NEEDED, said.splitlines()[-3:], strict=True)), said
    assert "2 trials: 2 scored in full" in said
    assert set(NEEDED) <= set(USERS)


@pytest.mark.slow
@pytest.mark.parametrize("extra", USERS)
def test_without_one_extra_digits_are_searched_saved_and_exported(extra: str, tmp_path: Path) -> None:
    later = (("apply", "x", "--out", "small"), ("evaluate", "small"), ("export", "small", "--format", "pt2"))
    assert "2 trials: 2 scored in full" in ran(tmp_path, modules(extra), SEARCH, *later)


@pytest.mark.slow
@pytest.mark.parametrize("package", ["ray", "gymnasium", "plotly", "pyarrow", "PIL", "cmaes"])
def test_a_package_that_a_search_of_digits_has_no_use_for_is_not_asked_for(package: str, tmp_path: Path) -> None:
    assert "2 trials: 2 scored in full" in ran(tmp_path, (package,), SEARCH)
