"""The wheel holds automc and nothing else, and every module imports from it, outside the checkout.

With a compiler it also holds compiled kernels, which run where there is none.
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from automc.kernels.prebuilt import levels

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BUILT_AT_ROOT = ("agents", "search_spaces", "automc", "pyproject.toml", "setup.py", "README.md", "LICENSE")
NOWHERE = "no-such-compiler"
needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built, so that no build folder of the checkout leaks into it."""
    folder = tmp_path_factory.mktemp("packaging") / "source"
    folder.mkdir()
    for name in BUILT_AT_ROOT:
        subprocess.run(["cp", "-R", "-P", str(ROOT / name), str(folder)], check=True)  # links stay links
    return folder


def built(source: Path, compiler: str | Path, *options: str) -> tuple[Path, str]:
    """What is built with some compiler into a folder of its own, and what is said meanwhile."""
    target = source.parent / f"with {Path(compiler).name}"
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), *options, str(source)]
    environment = os.environ | {"CC": str(compiler)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    [wheel] = target.glob("*.whl")
    return wheel, done.stdout + done.stderr


@pytest.fixture(scope="module")
def said_and_wheel(source: Path) -> tuple[Path, str]:
    """Of a machine without a compiler."""
    return built(source, NOWHERE, "--wheel")


@pytest.fixture(scope="module")
def wheel(said_and_wheel: tuple[Path, str]) -> Path:
    """As it is everywhere."""
    return said_and_wheel[0]


@pytest.fixture(scope="module")
def carrying(source: Path, wheel: Path) -> Path:
    """A wheel with kernels, made after one without them in the same folder."""
    quick = source.parent / "quick"
    quick.write_text('#!/bin/sh\nexec gcc "$@" -O0\n')
    quick.chmod(0o700)
    return built(source, quick, "--wheel")[0]


def test_without_a_compiler_the_wheel_is_for_every_platform_and_that_is_said_once(said_and_wheel, carrying, source):
    wheel, said = said_and_wheel
    assert wheel.name.endswith("-py3-none-any.whl") and said.count("no C compiler was found") == 1
    again, _ = built(source, NOWHERE, "--wheel")  # after one with kernels, which are gone
    for path in (wheel, again):
        assert not [name for name in zipfile.ZipFile(path).namelist() if "kernels/lib/" in name]


@needs_gcc
def test_with_a_compiler_the_wheel_is_for_its_platform_and_any_python(carrying, wheel):
    tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert carrying.name.endswith(f"-py3-none-{tag}.whl")
    held, plain = (zipfile.ZipFile(path).namelist() for path in (carrying, wheel))
    libraries = {
        name.removeprefix("automc/kernels/lib/") for name in set(held) - set(plain) if ".dist-info" not in name
    }
    assert "Root-Is-Purelib: false" in zipfile.ZipFile(carrying).read(next(n for n in held if "WHEEL" in n)).decode()
    wanted = {f"{s}-{level.name}.so" for level in levels(platform.machine()) for s in level.sources}
    assert libraries == wanted | {f"{name}.sha256" for name in wanted}


CARRIED = """
import sys
sys.path[:] = [sys.argv[1]] + [p for p in sys.path if p not in ("", sys.argv[2])]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f)]
from automc.kernels import build, images, tokens, tiles, sparse8
found = [build.compiled(name) for name in ("dense8", "images", "tokens", "tiles", "sparse8")]
print(*(x and x._name.startswith(sys.argv[1]) for x in found))
print(images.lanes(), tokens.lanes(), tiles.lanes(), sparse8.level() >= 0)
"""


@needs_gcc
def test_where_there_is_no_compiler_the_wheels_kernels_run_unless_they_are_off(carrying, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(carrying).extractall(site)
    command = [sys.executable, "-c", CARRIED, str(site), str(ROOT)]
    for setting, expected in ({}, " ".join(["True"] * 5)), ({"AUTOMC_KERNELS": "off"}, " ".join(["None"] * 5)):
        environment = {"PATH": str(tmp_path), **setting}
        done = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
        first, second = done.stdout.splitlines()
        assert first == expected, done.stderr[-2000:]
        assert ("0" in second.split()) == bool(setting)


def test_a_source_distribution_holds_what_the_wheel_is_built_from(source, wheel):
    through, _ = built(source, NOWHERE)  # first the one, from it the other
    assert zipfile.ZipFile(through).namelist() == zipfile.ZipFile(wheel).namelist()
    [archive] = through.parent.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        assert {"setup.py", "product.h"} <= {Path(name).name for name in opened.getnames()}


def test_an_editable_install_compiles_nothing(source, tmp_path):
    program = "import sys, setuptools.build_meta as backend; backend.build_editable(sys.argv[1])"
    command, environment = [sys.executable, "-c", program, str(tmp_path)], os.environ | {"CC": "false"}
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    [path] = tmp_path.iterdir()
    assert path.name.endswith("-py3-none-any.whl") and "cannot make" not in done.stdout + done.stderr
    assert not list((source / "automc").rglob("*.so"))


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
    if importlib.util.find_spec("triton") is None:
        modules.remove("automc.kernels.blocks_triton")  # nobody imports it there
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
