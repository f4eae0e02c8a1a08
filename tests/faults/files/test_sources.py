"""No source of automc reads what is code: no pickle, no torch.load, no eval; exceptions stand here, with reasons."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FORBIDDEN = {
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "cloudpickle.load",
    "cloudpickle.loads",
    "dill.load",
    "joblib.load",
    "marshal.loads",
    "shelve.open",
    "torch.load",
    "torch.jit.load",
    "torch.export.load",
    "torch.hub.load",
    "Tuner.restore",
    "yaml.unsafe_load",
    "yaml.full_load",
    "eval",
    "exec",
    "os.system",
    "os.popen",
}
HARMFUL = (("allow_pickle", True), ("weights_only", False), ("shell", True))
ALLOWED = {
    ("automc/executors/parcel.py", "pickle.Unpickler"): "what this very process packed, handed on through pipes",
}


def named(node: ast.expr) -> str:
    """A dotted name."""
    if isinstance(node, ast.Attribute):
        return f"{named(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def uses(source: str) -> Iterator[str]:
    """What a source calls, inherits or hands on of what is forbidden, and keywords that make harmless calls harmful."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)):
            name = named(node)
            yield from (f for f in FORBIDDEN if name == f or (name.endswith(f".{f}") and "." in f))
        if isinstance(node, ast.ImportFrom):
            yield from (f for f in FORBIDDEN if f in {f"{node.module}.{alias.name}" for alias in node.names})
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            yield from (arg for arg, value in HARMFUL if (arg, value) == (node.arg, node.value.value))


SOURCES = sorted(p for folder in ("automc", "agents", "search_spaces") for p in (ROOT / folder).rglob("*.py"))


def test_no_source_loads_code_from_a_file() -> None:
    found = {(str(path.relative_to(ROOT)), use) for path in SOURCES for use in uses(path.read_text(encoding="utf-8"))}
    assert found <= ALLOWED.keys(), found - ALLOWED.keys()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)",
        "from torch import load\nload(f)",
        "import torch as t\nt.hub.load(f)\ntorch.load(f)",
        "class A(pickle.Unpickler): ...",
        "np.load(f, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "eval(x)",
        "map(exec, x)",
        "ray.tune.Tuner.restore(p)",
    ],
)
def test_it_would_be_found(source: str) -> None:
    assert list(uses(source))
