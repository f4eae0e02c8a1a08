"""The command line end to end: a search, its front, one trial, the compressed model on disk and back."""

import json
import logging
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import automc
from automc.costs.latency import LatencyTable
from automc.kernels.images import lanes
from automc.study import Study
from tests.cli.conftest import Run
from tests.cli.tiny import TASK

SEARCH = ("search", "my_task.py:task", "--budget", "macs<=60%", "--searcher", "stub", "--study", "tiny")
RACE = ("--stages", "60, 200", "--keep", "2", "--score", "mse")
ROOT = Path(__file__).parents[2]
needs_kernels = pytest.mark.skipif(not lanes(), reason="needs a C compiler")


def test_from_task_to_compressed_model_on_disk(run: Run, tmp_path: Path) -> None:
    status, out, err = run(*SEARCH, "--trials", "5")
    assert status == 0, err
    assert "5 trials: 5 scored in full\n" in out and "automc apply tiny --out" in out and "runs/tiny.journal" in out

    status, out, _ = run("pareto", "tiny", "--html", "front.html")
    assert status == 0 and "uniform" in out and "dense" in out
    page = (tmp_path / "front.html").read_text()
    assert "Plotly.newPlot" in page and 'src="http' not in page

    _, out, _ = run("pareto", "tiny", "--json")
    document = json.loads(out)
    assert document["front"] and document["uniform"]["costs"]["macs"] <= document["limits"]["macs"]

    _, out, _ = run("show", "tiny", "--trial", "2")
    assert "trial 2 (ok)" in out and "█" in out

    status, out, err = run("apply", "tiny", "--out", "small")
    assert status == 0, err
    report = json.loads((tmp_path / "small" / "report.json").read_text())
    assert report["split"] == "test"
    assert report["compressed"]["macs"] <= 0.6 * report["dense"]["macs"]
    assert report["compressed"]["bytes"] == (tmp_path / "small" / "model.safetensors").stat().st_size
    assert report["latency"]["batch_32"]["dense"]["median"] > 0 and report["latency"]["threads"] >= 1
    chosen = Study.open("runs/tiny.journal").best
    assert report["trial"] == chosen.number
    assert json.loads((tmp_path / "small" / "policy.json").read_text()) == chosen.policy.to_dict()

    status, out, err = run("evaluate", "small")
    assert status == 0, err
    shown = f"{report['compressed']['score']:.4f}"
    assert f"score on test: {shown} (when saved: {shown})" in out


def test_the_cheapest_trial_within_a_drop_is_shown_and_applied_instead_of_the_best(run: Run, tmp_path: Path) -> None:
    status, _, err = run(*SEARCH, "--trials", "5", "--score", "mse")  # the metric is perfect everywhere
    assert status == 0, err
    study = Study.open("runs/tiny.journal")
    cheapest = study.cheapest(1.0)
    assert cheapest.number != study.best.number
    _, out, _ = run("show", "tiny", "--max-drop", "1")
    assert f"trial {cheapest.number} (ok)" in out
    status, _, err = run("apply", "tiny", "--out", "small", "--max-drop", "1")
    assert status == 0, err
    assert json.loads((tmp_path / "small" / "report.json").read_text())["trial"] == cheapest.number
    for command in (("show", "tiny"), ("apply", "tiny", "--out", "other")):
        status, _, err = run(*command, "--trial", "2", "--max-drop", "1")
        assert status == 2 and "chosen by --trial or by --max-drop" in err
        status, _, err = run(*command, "--max-drop", "-1")
        assert status == 2 and "A drop must be a number from 0 up" in err


