"""Names that hold paths, markup, escapes and marks: they write nowhere else, and do nothing where they are shown."""

import contextlib
import json
import re
import unicodedata
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn

import automc
from automc import artifact
from automc.compression import provenance
from automc.costs.latency import LatencyTable
from automc.errors import AutomcError, GraphError, StudyError
from automc.evaluation import Evaluation
from automc.policy import GroupDecision, LayerDecision, Policy
from automc.report import bench, decisions, facts, front, summary, text
from automc.setting import study_name
from automc.study import Study, default_path
from automc.task import Task
from automc.visible import LENGTH, brief, visible
from tests.cli.conftest import Run, run  # noqa: F401 - a fixture
from tests.cli.test_errors import SEARCH, refused
from tests.faults.files import watch
from tests.faults.files.readers import READERS
from tests.study import lab

HOSTILE = (
    "../../../etc/cron.d/x",
    "/etc/passwd",
    "a\0b",
    "a\nerror: b",
    "a\r\x1b[2K\x1b]0;title\x07b",
    "\x9b31m",
    "a\u202etxt.exe\u2066b",
    "a\u2028b\u2029c\x85d",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    '<a href="javascript:alert(1)">b</a>',
    "</script><b>x</b><br>&lt;&amp;",
    "[red]a[/red] [link=file:///etc]b[/link] :smile: [/]",
    "$\\href{javascript:alert(1)}{x}$",
    "%s %(name)s {0} {x!r} %n",
    "a'b\"c;$(id)`id`",
    "C:\\windows\\system32",
    "con",
    "x" * 5000,
    "\ud800",
)
ROOT = Path(__file__).parents[3]


def harmless(shown: str) -> bool:
    """Whether nothing in it is obeyed by a terminal, reorders its line, or is no character at all."""
    return all(c == "\n" or (unicodedata.category(c)[0] != "C" and c not in "\u2028\u2029") for c in shown)


