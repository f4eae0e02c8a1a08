"""Objects as other processes see them: the tensors where they lie, everything else equal, and nothing of it shared."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from automc.errors import ExecutorError
from automc.executors.parcel import Parcel, opened, opened_in, packed
from automc.tasks.resnet import ResNet

ROOT = Path(__file__).parents[2]
DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip


def through(thing: Any) -> Any:
    parcel = packed(thing)
    try:
        return opened(parcel)
    finally:
        parcel.close()


def through_bytes(thing: Any) -> Any:
    """As a parcel travels to another machine."""
    parcel = packed(thing)
    try:
        return opened_in(bytearray(parcel.read()), parcel.tensors)
    finally:
        parcel.close()


def same(first: Tensor, second: Tensor) -> bool:
    """In type, shape and strides, and in every bit."""
    kind = (second.dtype, second.shape, second.stride(), second.requires_grad)
    if (first.dtype, first.shape, first.stride(), first.requires_grad) != kind:
        return False
    return bits(first).equal(bits(second))


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8)


def filled(dtype: torch.dtype, count: int) -> Tensor:
    """Any bits that the type has."""
    drawn = torch.randint(0, 2 if dtype is torch.bool else 256, (count * dtype.itemsize,), dtype=torch.uint8)
    return drawn.view(dtype)


@pytest.mark.parametrize("way", [through, through_bytes])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_type_come_out_as_they_are(dtype: torch.dtype, way: Callable[[Any], Any]) -> None:
    base = filled(dtype, 60)
    whole = base.reshape(3, 4, 5)
    tensors = [base, whole, whole.permute(2, 0, 1), whole[1:, ::2, 1:4], whole[0, 0, 0], whole[:0], base[7:]]
    tensors += [whole[:1].expand(6, 4, 5), filled(dtype, 1)[0], torch.empty(0, dtype=dtype), base[::7]]
    for before, after in zip(tensors, way(tensors), strict=True):
        assert same(before, after)


@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    order=st.randoms(use_true_random=False),
    cut=st.data(),
    dtype=st.sampled_from(DTYPES),
)
def test_any_view_of_any_tensor(shape: list[int], order: Any, cut: st.DataObject, dtype: torch.dtype) -> None:
    view = filled(dtype, int(np.prod(shape))).reshape(shape)
    axes = list(range(len(shape)))
    order.shuffle(axes)
    view = view.permute(axes)
    for axis, size in enumerate(view.shape):
        start = cut.draw(st.integers(0, size))
        view = view.narrow(axis, start, cut.draw(st.integers(0, size - start)))
    assert same(view, through(view))


@given(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=12), seed=st.integers(0, 9))
def test_neighbours_in_memory_do_not_touch(sizes: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    tensors = [filled(DTYPES[size % len(DTYPES)], size) for size in sizes]
    found = through(tensors)
    for before, after in zip(tensors, found, strict=True):
        assert same(before, after)
        assert after.numel() == 0 or after.data_ptr() % 64 == 0
    for after in found:
        after.view(torch.uint8).fill_(0)
    assert all(not after.view(torch.uint8).any() for after in found)


def test_what_shares_memory_shares_it_still_and_nothing_else_does() -> None:
    base = torch.arange(12.0)
    part, again, other = base[4:], base.view(3, 4), base.clone()
    found = through({"base": base, "part": part, "again": again, "other": other, "same": base})
    found["base"][5] = 99.0
    assert found["part"][1] == 99.0 and found["again"][1, 1] == 99.0 and found["same"] is found["base"]
    assert found["other"][5] == 5.0 and base[5] == 5.0


def test_a_storage_seen_as_two_types_is_one() -> None:
    floats = torch.ones(4)
    found, codes = through((floats, floats.view(torch.int32)))
    codes.zero_()
    assert found.tolist() == [0.0] * 4 and floats.tolist() == [1.0] * 4


@pytest.mark.parametrize("turn", [1, -1])
def test_views_of_one_array_of_numpy_are_whole(turn: int) -> None:
    """Each is a storage of its own that begins where another one does, and is longer or shorter."""
    x = np.arange(1000, dtype=np.float32)
    before = [torch.from_numpy(x[:10]), torch.from_numpy(x), torch.from_numpy(x[:500]), torch.full((70,), 7.0)][::turn]
    for first, second in zip(before, through(before), strict=True):
        assert same(first, second)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("passing", torch.ones(3), persistent=False)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embed(x)) * self.scale


def test_a_module_comes_out_with_its_ties_buffers_and_modes() -> None:
    model = Tied().eval()
    found = through(model)
    assert found.out.weight is found.embed.weight and isinstance(found.out.weight, nn.Parameter)
    assert not found.training and not found.frozen.requires_grad and found.out.weight.requires_grad
    assert list(found.state_dict()) == list(model.state_dict()) and found.passing.tolist() == [1.0] * 3
    x = torch.arange(7)
    assert torch.equal(found(x), model(x))
    with torch.no_grad():
        found.embed.weight.zero_()
    assert not found(x).any() and model(x).any()


def test_a_whole_network_computes_the_same_to_the_last_bit() -> None:
    torch.manual_seed(0)
    model, x = ResNet(20).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(through(model)(x), model(x)) and torch.equal(through_bytes(model)(x), model(x))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(3, dtype=torch.complex64).conj(),
        lambda: torch.randn(3, dtype=torch.complex64).conj().imag,
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.eye(3).to_sparse_csr(),
        lambda: torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8),
        lambda: torch.ones(2, 3, device="meta"),
        lambda: torch.ones(3).storage(),
    ],
    ids=["conjugate", "negative", "sparse", "rows", "quantized", "meta", "storage"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, on what it will change
def test_tensors_of_other_kinds_come_out_as_they_are(make: Callable[[], Any]) -> None:
    tensor = make()
    found = through(tensor)
    assert type(found) is type(tensor) and str(found) == str(tensor)


def test_functions_that_nobody_can_import_travel_whole() -> None:
    offset = torch.ones(2)
    hidden = {"metric": lambda x, y: (x - y).abs() + offset}
    found = through(hidden)["metric"]
    assert torch.equal(found(torch.zeros(2), torch.ones(2)), torch.full((2,), 2.0))
    offset += 1  # a closure is not shared either
    assert torch.equal(found(torch.zeros(2), torch.ones(2)), torch.full((2,), 2.0))


def test_two_who_open_one_parcel_and_who_packed_it_write_to_their_own() -> None:
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    parcel = packed(model)
    first, second = opened(parcel), opened(parcel)
    with torch.no_grad():
        first.weight.zero_()
        model.bias.fill_(5.0)
    assert torch.equal(second.weight, before) and torch.equal(model.weight, before)
    assert torch.equal(opened(parcel).weight, before) and not torch.equal(second.bias, model.bias)
    parcel.close()
    assert torch.equal(second.weight, before) and not first.weight.any()  # what is opened needs the parcel no more


def test_descriptors_are_closed_and_nothing_stays_in_shared_memory() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    through(torch.ones(1000))
    shared, count = set(os.listdir("/dev/shm")), descriptors()
    for _ in range(20):
        through(nn.Linear(100, 100))
        through_bytes(nn.Linear(10, 10))
        with pytest.raises(ExecutorError):
            packed([torch.ones(100), threading.Lock()])
    assert descriptors() == count
    assert set(os.listdir("/dev/shm")) == shared


class Refuses:
    def __reduce__(self) -> Any:
        raise RuntimeError("not\nme")


class MuteError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class RefusesMutely:
    def __reduce__(self) -> Any:
        raise MuteError


@pytest.mark.parametrize(
    ("thing", "said"),
    [
        (threading.Lock(), "cannot pickle '_thread.lock' object"),
        ((x for x in range(3)), "cannot pickle 'generator' object"),
        (Refuses(), "RuntimeError: not me"),
        (RefusesMutely(), "MuteError"),
        (torch.ones(3).to_mkldnn(), "OpaqueTensorImpl"),
    ],
    ids=["lock", "generator", "refuses", "refuses mutely", "opaque"],
)
def test_what_cannot_leave_its_process_is_one_sentence(thing: Any, said: str) -> None:
    for burden in (thing, [torch.ones(10**6), thing], [nn.Linear(3, 3), {"deep": [thing]}]):
        with pytest.raises(ExecutorError, match="must be able to leave this process") as refused:
            packed(burden)
        assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_script_that_packs_its_own_classes_is_not_run_again(tmp_path: Path) -> None:
    """Classes and functions of `__main__` travel whole; whoever opens them has another `__main__`."""
    script = tmp_path / "script.py"
    script.write_text(MAIN)
    command = [sys.executable, str(script), str(tmp_path / "parcel")]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60)
    tensors = int((tmp_path / "parcel.size").read_text())
    found = opened_in(bytearray((tmp_path / "parcel").read_bytes()), tensors)
    assert found(torch.ones(2, 3)).tolist() == [[6.0], [6.0]] and type(found).__name__ == "Mine"


MAIN = """
import sys
from pathlib import Path