def test_a_race_says_how_many_trials_were_stopped_and_shows_one(run: Run) -> None:
    status, out, err = run(SEARCH[0], "my_task.py:many", *SEARCH[2:], "--trials", "25", *RACE)
    assert status == 0, err
    found = Study.open("runs/tiny.journal")
    stopped = [e for e in found.evaluations if e.state == "pruned"]
    assert stopped and f"25 trials: {25 - len(stopped)} scored in full, {len(stopped)} stopped early\n" in out
    assert found.meta["race"] == {"stages": [60, 200], "keep": 2, "screen": False}
    status, out, _ = run("show", "tiny", "--trial", str(stopped[0].number))
    assert status == 0 and "(pruned)" in out and "Stopped after" in out and "% of the samples" in out
    status, out, _ = run("pareto", "tiny", "--json", "--html", "front.html")
    assert status == 0 and all(e["state"] == "ok" for e in json.loads(out)["front"])


def test_a_policy_is_applied_and_distilled(run: Run, tmp_path: Path) -> None:
    run(*SEARCH, "--trials", "2")
    status, _, err = run("apply", "tiny", "--out", "small", "--distill", "2")
    assert status == 0 and "epoch 2/2: loss" in err
    assert json.loads((tmp_path / "small" / "report.json").read_text())["distilled_epochs"] == 2
    plain, distilled = ((tmp_path / name / "model.safetensors") for name in ("plain", "small"))
    run("apply", "tiny", "--out", "plain")
    assert plain.read_bytes() != distilled.read_bytes()
    _, out, _ = run("evaluate", "small")
    score = re.findall(r"score on test: (\S+) \(when saved: (\S+)\)", out)[0]
    assert score[0] == score[1]


def test_a_saved_model_is_exported_and_measured(run: Run, tmp_path: Path) -> None:
    assert run(*SEARCH, "--trials", "2")[0] == 0
    assert run("apply", "tiny", "--out", "small")[0] == 0
    for command, target in ((("pt2",), "small/model.pt2"), (("onnx", "--out", "left/net.onnx"), "left/net.onnx")):
        status, out, err = run("export", "small", "--format", *command)
        assert status == 0 and not err, err
        size = (tmp_path / target).stat().st_size
        assert out == f"{target}: {size} bytes, checked: it computes what small does\n"
    assert [path.name for path in (tmp_path / "left").iterdir()] == ["net.onnx"]

    status, out, _ = run("bench", "small", "--batch", "1,4", "--threads", "1")
    assert status == 0 and "speed-up" in out and "on disk: " in out
    assert "bfloat16" not in out
    status, out, _ = run("bench", "small", "--batch", "2", "--threads", "1", "--bf16")
    assert status == 0 and "bfloat16: layers of both models might compute in it; outputs may be 3.1% of" in out
    status, out, _ = run("bench", "small", "--batch", "2", "--threads", "1", "--json")
    found = json.loads(out)
    assert [entry["batch"] for entry in found["runs"]] == [2]
    assert found["file_bytes"]["compressed"] == (tmp_path / "small" / "model.safetensors").stat().st_size


def the_last_wins(ways: Sequence[object]) -> list[float]:
    """Seconds, so that of the forms of a network one plan is the fastest."""
    return [1.0 / (1 + n) for n in range(len(ways))]


@pytest.mark.slow
@needs_kernels
def test_a_saved_model_leaves_by_automcs_kernels_or_by_torchs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(*SEARCH, "--trials", "2")[0] == 0
    assert run("apply", "tiny", "--out", "small")[0] == 0
    monkeypatch.setattr("automc.deployment.deploy.seconds_of", the_last_wins)
    status, out, err = run("export", "small", "--format", "pt2", "--kernels", "--batch", "3")
    assert status == 0 and not err, err
    size, saved = ((tmp_path / "small" / name).stat().st_size for name in ("model.pt2", "model.safetensors"))
    first, second, third = out.splitlines()
    assert first == f"small/model.pt2: {size} bytes, checked: it computes what small does"
    assert second.startswith(f"form: one plan; plans run on vectors of {lanes()} floats, as here, and say so")
    assert second.endswith(f"model.safetensors takes {saved} bytes")
    line = "import torch, automc.kernels.ops; module = torch.export.load('small/model.pt2').module()"
    assert third == f"to load, where automc is installed: {line}"

    for has, why in ((lanes(), "nothing is faster here than torch's own"), (0, "there are no compiled kernels here")):
        monkeypatch.setattr("automc.deployment.deploy.seconds_of", lambda ways: the_last_wins(ways)[::-1])
        monkeypatch.setattr("automc.kernels.images.lanes", lambda has=has: has)
        status, out, err = run("export", "small", "--format", "pt2", "--kernels", "--out", "plain.pt2")
        assert status == 0 and len(out.splitlines()) == 1 and "checked" in out
        assert err.startswith("It is written as without --kernels, and runs without automc, since") and why in err


