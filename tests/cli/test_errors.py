"""Bad input: one readable line on standard error, exit status 2, never a traceback."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

SEARCH = (
    "search",
    "my_task.py:task",
    "--budget",
    "macs<=60%",
    "--searcher",
    "stub",
    "--trials",
    "2",
    "--study",
    "tiny",
)


def refused(answer: tuple[int, str, str], said: str) -> None:
    status, _, err = answer
    lines = err.splitlines()
    assert status == 2, err
    assert len([x for x in lines if x.startswith("error: ")]) == 1 and lines[-1].startswith("error: "), err
    assert said in lines[-1]
    assert "Traceback" not in err


def changed(*changes: str) -> tuple[str, ...]:
    """The search command with options replaced."""
    command = list(SEARCH)
    for option, value in zip(changes[::2], changes[1::2], strict=True):
        if option in command:
            command[command.index(option) + 1] = value
        elif option == "TASK":
            command[1] = value
        else:
            command += [option, value]
    return tuple(command)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("TASK", "digitz"), "did you mean 'digits'?"),
        (("TASK", "my_task.py"), "write my_task.py:task"),
        (("TASK", "my_task.py:tsk"), "did you mean 'task'?"),
        (("TASK", "your_task.py:task"), "your_task.py does not"),
        (("TASK", "my_task.py:broken"), "NaN"),
        (("TASK", "my_task.py:blind"), "validation"),
        (("TASK", "my_task.py:crashing"), "KeyError: 'labels'"),
        (("TASK", "my_task.py:surprising"), "ZeroDivisionError: no samples"),
        (("--budget", "mac<=50%"), "'mac' is none of them"),
        (("--budget", "macs<=150%"), "at most 100"),
        (("--budget", "macs=50%"), "must read metric<=amount"),
        (("--budget", "macs<=0.01%"), "the smallest reachable value is"),
        (("--budget", "latency>=2ms"), "must read latency<=amount"),
        (("--budget", "latency<=2parsec"), "unit of latency"),
        (("--budget", "latency<=50%", "--latency", "nowhere.json"), "nowhere.json is not (No such file"),
        (("--budget", "latency<=50%", "--latency", "my_task.py"), "the whole of my_task.py is not"),
        (("--budget", "latency<=50%", "--batch", "0"), "--batch"),
        (("--searcher", "stab"), "did you mean 'stub'?"),
        (("--space", "chanels"), "did you mean 'channels'?"),
        (("--space", "mine.yaml"), "A space file must exist; mine.yaml does not"),
        (("--space", "haq.yml"), "did you mean the space 'haq'?"),
        (("--time", "10x"), "'10x' is not"),
        (("--memory", "much"), "500MB or 1GiB"),
        (("--score", "likeness"), "metric, kl, mse"),
        (("--stages", "many"), "'many' is not"),
        (("--stages", ""), "'' is not"),
        (("--stages", "256,-1"), "'256,-1' is not"),
        (("--stages", "1024,256"), "rising numbers of samples"),
        (("--stages", "5"), "30 or more"),
        (("--keep", "0"), "--keep"),
        (("--keep", "99"), "the best 1 to 64"),
        (("--trials", "0"), "--trials"),
        (("--workers", "0"), "--workers"),
        (("--workers", "two"), "--workers"),
        (("--workers", "2", "--executor", "rey"), "did you mean 'ray'?"),
        (("--executor", "procesess"), "did you mean 'processes'?"),
        (("--in-flight", "0"), "--in-flight"),
        (("--trial-time", "nonsense"), "'nonsense' is not"),
        (("--trial-time", "0s"), "'0s' is not"),
        (("--trial-memory", "much"), "500MB or 1GiB"),
        (("--trial-memory", "0MB"), "must be positive"),
        (("--storage", "/proc/nowhere/x.journal"), "/proc/nowhere"),
        (("--storage", "nosuchdb://x/y"), "nosuchdb://x/y"),
        (("--seeds", "1"), "--seeds"),
    ],
)
def test_a_search_that_cannot_begin(run: Run, changes: tuple[str, ...], said: str) -> None:
    refused(run(*changed(*changes)), said)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("serach",), "Did you mean 'search'?"),
        (("search", "digits"), "--budget"),
        (("pareto", "nothing"), "run `automc search` first"),
        (("pareto", "nothing.journal"), "nothing.journal"),
        (("evaluate", "nowhere"), "nowhere"),
        (("show", "my_task.py"), "another kind of file"),
        (("export", "nowhere", "--format", "pt2"), "nowhere must hold a saved model"),
        (("export", "nowhere", "--format", "onxx"), "did you mean 'onnx'?"),
        (("export", "nowhere"), "--format"),
        (("export", "nowhere", "--format", "pt2", "--kernels", "--batch", "0"), "--batch"),
        (("profile", "digitz", "--out", "t.json"), "did you mean 'digits',"),
        (("profile", "my_task.py:task", "--out", "/proc/nowhere/t.json"), "/proc/nowhere must be a folder"),
        (("profile", "my_task.py:task", "--out", "t.json", "--space", "chanels"), "did you mean 'channels'?"),
        (("profile", "my_task.py:task", "--out", "t.json", "--threads", "0"), "--threads"),
        (("bench", "nowhere"), "nowhere must hold a saved model"),
        (("bench", "nowhere", "--threads", "two"), "Threads must be numbers such as 1,2; 'two' is not"),
    ],
)
def test_commands_without_their_input(run: Run, command: tuple[str, ...], said: str) -> None:
    refused(run(*command), said)


def test_a_saved_model_that_cannot_be_exported_or_measured_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*SEARCH)[0] == 0 and run("apply", "tiny", "--out", "small")[0] == 0
    monkeypatch.setattr("automc.artifact.load", None)  # all of it is found out before the model is loaded
    refused(run("export", "small", "--format", "pt2", "--out", "small"), "small is a folder: name one in it")
    refused(run("export", "small", "--format", "pt2", "--out", "/proc/nowhere/x.pt2"), "/proc/nowhere")
    refused(run("export", "small", "--format", "onnx", "--kernels"), "onnx does not: take pt2, or leave kernels out")
    refused(run("bench", "small", "--threads", "0"), "A number of threads must be 1 or more; given is 0")
    refused(run("bench", "small", "--batch", "1,0"), "A batch must be 1 or more; given is 1, 0")
    Path("small/model.safetensors").write_bytes(b"")
    refused(run("export", "small", "--format", "pt2"), "its content has changed")


def test_a_study_that_does_not_fit_is_refused_and_kept(run: Run) -> None:
    assert run(*SEARCH)[0] == 0
    before = Path("runs/tiny.journal").read_bytes()
    refused(run(*changed("TASK", "my_task.py:retrained")), "the model it began with")
    refused(run(*changed("--budget", "macs<=30%")), "the budget it began with")
    refused(run(*changed("--space", "bits", "--budget", "macs<=100%")), "began with")
    assert Path("runs/tiny.journal").read_bytes() == before
    refused(run("apply", "tiny", "--out", "x", "--task", "my_task.py:retrained"), "fingerprint")
    refused(run("show", "tinny"), "did you mean 'tiny'?")
    refused(run("show", "tiny", "--trial", "9"), "a number from 0 to 1")
    refused(run("pareto", "tiny", "--cost", "latency"), "'latency' is none of them")
    refused(run("pareto", "tiny", "--html", "/proc/nowhere/x.html"), "/proc/nowhere/x.html")


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_computed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*SEARCH)
    Path("file").write_text("")

    def apply(*_: object, **__: object) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr("automc.api.apply", apply)
    for out in ("file", "file/small", "/proc/nowhere"):
        refused(run("apply", "tiny", "--out", out), f"{out} must be a folder that can be written to")


def test_a_damaged_artifact_is_refused_by_name(run: Run, tmp_path: Path) -> None:
    run(*SEARCH)
    assert run("apply", "tiny", "--out", "small")[0] == 0
    for name in ("model.safetensors", "policy.json", "report.json", "manifest.json"):
        path = tmp_path / "small" / name
        whole = path.read_bytes()
        flipped = whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]
        for damage in (whole[: len(whole) // 2], b"", *([flipped] if name != "manifest.json" else [])):
            path.write_bytes(damage)
            refused(run("evaluate", "small"), str(Path("small")))
        path.unlink()
        refused(run("evaluate", "small"), str(Path("small")))
        path.write_bytes(whole)
    assert run("evaluate", "small")[0] == 0


def test_a_result_without_a_known_task_asks_for_one(run: Run) -> None:
    run(*SEARCH)
    run("apply", "tiny", "--out", "small")
    Path("my_task.py").rename("moved.py")
    refused(run("evaluate", "small"), "my_task.py does not")
    assert run("evaluate", "small", "--task", "moved.py:task")[0] == 0
    assert json.loads(Path("small/report.json").read_text())["reference"].endswith("my_task.py:task")
