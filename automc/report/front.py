"""The Pareto front of a study: a table, and an interactive plot in one self-contained HTML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from automc.evaluation import Evaluation
from automc.files import write_atomic
from automc.report import text
from automc.study import Study

_UNITS = {"size": "bytes", "latency": "seconds"}


def table(study: Study, costs: Sequence[str]) -> Table:
    """The front, cheapest first, between the dense model and the uniform baseline."""
    meta = study.meta
    dense, uniform = meta["dense"], meta.get("uniform")
    names = tuple(dict.fromkeys((*costs, *dense["costs"])))
    shown = ("score", "metric") if text.soft(meta) else ("score",)
    result = Table(title=text.plain(f"{study.name}: {meta['budget']}", "table.title"), title_justify="left")
    for column in ("trial", *(meta["metric"] if n == "metric" else n for n in shown), "drop", *names, "proposed by"):
        result.add_column(text.plain(column), justify="left" if column == "proposed by" else "right")

    def row(label: str, found: Mapping[str, Any], by: str = "", style: str = "dim") -> None:
        values, reference = found["costs"], shown[-1]
        drop = "-" if found[reference] is None else f"{dense[reference] - found[reference]:+.4f}"
        cells = [f"{text.amount(n, values[n])} {text.share(values[n], dense['costs'][n])}" for n in names]
        result.add_row(label, *(text.score(found[n]) for n in shown), drop, *cells, text.plain(by), style=style)

    row("dense", dense)
    if uniform:
        row("uniform", uniform)
    for evaluation in study.pareto(costs):
        row(str(evaluation.number), text.as_json(evaluation), evaluation.proposer, "")
    return result


def document(study: Study, costs: Sequence[str]) -> dict[str, Any]:
    """The front for machines."""
    front = [text.as_json(e) for e in study.pareto(costs)]
    keys = ("budget", "limits", "score", "metric", "dense", "uniform", "task", "space", "searcher", "seed")
    return {"study": study.name} | {k: study.meta.get(k) for k in keys} | {"front": front}


def write_html(study: Study, path: Path) -> None:
    """Accuracy against each cost; works without a network, since plotly.js (4.5 MB) is inside the file."""
    write_atomic(path, figure(study).to_html(include_plotlyjs=True, full_html=True).encode())


def figure(study: Study) -> Any:
    """One panel a cost, the limited ones first: feasible trials, estimates of those stopped early, the front, the dense
    model, the uniform baseline."""
    from plotly import graph_objects
    from plotly.subplots import make_subplots

    meta = study.meta
    costs = tuple(dict.fromkeys((*study.costs, *meta["dense"]["costs"])))
    titles = [f"score against {text.markup(c)}" for c in costs]
    rows = -(-len(costs) // 2)
    fig = make_subplots(rows=rows, cols=min(2, len(costs)), subplot_titles=titles, vertical_spacing=0.25 / rows)
    for i, name in enumerate(costs):
        at = {"row": i // 2 + 1, "col": i % 2 + 1}
        for trace in _traces(study, name, graph_objects, legend=i == 0):
            fig.add_trace(trace, **at)
        if name in meta["limits"]:
            fig.add_vline(x=meta["limits"][name], line_dash="dot", line_color="grey", **at)
        fig.update_xaxes(title_text=_UNITS.get(name, text.markup(name)), **at)
        fig.update_yaxes(title_text="score", **at)
    title = text.markup(f"{study.name}: {meta['budget']}")
    fig.update_layout(title=title, template="plotly_white", height=120 + 420 * rows, hoverlabel_align="left")
    return fig


def _traces(study: Study, cost: str, go: Any, *, legend: bool) -> list[Any]:
    meta = study.meta
    feasible = [e for e in study.evaluations if e.ok]
    stopped = [e for e in study.evaluations if e.state == "pruned"]
    best = study.pareto((cost,))
    small = {"color": "#b0b8c4", "size": 6}
    layers = [
        *(
            [("stopped early", stopped, {"mode": "markers", "marker": small | {"symbol": "circle-open"}})]
            * bool(stopped)
        ),
        ("trials", feasible, {"mode": "markers", "marker": small}),
        ("front", best, {"mode": "lines+markers", "line": {"shape": "hv", "color": "#2563eb"}, "marker": {"size": 9}}),
    ]
    traces = [
        go.Scatter(
            x=[e.cost(cost) for e in points],
            y=[e.score for e in points],
            text=[_hover(e, meta["dense"]["costs"]) for e in points],
            hoverinfo="text",
            name=name,
            legendgroup=name,
            showlegend=legend,
            **style,
        )
        for name, points, style in layers
    ]
    for name, point, symbol, color in (
        ("dense", meta["dense"], "star", "#111827"),
        ("uniform", meta.get("uniform"), "x", "#dc2626"),
    ):
        if point and cost in point["costs"]:
            amount = f"{text.markup(cost)} {text.amount(cost, point['costs'][cost])}"
            hover = f"{name}<br>score {text.score(point['score'])}<br>{amount}"
            marker = {"symbol": symbol, "size": 13, "color": color}
            traces.append(
                go.Scatter(
                    x=[point["costs"][cost]],
                    y=[point["score"]],
                    mode="markers",
                    marker=marker,
                    name=name,
                    legendgroup=name,
                    showlegend=legend,
                    text=[hover],
                    hoverinfo="text",
                )
            )
    return traces


def _hover(evaluation: Evaluation, dense: dict[str, float]) -> str:
    costs = "<br>".join(
        f"{text.markup(n)} {text.amount(n, v)} ({text.share(v, dense.get(n, 0))})" for n, v in evaluation.costs
    )
    head = (
        f"<b>trial {evaluation.number}</b> {text.markup(evaluation.proposer)}<br>score {text.score(evaluation.score)}"
    )
    head += f", metric {text.score(evaluation.metric)}"
    head += f"<br>{text.estimated(evaluation)}" * (evaluation.state == "pruned")
    return f"{head}<br>{costs}<br>{text.policy_line(evaluation.policy)}"