def test_the_same_command_again_goes_on(run: Run) -> None:
    run(*SEARCH, "--trials", "3")
    _, _, err = run(*SEARCH, "--trials", "5")
    assert "going on after 3 of 5 trials" in err
    parts = Study.open("runs/tiny.journal").evaluations
    run(*SEARCH[:-1], "whole", "--trials", "5")
    whole = Study.open("runs/whole.journal").evaluations
    assert [(e.policy, e.score) for e in parts] == [(e.policy, e.score) for e in whole]


BESIDE = """
import automc
from my_task import net, task as plain
from parts import scores
from parts.deep import offset


def spread():
    found = plain()
    return automc.Task(
        found.model, calibration=found.calibration, validation=found.validation,
        metric=lambda outputs, targets: scores.right(outputs, targets) + offset.NONE,
    )
"""


def test_workers_score_a_task_of_a_file_and_what_it_imports_beside_it(run: Run, tmp_path: Path) -> None:
    """A module, a package in a package, a folder without an __init__, and a metric that has no name."""
    folder = tmp_path / "elsewhere"
    (folder / "parts" / "deep").mkdir(parents=True)
    (folder / "my_task.py").write_text(TASK)
    (folder / "beside.py").write_text(BESIDE)
    (folder / "parts" / "scores.py").write_text(
        "def right(outputs, targets):\n    from parts.deep import offset  # when it is called\n"
        "    return (outputs.argmax(1) == targets).float() + offset.NONE\n"
    )
    (folder / "parts" / "deep" / "__init__.py").write_text("")
    (folder / "parts" / "deep" / "offset.py").write_text("NONE = 0.0\n")
    command = (SEARCH[0], "elsewhere/beside.py:spread", *SEARCH[2:], "--trials", "4")
    try:
        status, out, err = run(*command, "--workers", "2", "--in-flight", "1", "--trial-time", "5m")
        assert status == 0, err
        assert "4 trials: 4 scored in full\n" in out
        parts = Study.open("runs/tiny.journal").evaluations
        assert run(*command[:-3], "alone", *command[-2:])[0] == 0
    finally:
        for name in ("my_task", "parts", "parts.scores", "parts.deep", "parts.deep.offset"):
            sys.modules.pop(name, None)
    whole = Study.open("runs/alone.journal").evaluations
    assert [(e.policy, e.score, e.state) for e in parts] == [(e.policy, e.score, e.state) for e in whole]
    assert not any(name.startswith(str(folder)) for name in sys.path)


@pytest.mark.slow
def test_the_embedded_task_is_searched_by_two_workers(run: Run) -> None:
    command = ("search", "digits", "--budget", "macs<=50%", "--space", "channels", "--searcher", "random")
    status, out, err = run(*command, "--trials", "3", "--workers", "2", "--trial-memory", "4GiB", "--study", "spread")
    assert status == 0, err
    assert "3 trials: 3 scored in full\n" in out and "best: trial" in out and "Traceback" not in err
    assert len({e.policy for e in Study.open("runs/spread.journal").evaluations}) == 3