class Tags(HTMLParser):
    """What a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)


def tags(page: str) -> list[str]:
    parser = Tags()
    parser.feed(page)
    return parser.found


def marked(value: Any) -> set[str]:
    """Every tag that stands in the texts of a figure, as plotly would read them."""
    if isinstance(value, str):
        return set(re.findall(r"<\s*/?\s*(\w+)", value))
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return set().union(*(marked(item) for item in items))


def study_of(folder: Path, name: str) -> Study:
    """A study in which everything that may be called anything is called `name`."""
    where = folder / "x.journal"
    costs = {"macs": 1000.0, "size": 4000.0, name: 5.0}
    meta = lab.meta(budget=name, metric=name, score="kl", dense={"score": 0.99, "metric": 0.9, "costs": costs})
    record = Study.create(where, name, meta, lab.AXES)
    rng = np.random.default_rng(0)
    for _ in range(3):
        drawn = lab.draw(rng)
        policy = replace(
            drawn,
            groups=(*drawn.groups, (name, GroupDecision(0.5, name))),
            layers=(*drawn.layers, (name, LayerDecision(rank=0.5, factorization=name))),
        )
        found = Evaluation(policy, "ok", 0.5, (("macs", 5.0), ("size", 6.0), (name, 7.0)), proposer=name, reason=name)
        record.record(found)
    return Study.open(where)


@pytest.mark.parametrize("name", HOSTILE[:-1])
def test_a_plot_shows_names_and_obeys_none(name: str, tmp_path: Path) -> None:
    plain, odd = (front.figure(study_of(tmp_path / str(i), n)) for i, n in enumerate(("plain", name)))
    assert marked(odd.to_plotly_json()) == marked(plain.to_plotly_json()) == {"b", "br"}
    pages = [figure.to_html(include_plotlyjs=False, full_html=True) for figure in (plain, odd)]
    assert tags(pages[0]) == tags(pages[1])
    shown = json.dumps(odd.to_plotly_json(), ensure_ascii=False, default=lambda x: x.tolist())
    assert harmless(shown)


@pytest.mark.parametrize("name", HOSTILE[:-1])
def test_tables_and_lines_show_names_and_obey_none(name: str, tmp_path: Path) -> None:
    study = study_of(tmp_path, name)
    console = Console(width=400, record=True, file=(tmp_path / "out").open("w", encoding="utf-8"))
    policy = study.best.policy
    for table in (front.table(study, study.costs), *decisions.tables(policy)):
        console.print(table)
    shown = console.export_text()
    assert harmless(shown) and visible(name)[:8] in shown
    assert harmless(text.policy_line(policy))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_study_of_any_name_stays_in_its_folder_or_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with watch.written() as paths:
        try:
            Study.create(None, name, lab.meta(), lab.AXES)
        except StudyError as error:
            assert "\n" not in str(error) and harmless(str(error))
    runs = tmp_path / "here" / "runs"
    assert all(p.is_relative_to(runs) or p.name == "null" for p in paths), paths
    assert {p.name for p in tmp_path.iterdir()} == {"here"}


@given(st.text(max_size=30))
def test_the_usual_place_of_a_study_is_in_runs_whatever_its_name(name: str) -> None:
    try:
        path = default_path(name)
    except StudyError as error:
        assert visible(str(error)) == str(error)
    else:
        assert Path("/a/b/runs") in Path("/a/b", path).resolve().parents


@given(st.text(), st.text())
def test_the_name_a_study_gets_by_itself_is_harmless(task: str, space: str) -> None:
    found = study_name(task, automc.Budget.parse("macs<=50%"), space, "joint", 0)
    assert re.fullmatch(r"[a-z0-9.-]+", found)
    assert default_path(found).parent == Path("runs")


@given(st.text())
def test_what_is_shown_is_one_line_of_what_prints_and_says_the_same_to_a_reader(name: str) -> None:
    shown = visible(name)
    assert shown.isprintable() and visible(shown) == shown
    assert shown == name or not name.isprintable()
    assert len(brief(name)) <= LENGTH and brief(name).isprintable()


class Odd(nn.Module):
    """A net whose layers are called anything."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, nn.Conv2d(3, 8, 3, padding=1))
        self.add_module(f"{name} 2", nn.Conv2d(8, 4, 1))
        self.names = (name, f"{name} 2")

    def forward(self, x: Tensor) -> Tensor:
        first, second = (self.get_submodule(n) for n in self.names)
        out: Tensor = second(first(x).relu()).mean((2, 3))
        return out


LAYERS = [name.replace(".", "") for name in HOSTILE if name.isprintable() and not {'"', "\\"} & set(name)]
"""Modules' names have no dots; what torch.fx would write into code as it stands is refused."""


@pytest.mark.parametrize("name", [n.replace(".", "") for n in HOSTILE if n.replace(".", "") not in LAYERS])
def test_a_name_that_torch_fx_would_take_for_code_is_refused(name: str) -> None:
    x = torch.zeros(4, 3, 6, 6)
    model = Odd(name).eval()
    task = Task(model, [(x, torch.zeros(4).long())], [(x, torch.zeros(4).long())])
    for call in (lambda: automc.inspect(task), lambda: automc.apply(task, Policy("f"))):
        with pytest.raises(GraphError, match="rename it"):
            call()


def test_a_layers_name_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = nn.Sequential()
    model.add_module('x", None) or open("canary", "w") or getattr(self, "x', nn.ReLU())
    batch = (torch.zeros(4, 2), torch.zeros(4).long())
    with pytest.raises(GraphError, match="rename it"):
        automc.inspect(Task(model, [batch], [batch]))
    assert not (tmp_path / "canary").exists()
    with contextlib.suppress(Exception):
        torch.fx.symbolic_trace(model)(batch[0])
    assert (tmp_path / "canary").exists()  # so that the name is one that runs


