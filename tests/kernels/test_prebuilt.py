"""Libraries that wheels carry: chosen by what a processor has, equal in what they compute, loaded only when whole."""

import ctypes
import itertools
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from automc.files import sha256
from automc.kernels import build, compiler, images, prebuilt, sparse8, tiles, tokens
from automc.kernels.images import Choice
from automc.kernels.moments import channel_moments, column_moments
from automc.kernels.prebuilt import Level, fitting, levels
from automc.kernels.sparse8 import SparseInt8Linear
from automc.kernels.sparse8_conv import SparseInt8Conv2d
from automc.kernels.steps import Limits, Steps, Window
from automc.kernels.tokens import ACROSS, TokenChoice
from tests.kernels import test_sparse8, test_sparse8_conv
from tests.kernels.compiled import renew

V2 = "pni ssse3 sse4_1 sse4_2 popcnt cx16 lahf_lm xsave"
V3 = f"{V2} avx avx2 bmi1 bmi2 f16c fma abm movbe"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"
PROCESSORS = {
    "": ["x86-64"],
    V2: ["x86-64"],
    f"{V2} avx": ["x86-64"],  # without the rest of AVX2's level
    V3.replace(" fma", ""): ["x86-64"],
    V3: ["x86-64-v3", "x86-64"],
    f"{V3} avx_vnni": ["x86-64-v3-vnni", "x86-64-v3", "x86-64"],
    f"{V3} avx512f avx512cd": ["x86-64-v3", "x86-64"],  # Xeon Phi
    V4: ["x86-64-v4", "x86-64-v3", "x86-64"],
    f"{V4} avx512_vnni": ["x86-64-v4-vnni", "x86-64-v4", "x86-64-v3", "x86-64"],
    f"{V4} amx_tile amx_int8": ["x86-64-v4", "x86-64-v3", "x86-64"],
    f"{V4} avx512_vnni avx_vnni amx_tile amx_int8 sse9": [
        *("x86-64-v4-amx", "x86-64-v4-vnni", "x86-64-v4", "x86-64-v3-vnni", "x86-64-v3", "x86-64")
    ],
}
MACROS = {
    **{f"__{name}__": name.lower() for name in ("SSSE3", "POPCNT", "AVX", "AVX2", "BMI2", "F16C", "FMA", "MOVBE")},
    **{f"__AVX512{name}__": f"avx512{name.lower()}" for name in ("F", "BW", "CD", "DQ", "VL", "BF16", "FP16")},
    **{"__SSE3__": "pni", "__SSE4_1__": "sse4_1", "__SSE4_2__": "sse4_2", "__BMI__": "bmi1", "__LZCNT__": "abm"},
    **{
        "__GCC_HAVE_SYNC_COMPARE_AND_SWAP_16": "cx16",
        "__LAHF_SAHF__": "lahf_lm",
        "__AVXVNNI__": "avx_vnni",
        "__XSAVE__": "xsave",
    },
    **{"__AVX512VNNI__": "avx512_vnni", "__AMX_TILE__": "amx_tile", "__AMX_INT8__": "amx_int8", "__XSAVE__": "xsave"},
}
"""What compilers call what Linux names so."""
FLAGS = sorted(set(f"{V4} avx_vnni avx512_vnni amx_tile amx_int8".split()))
needs_compiler = pytest.mark.skipif(compiler.compiler() is None, reason="no compiler")
on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the levels of x86-64")


def names(found: list[Level]) -> list[str]:
    return [level.name for level in found]


@pytest.mark.parametrize(("has", "expected"), PROCESSORS.items())
def test_the_best_level_that_a_processor_has_comes_first(has: str, expected: list[str]) -> None:
    assert names(fitting("sparse8", "x86_64", set(has.split()))) == expected
    floats = [name for name in expected if "vnni" not in name and "amx" not in name]
    assert names(fitting("images", "AMD64", set(has.split()))) == floats


@given(st.sets(st.sampled_from(FLAGS)), st.sampled_from(FLAGS))
def test_no_level_asks_for_what_is_not_there_and_more_instructions_lose_none(has: set[str], more: str) -> None:
    for source in prebuilt.SOURCES:
        found = fitting(source, "x86_64", has)
        assert found and all(level.needs <= has and source in level.sources for level in found)
        assert set(names(found)) <= set(names(fitting(source, "x86_64", has | {more})))


def test_other_architectures_have_one_level_of_their_own() -> None:
    assert names(fitting("images", "aarch64", {"asimd", *FLAGS})) == ["aarch64"]
    assert names(fitting("sparse8", "riscv64", set())) == ["riscv64"]


@needs_compiler
@on_x86
@pytest.mark.parametrize("level", levels("x86_64"), ids=lambda level: level.name)
def test_a_level_needs_all_that_its_flags_let_the_compiler_use(level: Level) -> None:
    program = compiler.compiler()
    assert program is not None
    command = [program, *level.flags, "-dM", "-E", "-x", "c", "/dev/null"]
    defined = {line.split()[1] for line in subprocess.check_output(command, text=True).splitlines()}
    assert {"__SSE2__", "__x86_64__"} <= defined
    used = {MACROS[name] for name in defined & set(MACROS)}
    assert used - {"xsave"} == level.needs - {"xsave"}  # not every compiler counts it in


