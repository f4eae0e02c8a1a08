"""The kernel of blocks where Triton is: by its interpreter, on a processor, and compiled for GPUs that are not here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton")
ROOT = Path(__file__).parents[2]


def test_the_kernel_computes_what_the_dense_layer_does() -> None:
    """In a process of its own: what is interpreted is settled when Triton is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.kernels.interpreted"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == "right"


@pytest.mark.parametrize("capability", [75, 80, 90])
@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_kernel_compiles_without_tf32_and_halves_for_tensor_cores(
    kind: str, capability: int, bias: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from automc.kernels.blocks_triton import _kernel

    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    sizes = {"TOKENS": 32, "ROWS": 32, "COLUMNS": 16}
    signature = dict.fromkeys(("x", "value", "bias", "out"), f"*{kind}") | dict.fromkeys(("start", "column"), "*i32")
    signature |= dict.fromkeys(("tokens", "inputs", "outputs"), "i32") | dict.fromkeys(sizes, "constexpr")
    constants = sizes if bias else {**sizes, "bias": None}
    signature["bias"] = signature["bias"] if bias else "constexpr"
    ordered = {name: signature[name] for name in _kernel.arg_names}
    made = triton.compile(ASTSource(_kernel, ordered, constants), target=GPUTarget("cuda", capability, 32))
    code = made.asm["ptx"]
    assert "tf32" not in code
    by_tensor_cores = bool(re.search(r"wgmma\.mma|\bmma\.sync", code))
    assert by_tensor_cores is (kind != "fp32" and capability >= 80)
