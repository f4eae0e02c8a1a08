"""What automc knows of a model: a table of layers, a table of groups, totals and refusals."""

from collections.abc import Sequence

from rich.table import Table

from automc.graph.facts import ModelFacts, Refusal
from automc.report import text


def tables(facts: ModelFacts) -> list[Table]:
    """Layers in forward order with their costs, and the groups of channels that change together."""
    return [_layers(facts), _groups(facts)] if facts.groups else [_layers(facts)]


def lines(facts: ModelFacts) -> list[str]:
    """Totals and what is left alone, one line each."""
    result = [
        f"{text.counted(len(facts.layers), 'layer')}, {text.counted(len(facts.groups), 'group')}, "
        f"{text.amount('macs', facts.macs)} MACs, "
        f"{text.amount('params', facts.params)} parameters, fingerprint {facts.fingerprint[:12]}"
    ]
    if not facts.traceable:
        result.append("The model cannot be traced: layers can be made sparse and quantized, but no channels removed.")
    if facts.blocks:
        result.append(f"residual blocks that may be left out: {_names(tuple(b.name for b in facts.blocks), 40)}")
    return result + _refusals(facts.refused)


def _refusals(refused: Sequence[Refusal]) -> list[str]:
    """One line for each operation and reason, with the places it is found at."""
    alike: dict[tuple[str, str], list[str]] = {}
    for r in refused:
        alike.setdefault((r.operation, r.reason), []).append(r.where)
    return [
        f"not pruned: {operation}{f' ({_names(tuple(where))})' if any(where) else ''}: {reason}"
        for (operation, reason), where in alike.items()
    ]


def _layers(facts: ModelFacts) -> Table:
    table = Table(title="layers", title_justify="left")
    for column in ("layer", "kind", "in", "out", "kernel", "MACs", "share", "weights"):
        table.add_column(column, justify="left" if column in ("layer", "kind") else "right")
    for x in facts.layers:
        kernel = "x".join(map(str, x.kernel)) or "-"
        kind = "depthwise" if x.depthwise else "transposed" if x.transposed else x.kind
        numbers = (text.amount("macs", x.macs), text.share(x.macs, facts.macs), text.amount("params", x.weight_numel))
        table.add_row(text.plain(x.name), kind, str(x.in_channels), str(x.out_channels), kernel, *numbers)
    return table


def _groups(facts: ModelFacts) -> Table:
    table = Table("group", "units", "made by", "read by", title="groups of channels", title_justify="left")
    for group in facts.groups:
        made, read = (text.plain(_names(names)) for names in (group.producers, group.consumers))
        table.add_row(text.plain(group.name), str(group.units), made, read)
    return table


def _names(names: tuple[str, ...], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
