"""Imports run downward only: the table of DESIGN section "layout", held against the source.

A module may import what stands in a lower row, its own package, and the neighbours in its row that SIDEWAYS names.
A file that no entry of the table covers fails: the table stays complete.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {"automc": ROOT / "automc", "automc.agents": ROOT / "agents", "automc.search_spaces": ROOT / "search_spaces"}

ROWS = {
    "automc.errors": 0,
    "automc.registry": 0,
    "automc.pattern": 0,
    "automc.policy": 0,
    "automc.budget": 0,
    "automc.evaluation": 0,
    "automc.pareto": 0,
    "automc.files": 0,
    "automc.visible": 0,
    "automc.class_dimension": 0,
    "automc.graph": 1,
    "automc.task": 1,
    "automc.criteria": 2,
    "automc.costs": 2,
    "automc.kernels": 2,
    "automc.space": 3,
    "automc.wider": 3,
    "automc.projection": 3,
    "automc.paying": 3,
    "automc.repair": 3,
    "automc.compression": 3,
    "automc.scoring": 3,
    "automc.deployment": 3,
    "automc.study": 4,
    "automc.description": 4,
    "automc.claims": 4,
    "automc.storage": 4,
    "automc.journal": 4,
    "automc.distributions": 4,
    "automc.loop": 4,
    "automc.executors": 4,
    "automc.searcher": 4,
    "automc.agent": 4,
    "automc.episode": 4,
    "automc.rewards": 4,
    "automc.recovery": 4,
    "automc.callbacks": 5,
    "automc.env": 5,
    "automc.earlier": 5,
    "automc.searchers": 5,
    "automc.artifact": 6,
    "automc.saved": 6,
    "automc.leaving": 6,
    "automc.api": 6,
    "automc.begin": 6,
    "automc.setting": 6,
    "automc.profiling": 6,
    "automc.workers": 6,
    "automc.report": 6,
    "automc.report.progress": 6,
    "automc.report.text": 6,
    "automc.tasks": 6,
    "automc.tuning": 6,
    "automc.testing": 6,
    "automc.cli": 6,
    "automc.__main__": 6,
    "automc": 7,  # the public names, resolved on first use
}

ROW_0 = {name for name, row in ROWS.items() if row == 0}

# Neighbours in the same row that may be imported nevertheless, one way only.
SIDEWAYS = {
    "automc.registry": {"automc.errors", "automc.visible"},
    "automc.pattern": {"automc.errors", "automc.visible"},
    "automc.policy": {"automc.errors", "automc.files", "automc.pattern", "automc.visible"},
    "automc.files": {"automc.errors"},
    "automc.budget": {"automc.errors", "automc.registry"},
    "automc.evaluation": {"automc.errors", "automc.policy", "automc.visible"},
    "automc.pareto": {"automc.errors", "automc.evaluation"},
    "automc.wider": {"automc.space"},
    "automc.projection": {"automc.space", "automc.wider"},
    "automc.repair": {"automc.projection", "automc.space"},
    "automc.compression": {"automc.space"},
    "automc.paying": {"automc.projection", "automc.space"},
    "automc.scoring": {"automc.compression", "automc.projection", "automc.space"},
    "automc.deployment": {"automc.compression", "automc.projection", "automc.scoring", "automc.space"},
    "automc.storage": {"automc.journal"},
    "automc.claims": {"automc.journal", "automc.storage"},
    "automc.study": {"automc.claims", "automc.description", "automc.storage", "automc.distributions"},
    "automc.loop": {"automc.claims", "automc.study", "automc.executors", "automc.searcher"},
    "automc.episode": {"automc.agent", "automc.rewards", "automc.searcher"},
    "automc.searchers": {"automc.env"},
    "automc.report.progress": {"automc.report.text"},
    "automc.setting": {"automc.tasks"},
    "automc.saved": {"automc.artifact", "automc.tasks"},
    "automc.profiling": {"automc.setting"},
    "automc.workers": {"automc.setting", "automc.tasks"},
    "automc.begin": {"automc.profiling", "automc.setting", "automc.tasks"},
    "automc.api": {
        "automc.begin",
        "automc.profiling",
        "automc.setting",
        "automc.report.progress",
        "automc.tasks",
        "automc.workers",
    },
    "automc.tuning": {"automc.begin", "automc.profiling", "automc.workers"},
    "automc.report": {
        "automc.setting",
        "automc.artifact",
        "automc.saved",
        "automc.tasks",
        "automc.report.progress",
        "automc.report.text",
    },
    "automc.testing": {"automc.tasks"},
    "automc.__main__": {"automc.cli"},
    "automc.cli": {
        "automc.api",
        "automc.setting",
        "automc.artifact",
        "automc.saved",
        "automc.leaving",
        "automc.profiling",
        "automc.report",
        "automc.report.progress",
        "automc.report.text",
        "automc.tasks",
        "automc.workers",
    },
}

# Packages that see less than their row would allow.
ONLY = {
    "automc.agents": ROW_0 | {"automc.agent"},
    "automc.search_spaces": ROW_0 | {"automc.graph", "automc.task", "automc.space"},
    "automc.tasks": ROW_0 | {"automc.task"},
}


def entry(module: str) -> str | None:
    """The line of the table a module belongs to: itself or the nearest package above, but never the bare `automc`."""
    parts = module.split(".")
    for length in range(len(parts), 1, -1):
        name = ".".join(parts[:length])
        if name in ROWS or name in ONLY:
            return name
    return module if module == "automc" else None


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Every module of this project that a file imports, lazily or not, relative imports made absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            if base == "automc":
                yield from (f"automc.{a.name}" if entry(f"automc.{a.name}") else f"automc:{a.name}" for a in node.names)
            else:
                yield from (f"{base}.{alias.name}" for alias in node.names)


def complaint(source: str, target: str) -> str | None:
    """Why the table entry `source` may not import the module `target`, or None."""
    if target.partition(".")[0] in ("agents", "search_spaces"):
        return "the installed names are automc.agents and automc.search_spaces"
    if target == "automc:__version__" or target.partition(".")[0].partition(":")[0] != "automc":
        return None
    found = "automc" if target.startswith("automc:") else entry(target)
    if found is None:
        return "the table has no such module"
    if found == source:
        return None
    if source in ONLY:
        return None if found in ONLY[source] else f"{source} may import {', '.join(sorted(ONLY[source]))} only"
    if found in ("automc.agents", "automc.search_spaces"):
        return "the core asks the registry by name"
    if ROWS[found] < ROWS[source] or found in SIDEWAYS.get(source, set()):
        return None
    return f"row {ROWS[source]} may not import row {ROWS[found]}"


def check(module: str, text: str, *, is_package: bool = False) -> list[str]:
    """Every wrong import of one file, as sentences."""
    source = entry(module)
    if source is None:
        return [f"{module} stands in no row: add it to the table in tests/test_layers.py"]
    package = module if is_package else module.rpartition(".")[0]
    found = ((target, complaint(source, target)) for target in imported(ast.parse(text), package))
    return [f"{module} imports {target.replace(':', '.')}: {why}" for target, why in found if why]


def files() -> list[tuple[str, Path]]:
    """Every module of the project with its installed name."""
    result = []
    for package, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            linked = package == "automc" and parts[0] in ("agents", "search_spaces")
            if not linked:
                result.append((".".join([package, *parts]).removesuffix(".__init__"), path))
    return result


@pytest.mark.parametrize(("module", "path"), files(), ids=[name for name, _ in files()])
def test_a_module_imports_only_what_its_row_allows(module, path):
    assert check(module, path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py") == []


def test_the_neighbours_of_a_row_form_no_cycle():
    def reaches(start, goal):
        return any(n == goal or reaches(n, goal) for n in SIDEWAYS.get(start, ()) if ROWS[n] == ROWS[start])

    assert not [name for name in SIDEWAYS if reaches(name, name)]
    assert all(ROWS[n] <= ROWS[name] for name, neighbours in SIDEWAYS.items() for n in neighbours)


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("automc.policy", "import automc.task", "row 0 may not import row 1"),
        ("automc.graph.facts", "def f():\n    from automc.costs.macs import MACS", "row 1 may not import row 2"),
        ("automc.space", "from automc.projection import Projector", "row 3 may not import row 3"),
        ("automc.loop", "from automc import search", "row 4 may not import row 7"),
        ("automc.loop", "from automc.agents.ddpg import DDPGAgent", "the core asks the registry by name"),
        ("automc.loop", "from automc import agents", "the core asks the registry by name"),
        ("automc.graph.facts", "from ..api import apply", "row 1 may not import row 6"),
        ("automc.agents.ddpg", "from automc.projection import Projector", "may import"),
        ("automc.search_spaces.bits", "from automc.agents import ddpg", "may import"),
        ("automc.tasks.digits", "from automc.graph.facts import ModelFacts", "may import"),
        ("automc.cli", "import agents.ddpg", "the installed names are"),
        ("automc.cli", "from automc.nowhere import thing", "no such module"),
        ("automc.helpers", "", "stands in no row"),
    ],
)
def test_a_wrong_import_is_named(module, text, expected):
    found = check(module, text)
    assert len(found) == 1
    assert expected in found[0]


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("automc.agents.ddpg", "from .replay import Replay\nfrom automc.agent import Agent\nimport torch"),
        ("automc.search_spaces.joint", "from automc.search_spaces.bits import bits\nfrom automc.space import Axis"),
        ("automc.scoring.evaluator", "from automc.compression.compress import compress"),
        ("automc.artifact", "from automc import __version__"),
        ("automc.cli", "from automc import errors"),
    ],
)
def test_a_right_import_passes(module, text):
    assert check(module, text) == []