@pytest.mark.parametrize("name", LAYERS)
def test_a_model_with_such_layers_is_compressed_saved_and_shown_as_any_other(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    model = Odd(name).eval()
    x = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    batch = (x, model(x).argmax(dim=1))
    task = Task(model, [batch], [batch], name=name, factory=lambda: Odd(name))
    with watch.written() as paths:
        found = automc.inspect(task)
        layers = tuple((layer.name, LayerDecision(weight_bits=4)) for layer in found.layers)
        groups = tuple((group.name, GroupDecision(0.5)) for group in found.groups)
        small = automc.apply(task, Policy(found.fingerprint, groups, layers))
        automc.save(small, "small", report=summary.report(task, small))
        again = automc.load("small", lambda: Odd(name))
    here = tmp_path / "here" / "small"
    outside = [p for p in paths if not p.is_relative_to(here) and p.is_relative_to(tmp_path)]
    assert not outside and not [p for p in paths if p.is_relative_to("/etc")]
    assert {p.name for p in here.iterdir()} == {*artifact.FILES, artifact.MANIFEST}
    assert torch.equal(again(x), small(x))
    console = Console(width=400, record=True, file=(tmp_path / "out").open("w", encoding="utf-8"))
    for table in (*facts.tables(found), *decisions.tables(provenance.of(small).policy)):
        console.print(table)
    assert harmless(console.export_text())
    assert all(harmless(visible(line)) for line in facts.lines(found))


@pytest.mark.parametrize("name", ["<script>", "../../x", "a b/c"])
def test_such_a_model_leaves_as_onnx(name: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = Odd(name.replace(".", "")).eval()
    x = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    batch = (x, model(x).argmax(dim=1))
    task = Task(model, [batch], [batch])
    found = automc.inspect(task)
    layers = tuple((layer.name, LayerDecision(weight_bits=8, activation_bits=8)) for layer in found.layers)
    small = automc.apply(task, Policy(found.fingerprint, (), layers))
    with watch.written() as paths:
        try:
            automc.export(small, tmp_path / "m.onnx", format="onnx", example_inputs=x)
        except AutomcError as error:
            assert str(tmp_path / "m.onnx") in str(error) or "ONNX" in str(error)
            return
    assert not [p for p in paths if p.is_relative_to("/etc")]
    onnx.checker.check_model(str(tmp_path / "m.onnx"))


def test_commands_print_hostile_names_as_text(run: Run, tmp_path: Path) -> None:  # noqa: F811
    for number, name in enumerate((HOSTILE[0], HOSTILE[3], HOSTILE[4], HOSTILE[6], HOSTILE[9], HOSTILE[11])):
        folder = tmp_path / str(number)
        folder.mkdir()
        journal = study_of(folder, name).storage
        for command in (("pareto", journal), ("show", journal), ("pareto", journal, "--html", str(folder / "x.html"))):
            status, out, err = run(*command)
            assert status == 0 and harmless(out) and harmless(err), err
        assert {p.name for p in folder.iterdir()} <= {"x.journal", "x.html", ".x.journal.owner"}
        refused(run("show", journal, "--study", f"{name}x"), "holds")
        status, out, err = run("show", name)
        assert status == 2 and harmless(err) and err.count("\n") == 1
        status, out, err = run(*SEARCH[:-1], name, "--trials", "1")
        assert status in (0, 2) and harmless(out) and harmless(err), err
    assert not [p for p in tmp_path.parent.iterdir() if p not in (tmp_path,) and p.name.startswith("x")]


def test_a_device_of_any_name_is_shown_as_text(tmp_path: Path) -> None:
    path = READERS["latency table"].make(tmp_path)
    said = json.loads(path.read_text()) | {"device": HOSTILE[4], "form": HOSTILE[5]}
    path.write_text(json.dumps(said))
    assert all(harmless(visible(line)) for line in text.latency_lines(LatencyTable.read(path)))


def test_a_task_of_any_name_is_shown_as_text() -> None:
    for name in HOSTILE:
        console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(bench.table({"task": name, "runs": []}))
        assert harmless(console.export_text())
