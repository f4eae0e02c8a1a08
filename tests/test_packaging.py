"""The wheel holds automc and nothing else, and every module imports from it, outside the checkout."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BUILT_AT_ROOT = ("agents", "search_spaces", "automc", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that no build folder of the checkout leaks into it."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    source.mkdir()
    for name in BUILT_AT_ROOT:
        subprocess.run(["cp", "-R", "-P", str(ROOT / name), str(source)], check=True)  # links stay links
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True, timeout=100)
    [built] = folder.glob("*.whl")
    return built


def test_the_wheel_holds_only_automc(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"automc"}
    assert not [name for name in names if re.search(r"(^|/)(tests|notebooks|benchmarks|examples)/", name)]
    assert {"automc/py.typed", "automc/agents/__init__.py", "automc/search_spaces/__init__.py"} <= set(names)


def test_the_wheel_holds_every_python_file_of_the_checkout(wheel):
    """A subpackage missing from the list in pyproject.toml would go unnoticed in an editable install."""
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    wanted = {str(p.relative_to(ROOT)) for p in (ROOT / "automc").rglob("*.py")}
    for folder in ("agents", "search_spaces"):
        wanted |= {f"automc/{p.relative_to(ROOT)}" for p in (ROOT / folder).rglob("*.py")}
    assert packed == wanted


def test_the_wheel_holds_every_preset(wheel):
    wanted = {f"automc/{p.relative_to(ROOT)}" for p in (ROOT / "search_spaces" / "presets").iterdir()}
    assert wanted and wanted == {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".yaml")}


def test_every_listed_package_has_an_init_file(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    listed = [name.replace(".", "/") for name in CONFIG["tool"]["setuptools"]["packages"]]
    assert [name for name in listed if f"{name}/__init__.py" not in packed] == []


def test_every_module_imports_from_the_wheel_outside_the_checkout(wheel, tmp_path):
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)
    modules = sorted(
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in zipfile.ZipFile(wheel).namelist()
        if name.endswith(".py") and not name.endswith("__main__.py")
    )
    program = "\n".join(
        [
            "import importlib, sys",
            f"sys.path[:] = [{str(target)!r}] + [p for p in sys.path if p not in ('', {str(ROOT)!r})]",
            "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]",
            f"for name in {modules!r}:",
            "    importlib.import_module(name)",
            "import automc",
            "for name in automc.__all__:",
            "    getattr(automc, name)",
            f"site = {str(target)!r}",  # Ray puts a folder of its own before it
            "assert all((m.__file__ or m.__path__[0]).startswith(site) for n, m in list(sys.modules.items())",
            "           if n.partition('.')[0] == 'automc'), 'imported from elsewhere'",
            "assert 'agents' not in sys.modules and 'search_spaces' not in sys.modules",
        ]
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_importing_automc_loads_nothing_heavy():
    heavy = ("torch", "optuna", "ray", "pandas", "plotly", "sklearn")
    program = f"import automc, sys; print([n for n in {heavy!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_core_dependencies_have_a_tested_version():
    tested = {re.split(r"[=\s]", x)[0].lower() for x in (ROOT / "constraints.txt").read_text().splitlines() if x}
    wanted = CONFIG["project"]["dependencies"] + CONFIG["project"]["optional-dependencies"]["dev"]
    names = {re.split(r"[\[<>=,;\s]", x)[0].lower().replace("_", "-") for x in wanted}
    assert names - {x.replace("_", "-") for x in tested} == {"setuptools"}
