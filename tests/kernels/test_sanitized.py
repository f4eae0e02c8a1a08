"""The kernels' tests again, the libraries built with the address sanitizer: no byte outside is touched."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SANITIZED = """
import sys, pytest
from automc.kernels import build
build.FLAGS = (*build.FLAGS, "-g", "-fsanitize=address")
sys.exit(pytest.main(["-q", "-x", "-s", "-p", "no:cacheprovider", "-k", "not exported", *sys.argv[1:]]))
"""
"""What is exported runs in a process of its own, where nobody asked for the sanitizer."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(platform.system() != "Linux" or not shutil.which("gcc"), reason="needs gcc's address sanitizer")
@pytest.mark.parametrize(
    "names", [("images",), ("tokens",), ("tiles", "moments"), ("sparse8", "sparse8_conv"), ("dense8",)], ids=str
)
def test_no_byte_outside_is_touched(names: tuple[str, ...], tmp_path: Path) -> None:
    asked = [["gcc", f"-print-file-name={name}"] for name in ("libasan.so", "libstdc++.so")]
    runtime = [subprocess.run(a, capture_output=True, text=True, check=True).stdout.strip() for a in asked]
    variables = {"LD_PRELOAD": " ".join(runtime), "ASAN_OPTIONS": "detect_leaks=0"}
    variables |= {"CC": "gcc", "AUTOMC_KERNELS": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", SANITIZED, *(str(HERE / f"test_{name}.py") for name in names)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | variables,
        cwd=HERE.parents[1],
        timeout=850,
    )
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-4000:]
