"""Two models side by side."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import automc
from automc.errors import ArtifactError, TaskError
from automc.kernels.dense8 import DenseInt8Linear, sums_exactly
from automc.kernels.packed import packed_bytes
from automc.policy import LayerDecision
from automc.report import bench
from automc.report.memory import peak_bytes
from automc.task import Inputs
from tests.compression.conftest import make_task
from tests.leaving.models import compressed, resnet
from tests.report.test_report import printed


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


def test_the_peak_is_all_that_is_alive_at_once() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1), nn.Flatten()).eval()
    x = torch.randn(4, 3, 10, 10)
    rest, wide, narrow = sum(p.nbytes for p in net.parameters()) + x.nbytes, 4 * 4 * 16 * 100, 4 * 4 * 2 * 100
    assert peak_bytes(net, (x,)) == rest + 2 * wide
    net[1] = nn.ReLU(inplace=True)
    assert peak_bytes(net, (x,)) == rest + wide + narrow


@pytest.mark.skipif(not sums_exactly(63), reason="needs torch's oneDNN")
def test_the_peak_counts_what_kernels_keep_of_weights() -> None:
    codes = torch.randint(-63, 64, (40, 30))
    layer, x = DenseInt8Linear(codes, torch.ones(40), None, (0.1, 10.0, 255.0)), torch.randn(7, 30)
    least = sum(b.nbytes for b in layer.buffers()) + x.nbytes + 4 * 7 * 40
    assert peak_bytes(layer, (x,)) == least + packed_bytes(layer.buffers()) >= least + codes.numel()


@pytest.mark.filterwarnings("ignore:Layer:UserWarning")
def test_every_batch_and_every_number_of_threads_has_its_line() -> None:
    task = make_task("mlp")
    small = compressed(task, [LayerDecision(8)], keep=0.5)
    found = automc.bench(small, task, batches=(1, 3), threads=(1, 2))
    assert [(run["threads"], run["batch"]) for run in found["runs"]] == [(1, 1), (1, 3), (2, 1), (2, 3)]
    for run in found["runs"]:
        for name in ("dense", "compressed"):
            low, high = run[name]["quartiles"]
            assert 0 < low <= run[name]["median"] <= high
        assert run["speed_up"] == run["dense"]["median"] / run["compressed"]["median"]
        assert run["compressed"]["peak_bytes"] < run["dense"]["peak_bytes"]
    assert found["runs"][1]["dense"]["peak_bytes"] > found["runs"][0]["dense"]["peak_bytes"]
    assert found["file_bytes"]["compressed"] == automc.cost(small, task.example_inputs)["size"]
    shown = printed(bench.table(found))
    assert all(f"{run['speed_up']:.2f}x" in shown for run in found["runs"]) and "mlp" in shown


@pytest.mark.filterwarnings("ignore:Layer:UserWarning")
def test_both_models_may_compute_in_bfloat16_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task("mlp")
    small = compressed(task, [LayerDecision(8)], keep=0.5)
    asked = []

    def seen(module: nn.Module, inputs: Inputs, **settings: bool) -> dict[str, nn.Module]:
        asked.append(settings)
        return {"as it is": module.eval(), "layers in bfloat16": module.eval()}

    monkeypatch.setattr(bench, "forms", seen)
    for bf16 in (True, False):
        found = automc.bench(small, task, batches=(1,), threads=(1,), bf16=bf16)
        assert asked == [{"bf16": bf16}] * 2 and found["bfloat16"] is bf16
        assert any("bfloat16" in line for line in bench.lines(found)) == bf16
        asked.clear()


def test_counts_below_one_and_other_modules_are_refused() -> None:
    task, small = make_task("mlp"), resnet("weights")
    with pytest.raises(TaskError, match="A number of threads must be 1 or more; given is 1, 0"):
        automc.bench(small, task, threads=(1, 0))
    with pytest.raises(TaskError, match="A batch must be 1 or more; given is none"):
        automc.bench(small, task, batches=())
    with pytest.raises(ArtifactError, match="Only a module that automc"):
        automc.bench(task.model, task)