def test_instructions_are_those_of_all_processors(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    assert prebuilt.instructions(info) == frozenset()
    info.write_text("model name\t: x\nflags\t\t: fpu avx sse\nvmx flags\t: ept\n\nflags\t\t: fpu avx\n")
    assert prebuilt.instructions(info) == {"fpu", "avx"}
    info.write_text("Features\t: asimd\n")
    assert prebuilt.instructions(info) == frozenset()


def quick(folder: Path) -> Path:
    """A compiler that takes little time."""
    program, path = compiler.compiler(), folder / "quick"
    assert program is not None
    path.write_text(f'#!/bin/sh\nexec {program} "$@" -O0\n')
    path.chmod(0o700)
    return path


@pytest.fixture(scope="module", params=["quick", pytest.param("as shipped", marks=pytest.mark.slow)])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All libraries of a wheel."""
    if compiler.compiler() is None:
        pytest.skip("no compiler")
    folder = tmp_path_factory.mktemp("prebuilt")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "quick":
            patch.setenv("CC", str(quick(folder)))
        done = prebuilt.make(folder / "lib")
    assert all(done.values()) and set(done) == {path.name for path in (folder / "lib").glob("*.so")}
    return folder / "lib"


@pytest.fixture
def carried(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine without a compiler, and a copy of the libraries: what is loaded must not be changed."""
    folder = tmp_path / "lib"
    shutil.copytree(made, folder)
    monkeypatch.setattr(prebuilt, "FOLDER", folder)
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.delenv("AUTOMC_KERNELS", raising=False)
    renew()
    yield folder
    renew()


def chosen(source: str = "sparse8") -> str | None:
    """The name of the library that is taken."""
    build.compiled.cache_clear()
    found = build.compiled(source)
    return None if found is None else Path(found._name).name


def best(source: str = "sparse8") -> str:
    """What this processor should have."""
    return f"{source}-{fitting(source, platform.machine(), prebuilt.instructions())[0].name}.so"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sparse(*shape: int) -> Tensor:
    return normal(*shape, seed=1) * (normal(*shape, seed=2) > 0.5)


@torch.no_grad()
def results() -> dict[str, Tensor]:
    """What each family of kernels gives for some odd shapes."""
    return {**_on_tiles(), **_on_images(), **_on_tokens(), **_in_integers()}


WINDOWS = (Window((3, 3), (1, 1), (1, 1)), Window((3, 5), (2, 1), (1, 2)), Window((1, 1)))


def _on_tiles() -> dict[str, Tensor]:
    x, found = normal(32, 14, 9, 11), {}
    for window in WINDOWS:
        program = tiles.Program()
        value = program.given((9, 11, 14))
        value = program.convolution(value, normal(14, 14, *window.kernel).numpy(), None, window, limits=Limits(0.0))
        value = program.convolution(value, normal(14, 1, 3, 3).numpy(), None, WINDOWS[0], groups=14)
        value = program.pool(program.rounded(value, 0.5, 3.0, 15.0), Window((2, 2)), largest=True)
        found[f"tiles {window}"] = tiles.from_tiles(program.run({0: tiles.to_tiles(x)}, [value])[0], len(x))
    cut, out = tiles.to_tiles(x), normal(32, 3, 9, 11)
    places = np.array(list(itertools.product(range(len(cut)), range(9), range(11))), dtype=np.int32)
    wanted = tiles.to_tiles(out).flatten(0, 2)
    both = column_moments(cut, WINDOWS[0], places, wanted)
    mean, variance = channel_moments(cut, 31)
    return found | {"mean": both.mean, "16 bits": both.centred, "channels": torch.stack([mean, variance])}


def _on_images() -> dict[str, Tensor]:
    x, found = normal(3, 6, 9, 11), {}
    for window, block in itertools.product(WINDOWS, (1, 2, 4, 8)):
        network = Steps()
        value = network.given((9, 11, 6))
        value = network.convolution(value, sparse(10, 6, *window.kernel).numpy(), None, window, limits=Limits(0.0, 6.0))
        last = network.pool(network.add(value, value), Window((2, 3)), largest=False)
        height, width, channels = network.shapes[last]
        plan = images.planned(network, 0, last, {0: Choice(block, 2, block > 2)})
        found[f"images {window} {block}"] = images.run(x, plan, (channels, height, width))
    return found


def _on_tokens() -> dict[str, Tensor]:
    x, found = normal(37, 29), {}
    for block in (1, 2, 4, 8, ACROSS):
        plan = tokens.planned(sparse(21, 29).numpy(), normal(21).numpy(), TokenChoice(block, 1), Limits(-1.0))
        found[f"tokens {block}"] = tokens.run(x, plan, normal(37, 21))
    return found


def _in_integers() -> dict[str, Tensor]:
    found = {}
    for rows, count in itertools.product((16, 4), (1, 37)):
        layer = SparseInt8Linear.of(test_sparse8.quantized(40, 33, rows, 0.5), rows=rows, low=-2.0)
        found[f"linear {rows} {count}"] = layer(normal(count, 40))
    torch.manual_seed(0)
    convolution = SparseInt8Conv2d.of(test_sparse8_conv.quantized(nn.Conv2d(9, 20, 3, 2, 1)))
    return found | {"convolution": convolution(normal(2, 9, 9, 13))}


@needs_compiler
@on_x86
@pytest.mark.parametrize("level", levels("x86_64"), ids=lambda level: level.name)
def test_a_carried_library_gives_what_one_compiled_here_gives(
    carried: Path, monkeypatch: pytest.MonkeyPatch, level: Level
) -> None:
    if not level.needs <= prebuilt.instructions():
        pytest.skip("this processor lacks what it needs")
    monkeypatch.setattr(prebuilt, "instructions", lambda: level.needs)
    renew()
    assert chosen() == f"sparse8-{level.name}.so"
    widths = [images.lanes(), tokens.lanes(), tiles.lanes()]
    assert widths == [4 if level.name == "x86-64" else 8 if "v3" in level.name else 16] * 3
    found = results()
    with monkeypatch.context() as patch:
        patch.delenv("CC")
        renew()
        assert Path(str(build.compiled("images"))).parent != carried
        expected = results()
    renew()
    assert list(found) == list(expected) and len(found) > 20
    for name, x in found.items():
        rounding = 1e-2 if name == "16 bits" else 1e-5
        torch.testing.assert_close(x, expected[name], rtol=1e-4, atol=rounding * float(x.abs().max()), msg=name)


def test_without_a_compiler_the_best_level_is_used(carried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in prebuilt.SOURCES:
        assert chosen(source) == best(source)
    assert images.lanes() and tokens.lanes() and tiles.lanes() and sparse8.level() >= 0
    assert chosen("limits") is None
    monkeypatch.setenv("CC", "false")  # one that fails
    assert chosen() == best()
    monkeypatch.setenv("AUTOMC_KERNELS", "off")
    assert chosen() is None


def test_with_a_compiler_or_without_a_place_to_keep_what_it_makes(
    carried: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CC")
    monkeypatch.setenv("AUTOMC_KERNELS", str(tmp_path / "cache"))
    assert str(chosen("tiles")).startswith("tiles-") and chosen("tiles") != best("tiles")
    assert [path.suffix for path in sorted((tmp_path / "cache").iterdir())] == [".so", ".sha256"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUTOMC_KERNELS", str(tmp_path / "file"))
    assert chosen("tiles") == best("tiles")


@on_x86
def test_no_library_above_the_processor_is_loaded(carried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prebuilt, "instructions", lambda: frozenset(V3.split()) - {"fma"})
    for source in prebuilt.SOURCES:
        assert chosen(source) == f"{source}-x86-64.so"
    (carried / "images-x86-64.so").unlink()
    assert chosen("images") is None


def test_a_library_that_is_cut_short_or_altered_is_not_loaded(carried: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = ctypes.CDLL

    def load(path: str) -> ctypes.CDLL:
        asked.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(ctypes, "CDLL", load)
    for source, level in itertools.product(("tokens", "sparse8"), reversed(levels(platform.machine()))):
        path = carried / f"{source}-{level.name}.so"
        if source not in level.sources:
            continue
        whole = path.read_bytes()
        middle = len(whole) // 2
        for damage in (whole[:middle], b"", whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]):
            path.write_bytes(damage)
            asked.clear()
            assert chosen(source) != path.name and path.name not in asked
    assert chosen("tokens") is None and chosen("sparse8") is None
    assert chosen("tiles") == best("tiles")
    (carried / f"{best('tiles')}.sha256").unlink()
    assert chosen("tiles") != best("tiles")


def test_a_library_for_another_system_is_passed_over(carried: Path) -> None:
    path = carried / best()
    path.write_bytes(b"no library")
    compiler._seal(path).write_text(sha256(b"no library"))
    assert compiler.whole(path) and chosen() not in (None, path.name)


@needs_compiler
@on_x86
def test_what_a_compiler_cannot_make_is_left_out_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = quick(tmp_path)
    old.write_text(old.read_text().replace("exec", 'case "$*" in *=x86-64-v4*|*-mavxvnni*) exit 1;; esac\nexec'))
    monkeypatch.setenv("CC", str(old))
    done = prebuilt.make(tmp_path / "lib")
    assert {name for name, good in done.items() if not good} == {n for n in done if "v4" in n or "vnni" in n}
    assert {path.name for path in (tmp_path / "lib").glob("*.so")} == {name for name, good in done.items() if good}
    monkeypatch.setenv("CC", "no-such-compiler")
    assert prebuilt.make(tmp_path / "none") == {} and not (tmp_path / "none").exists()