import torch
from torch import nn

from automc.executors.parcel import packed


def double(x):
    return 2 * x


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 3))

    def forward(self, x):
        return double(x @ self.weight.T)


parcel = packed(Mine())
Path(sys.argv[1]).write_bytes(parcel.read())
Path(sys.argv[1] + ".size").write_text(str(parcel.tensors))
"""

MEASURED = """
import os
import sys

import torch

from automc.executors.parcel import Parcel, opened


def private():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return found["Private_Clean"] + found["Private_Dirty"]


before = private()
thing = opened(Parcel(*map(int, sys.argv[1:4])))
assert sum(float(x.sum()) for x in thing) == len(thing) * thing[0].numel()  # every page was read
print(private() - before)
thing[0][:1000] = 7
print(private() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the kernel does not tell")
def test_two_hundred_megabytes_are_opened_without_a_copy() -> None:
    parcel = packed([torch.ones(25 * 2**18) for _ in range(8)])
    ours = opened(parcel)  # what one process alone maps counts as private, though it is shared
    assert all(x.all() for x in ours)
    assert 200 * 2**20 <= parcel.size < 201 * 2**20
    command = [sys.executable, "-c", MEASURED, *map(str, (parcel.memory, parcel.tensors, parcel.size))]
    told = subprocess.run(
        command, pass_fds=[parcel.memory], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    parcel.close()
    read, written = (int(line) for line in told.stdout.split())
    assert read < 20_000  # kB: what reading touches besides
    assert 0 <= written - read < 2_000


@pytest.mark.slow
def test_parcels_of_more_than_two_gigabytes_are_read_whole() -> None:
    memory = os.memfd_create("large")
    os.ftruncate(memory, 2**31 + 5000)
    os.pwrite(memory, b"end", 2**31 + 4997)
    whole = Parcel(memory, 0, 2**31 + 5000).read()
    os.close(memory)
    assert len(whole) == 2**31 + 5000 and whole[-3:] == b"end"


def test_what_is_packed_may_hold_itself() -> None:
    loop: list[Any] = [torch.ones(2)]
    loop.append(loop)
    found = through(loop)
    assert found[1] is found and found[0].tolist() == [1.0, 1.0]
    assert cloudpickle.dumps(loop)  # as anywhere else
