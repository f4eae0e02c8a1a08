"""Numbers and policies as people read them."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from automc.budget import LATENCY
from automc.costs.latency import LatencyTable
from automc.evaluation import Evaluation
from automc.policy import FULL_BITS, LayerDecision, Policy
from automc.visible import visible


def plain(name: str, style: str = "") -> Text:
    """A name in a table: as a bare string its square brackets would be rich's markup, and its colons emoji."""
    return Text(visible(name), style=style)


def markup(name: str) -> str:
    """A name in a plot: plotly reads some of HTML, links among it."""
    return html.escape(visible(name), quote=False)


def amount(metric: str, value: float) -> str:
    """A cost with its unit: 12.3M, 45.6 KB, 1.2 ms."""
    if metric == LATENCY:
        return milliseconds(value)
    space = " " if metric == "size" else ""
    rounded = float(f"{value:.3g}")  # 999600 is a million
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if rounded >= scale:
            return f"{rounded / scale:g}{space}{suffix}{'B' if space else ''}"
    return f"{rounded:g}{' B' if space else ''}"


def milliseconds(seconds: float) -> str:
    """A time with its unit: 1.23 ms."""
    return f"{1e3 * seconds:.3g} ms"


def latency_lines(table: LatencyTable) -> list[str]:
    """What a latency table says of a model, and how far it can be trusted."""
    how = f", {table.form}" if table.form else ""
    lines = [
        f"{table.device}, {counted(table.threads, 'thread')}, batch {table.batch}: "
        f"dense {milliseconds(table.dense)}{how}",
        f"{counted(len(table.kinds), 'kind')} of layers, {sum(len(k.layers) for k in table.kinds)} layers",
    ]
    if table.noise is not None:
        lines.append(f"noise of repeated runs: {100 * table.noise:.1f}%")
    if table.error is not None:
        lines.append(
            f"{len(table.models)} whole models: foretold to within {100 * table.error:.1f}% (median) of what they took"
        )
    return lines


def latency_line(foretold: float, took: float, table: LatencyTable) -> str:
    """The seconds foretold of a model beside those it takes."""
    of_dense = [f"{milliseconds(s)} ({share(s, table.dense)} of dense)" for s in (foretold, took)]
    return f"latency: {of_dense[0]} foretold, {of_dense[1]} measured"


def late_line(foretold: float, took: float, limit: float) -> str:
    """What to do about a model that takes longer than its limit; nothing where it does not."""
    if took <= limit:
        return ""
    instead = milliseconds(limit * foretold / took).replace(" ", "")
    return f"That is above the limit of {milliseconds(limit)}: predictions were off; search within latency<={instead}."


def counted(number: int, noun: str) -> str:
    """1 layer, 2 layers."""
    return f"{number} {noun}{'s' * (number != 1)}"


def share(value: float, dense: float) -> str:
    """A cost as a percentage of the dense model's."""
    return f"{100 * value / dense:.1f}%" if dense else "-"


def score(value: float | None) -> str:
    """A score, or a dash where there is none."""
    return "-" if value is None else f"{value:.4f}"


def scores_line(found: Evaluation, meta: Mapping[str, Any]) -> str:
    """The score and, where something else was searched, the metric, each beside the dense model's."""
    dense = meta["dense"]
    line = f"score {score(found.score)} (dense {score(dense['score'])})"
    line = f"{line}, {meta['metric']} {score(found.metric)} (dense {score(dense['metric'])})" if soft(meta) else line
    return f"{line}, {estimated(found)}" if found.state == "pruned" else line


def estimated(found: Evaluation) -> str:
    """Where the score of a stopped trial comes from."""
    return f"estimated from {100 * found.share:.3g}% of the samples" if found.share else "only predicted"


def counts_line(evaluations: Sequence[Evaluation]) -> str:
    """How many trials there are and how they ended: `200 trials: 57 scored in full, 143 stopped early`."""
    words = {
        "ok": "scored in full",
        "pruned": "stopped early",
        "screened": "predicted to lose and skipped",
        "infeasible": "infeasible",
        "failed": "failed",
    }
    ended = ["screened" if e.state == "pruned" and not e.share else str(e.state) for e in evaluations]
    ends = ", ".join(f"{ended.count(end)} {word}" for end, word in words.items() if ended.count(end) or end == "ok")
    return f"{counted(len(evaluations), 'trial')}: {ends}"


def surrogate_line(evaluations: Sequence[Evaluation]) -> str:
    """How well scores were predicted before they were known; nothing where hardly any was, or all are equal."""
    from scipy.stats import kendalltau

    pairs = [(e.predicted, e.score) for e in evaluations if e.scored and e.predicted is not None]
    if len(pairs) < 5 or any(len(set(column)) == 1 for column in zip(*pairs, strict=True)):
        return ""
    tau = float(kendalltau(*zip(*pairs, strict=True)).statistic)
    return f"Surrogate: Kendall's tau {tau:.2f} between {len(pairs)} scores and what was predicted of them."


def soft(meta: Mapping[str, Any]) -> bool:
    """Whether a study searched something else than the task's metric."""
    return bool(meta.get("score", "metric") != "metric")


def costs_line(evaluation: Evaluation, dense: Mapping[str, float], names: tuple[str, ...]) -> str:
    """The named costs on one line: `macs 49.8%, size 24.9%`."""
    return ", ".join(f"{n} {share(evaluation.cost(n), dense.get(n, 0.0))}" for n in names)


def policy_line(policy: Policy, width: int = 90, separator: str = "<br>") -> str:
    """The decisions that differ from the dense model, compactly, broken into lines, as `markup`."""
    words = [f"without {name}" for name in policy.dropped]
    words += [f"{name} {100 * d.keep:.0f}%" for name, d in policy.groups if d.keep < 1]
    words += [f"{name} {_layer(d)}" for name, d in policy.layers if _layer(d)]
    lines, line = [], ""
    for word in words:
        if line and len(line) + len(word) > width:
            lines.append(line)
            line = ""
        line = f"{line}, {word}" if line else word
    return separator.join(map(markup, [*lines, line])) if words else "dense"


def _layer(decision: LayerDecision) -> str:
    """One layer's decision: `w4 shared a8 50% zeros in 2:4`, `svd 40%`; nothing for a dense one."""
    d = decision
    parts = [f"w{d.weight_bits}" + " shared" * (d.codebook == "kmeans")] if d.weight_bits < FULL_BITS else []
    parts += [f"a{d.activation_bits}"] if d.activation_bits < FULL_BITS else []
    parts += (
        [f"{100 * d.sparsity:.0f}% zeros" + f" in {d.pattern}" * (d.pattern != "element")] if d.sparsity > 0 else []
    )
    parts += [f"{d.factorization} {100 * d.rank:.0f}%"] if d.rank < 1 else []
    return " ".join(parts)


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation for machines."""
    return {
        "trial": evaluation.number,
        "state": evaluation.state,
        "score": evaluation.score,
        "metric": evaluation.metric,
        "share": evaluation.share,
        "stages": evaluation.stages,
        "predicted": evaluation.predicted,
        "reason": evaluation.reason,
        "costs": dict(evaluation.costs),
        "proposer": evaluation.proposer,
        "seconds": evaluation.seconds,
        "policy": evaluation.policy.to_dict(),
    }