def test_a_search_is_told_to_files_of_its_users_choice(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    automc_log = logging.getLogger("automc")
    for name in ("handlers", "level"):
        monkeypatch.setattr(automc_log, name, getattr(automc_log, name))
    told = ("--events", "told/events.jsonl", "--tensorboard", "board", "--log", "told/log.txt")
    for trials in ("2", "4"):
        status, _, err = run(*SEARCH, "--trials", trials, *told)
        assert status == 0, err
    events = [json.loads(line) for line in (tmp_path / "told" / "events.jsonl").read_text().splitlines()]
    assert [e["type"] for e in events] == ["begin", "trial", "trial", "end"] * 2
    assert events[0]["task"] == str(tmp_path / "my_task.py") + ":task" and events[0]["budget"] == "macs<=60%"
    assert events[0]["searcher"] == "stub" and events[0]["seed"] == 0 and events[0]["dense"]["costs"]["macs"] > 0
    assert list((tmp_path / "board" / "tiny").iterdir())
    log = (tmp_path / "told" / "log.txt").read_text()
    assert log.count("trial 3 by") == 1 and log.count("INFO Study tiny: done") == 2


def test_a_place_that_cannot_be_written_to_is_refused_before_a_search(run: Run, tmp_path: Path) -> None:
    for option in ("--events", "--log"):
        status, out, err = run(*SEARCH, option, str(tmp_path))
        assert status == 2 and str(tmp_path) in err and "Traceback" not in err and not out
    assert not (tmp_path / "runs").exists()


def test_the_default_name_comes_from_the_search_itself(run: Run) -> None:
    _, _, err = run(*SEARCH[:-2], "--trials", "1", "--seed", "3")
    assert "study my-task-macs60-channels-ranks-stub-3 in runs/" in err


def test_bits_are_opened_where_the_budget_needs_them(run: Run) -> None:
    status, out, err = run(*SEARCH[:3], "macs<=70%,size<=85%", *SEARCH[4:], "--trials", "3")
    assert status == 0, err
    assert ", size " in out
    study = Study.open("runs/tiny.journal")
    assert study.meta["space"] == "channels-bits" and study.costs == ("macs", "size")
    assert any(d.weight_bits < 32 for e in study.evaluations for _, d in e.policy.layers)


def test_a_database_by_url(run: Run) -> None:
    status, _, err = run(*SEARCH, "--trials", "2", "--storage", "sqlite:///here.db")
    assert status == 0, err
    status, out, _ = run("pareto", "sqlite:///here.db", "--study", "tiny", "--json")
    assert status == 0 and json.loads(out)["study"] == "tiny"


def test_inspect_names_layers_and_groups(run: Run) -> None:
    status, out, _ = run("inspect", "my_task.py:task")
    assert status == 0
    assert "groups of channels" in out and "3 layers, 2 groups" in out


def test_the_version_needs_no_command(run: Run) -> None:
    assert run("--version") == (0, f"{automc.__version__}\n", "")


def test_names_are_printed_as_they_stand_whatever_brackets_they_hold(run: Run) -> None:
    for name in ("x[test]", "run[/a] [bold]x", "a:smile:b"):
        status, out, err = run(*SEARCH[:-1], name, "--trials", "2")
        assert status == 0, err
        (following,) = (line for line in out.splitlines() if "automc show" in line)
        assert shlex.split(following) == ["automc", "show", name]
        for command in ("pareto", "show"):
            status, _, err = run(command, name)
            assert status == 0, err
        assert f"{name}: macs<=60%" in run("pareto", name)[1]


def test_the_only_study_of_a_file_is_taken_whatever_its_name(run: Run) -> None:
    run(*SEARCH, "--trials", "2", "--storage", "runs/moved.journal")
    assert json.loads(run("pareto", "moved", "--json")[1])["study"] == "tiny"
    run(*SEARCH[:-1], "moved", "--trials", "1", "--storage", "runs/moved.journal")
    assert json.loads(run("pareto", "moved", "--json")[1])["study"] == "moved"
    status, _, err = run("pareto", "moved", "--study", "tinny")
    assert status == 2 and "holds tiny, moved and no 'tinny': give one of these by --study" in err


def test_what_was_trained_is_on_disk_before_the_report_is_made(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the test data is gone")

    run(*SEARCH, "--trials", "2")
    with monkeypatch.context() as patch:
        patch.setattr("automc.report.summary.report", broken)
        status, _, err = run("apply", "tiny", "--out", "small", "--distill", "1")
        assert status == 2 and "the test data is gone" in err
    kept = (tmp_path / "small" / "model.safetensors").read_bytes()
    assert run("evaluate", "small")[0] == 0
    assert run("apply", "tiny", "--out", "again", "--distill", "1")[0] == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == kept


def test_stages_that_stop_nobody_are_said_and_not_recorded(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    for task, said in (("task", "must leave validation samples unseen; 60, 200"), ("own", "need scores by sample")):
        caplog.clear()
        command = (SEARCH[0], f"my_task.py:{task}", *SEARCH[2:-1], task, "--trials", "1")
        assert run(*command, "--stages", "60,200")[0] == 0
        (message,) = caplog.messages
        assert said in message and "every candidate is scored in full" in message
        assert Study.open(f"runs/{task}.journal").meta["race"]["stages"] == []
    caplog.clear()
    run(SEARCH[0], "my_task.py:many", *SEARCH[2:], "--trials", "1", "--stages", "60,2000")
    assert not caplog.messages and Study.open("runs/tiny.journal").meta["race"]["stages"] == [60]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are timed in a moment, and badly."""
    hasty = {
        "stopwatch.ROUNDS": 2,
        "stopwatch.TURN": 1e-5,
        "profile.MODELS": 4,
        "profile.SHARES": (0.5, 1.0),
    }
    for name, value in hasty.items():
        monkeypatch.setattr(f"automc.deployment.{name}", value)


@pytest.mark.usefixtures("hasty")
def test_a_model_is_timed_and_searched_within_seconds_by_the_file(run: Run, tmp_path: Path) -> None:
    status, out, err = run(
        "profile", "my_task.py:task", "--space", "channels", "--out", "tables/t.json", "--batch", "2"
    )
    assert status == 0, err
    assert err.splitlines()[0] == "timing the dense model" and err.splitlines()[-1] == "timing whole model 4 of 4"
    table = LatencyTable.read(tmp_path / "tables" / "t.json")
    assert table.batch == 2 and f"{table.threads} thread" in out and f"batch 2: dense {1e3 * table.dense:.3g} ms" in out
    assert "3 kinds of layers, 3 layers" in out and "4 whole models: foretold to within" in out
    assert out.endswith("tables/t.json: search with --latency tables/t.json\n")

    command = (*SEARCH[:3], "latency<=10s,macs<=60%", *SEARCH[4:], "--trials", "2", "--latency", "tables/t.json")
    status, out, err = run(*command)
    assert status == 0, err
    study = Study.open("runs/tiny.journal")
    assert study.costs == ("latency", "macs") and study.meta["latency"]["fingerprint"] == table.fingerprint
    foretold = f"latency: {1e3 * study.best.cost('latency'):.3g} ms"
    assert re.search(rf"\n{re.escape(foretold)} \(.*% of dense\) foretold, .* ms \(.*% of dense\) measured\n", out)
    assert not Path("runs/latency").exists()
    _, out, _ = run("pareto", "tiny", "--cost", "latency")
    assert " ms" in out


def test_a_table_of_another_device_is_not_compared_with_this_one(run: Run) -> None:
    facts = automc.inspect("my_task.py:task")
    kinds = [{"layers": ["0"], "inputs": [3], "outputs": [4, 8], "seconds": [[0.5, 1.0]]}]
    table = {
        "fingerprint": facts.fingerprint,
        "device": "phone",
        "threads": 1,
        "batch": 1,
        "dense": 1.0,
        "kinds": kinds,
    }
    Path("phone.json").write_text(json.dumps(table))
    command = (*SEARCH[:3], "latency<=80%", *SEARCH[4:], "--space", "channels", "--trials", "2")
    status, out, err = run(*command, "--latency", "phone.json")
    assert status == 0, err
    assert "at latency 75.0%" in out
    assert "measured" not in out and "foretold" not in out


def test_tasks_are_listed(run: Run) -> None:
    assert "digits\n" in run("tasks")[1]


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom automc import cli\n"
        "try: cli.main(['search', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'optuna', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_tells_of_profile_and_of_its_table(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0 and "profile" in out and "Time the layers of a model" in out
    status, out, _ = run("profile", "--help")
    assert status == 0 and "--out" in out and "--batch" in out and "--threads" in out
    assert "--latency" in run("search", "--help")[1]


INTERRUPTED = """
import sys
from automc import cli
from automc.registry import SEARCHERS
SEARCHERS.table["stub"] = SEARCHERS.table["uniform"] = "tests.cli.tiny:Stub"
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_search_with_its_status_and_says_how_to_go_on(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    (tmp_path / "my_task.py").write_text(TASK)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *SEARCH, "--trials", "100000"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    path = tmp_path / "runs" / "tiny.journal"
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b'"policy":') > 3):
        time.sleep(0.05)
    time.sleep(random.Random(int(number)).uniform(0.0, 0.1))
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert "the same command goes on" in err and "Traceback" not in err
    assert Study.open(path).best.ok


def python(folder: Path, *arguments: str) -> str:
    """What a process in a folder prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study of the digits, d, and its best model, small."""
    folder, budget = tmp_path_factory.mktemp("digits"), "macs<=50%"
    python(
        folder, *("-m", "automc", "search", "digits", "--budget", budget, "--searcher", "joint", "--trials", "4"),
        *("--study", "d"),
    )  # fmt: skip
    python(folder, "-m", "automc", "apply", "d", "--out", "small")
    return folder


@pytest.mark.timeout(240)  # trains the digits model where no earlier test has
@pytest.mark.slow
def test_digits_end_to_end(digits: Path) -> None:
    assert json.loads(python(digits, "-m", "automc", "pareto", "d", "--json"))["front"]
    report = json.loads((digits / "small" / "report.json").read_text())
    assert report["compressed"]["macs"] <= 0.5 * report["dense"]["macs"]
    assert f"{report['compressed']['score']:.4f} (when saved" in python(digits, "-m", "automc", "evaluate", "small")


FASTEST = """
import sys
from automc import cli
from automc.deployment import deploy
from tests.cli.test_commands import the_last_wins
deploy.seconds_of = the_last_wins
cli.main(sys.argv[1:])
"""
READ = """
import torch
from automc.tasks import load_task
x = torch.cat(load_task("digits").calibration_inputs(7))
from automc.saved import load
small = load("small", load_task("digits"))
{line}
with torch.no_grad():
    print(*(float((module(x[:n]) - small(x[:n])).abs().max() / small(x).abs().max()) for n in (1, 7)))
"""


@needs_kernels
@pytest.mark.timeout(240)
@pytest.mark.slow
def test_digits_leave_by_the_kernels_and_come_back_by_the_line_that_is_printed(digits: Path) -> None:
    said = python(digits, "-c", FASTEST, "export", "small", "--format", "pt2", "--kernels").splitlines()
    assert "checked: it computes what small does" in said[0] and said[1].startswith("form: one plan;")
    line = said[2].removeprefix("to load, where automc is installed: ")
    differences = [float(word) for word in python(digits, "-c", READ.format(line=line)).split()]
    assert len(differences) == 2 and max(differences) < 1e-4
