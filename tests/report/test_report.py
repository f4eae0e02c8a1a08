"""Tables, plots and the report file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

import automc
from automc.policy import BlockDecision, GroupDecision, LayerDecision, Policy
from automc.report import decisions, facts, front, latency, text
from automc.report.progress import Bar
from automc.study import Study
from tests.study import lab


def filled(path: Path, count: int = 12) -> Study:
    study = lab.study(path, dense={"score": 0.9, "costs": {"macs": 1000.0, "size": 4000.0}})
    rng = np.random.default_rng(0)
    for _ in range(count):
        study.record(replace(lab.lookup(lab.draw(rng)), proposer="draws"))
    study.note("uniform", {"score": 0.4, "costs": {"macs": 690.0, "size": 2900.0}})
    return study


def printed(thing: object) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(thing)
    return console.export_text()


def test_the_table_holds_the_front_between_dense_and_uniform(tmp_path: Path) -> None:
    study = filled(tmp_path / "lab.journal")
    shown = printed(front.table(study, study.costs))
    assert "dense" in shown and "uniform" in shown and "draws" in shown
    best = study.best
    assert f"{best.score:.4f}" in shown and text.share(best.cost("macs"), 1000) in shown
    rows = [line for line in shown.splitlines() if "draws" in line]
    assert len(rows) == len(study.pareto())


def test_the_plot_marks_dense_and_uniform_and_shows_policies_without_a_network(tmp_path: Path) -> None:
    study = filled(tmp_path / "lab.journal")
    figure = front.figure(study)
    names = [trace.name for trace in figure.data]
    assert names == ["trials", "front", "dense", "uniform"] * 2
    first = figure.data[1]
    assert "stem" in first.text[0] and "score" in first.text[0]
    assert list(first.x) == sorted(first.x)
    front.write_html(study, tmp_path / "front.html")
    page = (tmp_path / "front.html").read_text()
    assert len(page) > 3_000_000 and '<script src="http' not in page


def test_a_plot_without_baseline_or_feasible_trials_is_still_a_plot(tmp_path: Path) -> None:
    study = lab.study(tmp_path / "lab.journal")
    assert [t.name for t in front.figure(study).data] == ["trials", "front", "dense"] * 2


def test_trials_stopped_early_are_shown_as_what_they_are(tmp_path: Path) -> None:
    study = filled(tmp_path / "lab.journal", 3)
    found = study.record(lab.pruned(lab.lookup(lab.draw(np.random.default_rng(8)))))
    assert text.counts_line(study.evaluations) == "4 trials: 3 scored in full, 1 stopped early"
    meta = study.meta | {"metric": "accuracy", "dense": {"score": 0.9, "metric": 0.9}}
    assert text.scores_line(found, meta).endswith("(dense 0.9000), estimated from 5% of the samples")
    assert "estimated" not in text.scores_line(study.evaluations[0], meta)
    as_json = text.as_json(found)
    assert as_json["reason"] == "Stopped." and as_json["predicted"] is None
    assert as_json["state"] == "pruned" and as_json["share"] == 0.05 and as_json["stages"] == found.stages
    figure = front.figure(study)
    assert [t.name for t in figure.data] == ["stopped early", "trials", "front", "dense", "uniform"] * 2
    assert len(figure.data[0].x) == 1 and len(figure.data[1].x) == 3
    assert "estimated from 5% of the samples" in figure.data[0].text[0] and "macs" in figure.data[0].text[0]
    assert "1 of 4 stopped early" in Bar(study, 9, None).news()


def test_trials_are_counted_by_how_they_ended() -> None:
    one = lab.lookup(lab.draw(np.random.default_rng(0)))
    states = ("ok", "pruned", "pruned", "infeasible", "failed")
    every = [replace(one, state=s) for s in states]  # type: ignore[arg-type]
    assert text.counts_line(every) == "5 trials: 1 scored in full, 2 stopped early, 1 infeasible, 1 failed"
    assert (
        text.counts_line([one]) == "1 trial: 1 scored in full" and text.counts_line([]) == "0 trials: 0 scored in full"
    )


def test_a_policy_on_one_line_says_what_differs_from_dense() -> None:
    groups = (("a", GroupDecision(0.5)), ("b", GroupDecision(1.0)))
    policy = Policy("f", groups, (("a", LayerDecision(4, 8, 0.25)), ("b", LayerDecision())))
    assert text.policy_line(policy) == "a 50%, a w4 a8 25% zeros"
    assert text.policy_line(Policy("f")) == "dense"
    every = (
        ("a", LayerDecision(4, codebook="kmeans", sparsity=0.5, pattern="2:4")),
        ("b", LayerDecision(rank=0.4, factorization="cp")),
        ("c", LayerDecision(pattern="4x1")),  # no zeros: the pattern says nothing
    )
    full = Policy("f", (), every, blocks=(("x", BlockDecision(0)), ("y", BlockDecision(1))))
    assert text.policy_line(full) == "without x, a w4 shared 50% zeros in 2:4, b cp 40%"
    shown = "".join(printed(t) for t in decisions.tables(full))
    for said in ("left out", "stays", "4 bits, shared", "50% 2:4 l1", "cp 40%"):
        assert said in shown


def test_bars_are_as_long_as_what_is_kept() -> None:
    tables = decisions.tables(Policy("f", (("a", GroupDecision(0.5)),), (("a", LayerDecision(4)),)))
    shown = [printed(t) for t in tables]
    assert shown[0].count("█") == shown[1].count("█") == 12
    assert "4 bits" in shown[1] and len(decisions.tables(Policy("f"))) == 0


def test_progress_tells_best_cost_pace_and_time(tmp_path: Path) -> None:
    study = filled(tmp_path / "lab.journal", 3)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with Bar(study, 4, 60.0, console) as bar:
        bar(study.record(lab.lookup(lab.draw(np.random.default_rng(7)))))
    said = console.export_text()
    assert said.startswith("4/4 best") and "macs" in said and "trials/s" in said and "left" in said
    empty = lab.study(tmp_path / "empty.journal")
    assert "no feasible trial yet" in Bar(empty, 4, None, console).news()


def test_latency_names_the_form_and_the_threads_of_each_module() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    found = latency.compare({"dense": net, "compressed": nn.Conv2d(3, 2, 3)}, (torch.randn(2, 3, 8, 8),))
    assert found["threads"] == torch.get_num_threads()
    for size in ("batch_1", "batch_32"):
        for name in ("dense", "compressed"):
            assert found[size][name]["median"] > 0
            by_torch = {"as it is", "folded", "channels last", "folded, channels last"}
            assert found[size][name]["form"] in by_torch | ({"one plan"} if name == "compressed" else set())


def test_amounts_read_as_budgets_write_them() -> None:
    assert [text.amount("macs", v) for v in (7.0, 1234.0, 5.6e6, 2e9)] == ["7", "1.23K", "5.6M", "2G"]
    assert text.amount("size", 1_500_000) == "1.5 MB"
    near = {999.4: "999", 999.6: "1K", 999_400: "999K", 999_600: "1M", 999_999_999: "1G", 5.12e12: "5120G", 0.0: "0"}
    assert {value: text.amount("macs", value) for value in near} == near


def test_how_well_scores_were_predicted_is_only_said_where_it_can_be_told() -> None:
    rng = np.random.default_rng(0)
    found = [replace(lab.lookup(lab.draw(rng)), predicted=0.1 * i) for i in range(6)]
    assert "Kendall's tau" in text.surrogate_line(found)
    for change in ({"score": 0.5}, {"predicted": 0.5}):
        assert text.surrogate_line([replace(e, **change) for e in found]) == ""  # type: ignore[arg-type]


def test_names_stand_in_tables_as_they_are_with_brackets_and_colons() -> None:
    name = "x[/a] [bold]y:smile:"
    policy = Policy("f", ((name, GroupDecision(0.5)),), ((name, LayerDecision(4)),), blocks=((name, BlockDecision(0)),))
    for table in decisions.tables(policy):
        assert name in printed(table)
    net = nn.Sequential(nn.ReLU())
    net.register_module("in[/a]", nn.Linear(4, 8))
    net.register_module("[bold]out", nn.Linear(8, 2))
    task = automc.Task(net, calibration=[torch.randn(4, 4)], validation=[(torch.randn(4, 4), torch.zeros(4).long())])
    shown = "".join(printed(t) for t in facts.tables(automc.inspect(task)))
    assert shown.count("in[/a]") == 3 and shown.count("[bold]out") == 2


def test_what_is_refused_alike_is_said_in_one_line() -> None:
    layers = [part for _ in range(6) for part in (nn.Linear(8, 8), nn.LayerNorm(8))]
    x = torch.randn(4, 8)
    found = automc.inspect(automc.Task(nn.Sequential(*layers, nn.Linear(8, 2)), [x], [(x, torch.zeros(4))]))
    refused = [line for line in facts.lines(found) if line.startswith("not pruned")]
    assert len(found.refused) == 6 and refused == [
        "not pruned: LayerNorm (1, 3, 5, 7 and 2 more): it normalises over the channels, so that removing one changes "
        "all others"
    ]
    assert facts.lines(found)[0].startswith("7 layers, 0 groups, ")


def test_a_model_that_is_too_slow_is_told_what_to_search_instead() -> None:
    assert text.late_line(foretold=0.0009, took=0.00099, limit=0.001) == ""
    line = text.late_line(foretold=0.001, took=0.00125, limit=0.001)
    assert "above the limit of 1 ms" in line and "latency<=0.8ms" in line  # foretold as wrongly, it takes the limit
