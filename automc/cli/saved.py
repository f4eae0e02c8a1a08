"""Commands about saved models: scored again, written for other programs, timed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from automc.cli.options import JsonOption, SavedArgument, TaskOption, numbers
from automc.cli.output import console, print_json, say, tell
from automc.cli.reference import reference_of

if TYPE_CHECKING:
    from torch import nn

    from automc.leaving.export import Exported
    from automc.task import Task


def evaluate(
    directory: SavedArgument,
    task: TaskOption = None,
) -> None:
    """Load a saved model and score it again."""
    saved = _report(directory)
    loaded, module = _loaded(directory, task, saved)
    from automc.report import summary, text
    from automc.saved import cost
    from automc.setting import evaluator_of

    split = summary.split_of(loaded)
    score = evaluator_of(loaded).score(module, split)
    before = summary.score_of(saved)
    tell(f"score on {split}: {text.score(score)} (when saved: {text.score(before)})")
    for metric, value in cost(module, loaded.example_inputs).items():
        tell(f"{metric}: {text.amount(metric, value)}")


def export(
    directory: SavedArgument,
    format: Annotated[str, typer.Option(help="pt2: PyTorch's own; onnx: needs automc[onnx].")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Default: model.pt2 or model.onnx in DIR.")] = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="As the model runs fastest here: such a pt2 needs automc where it runs.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="With --kernels: samples a pass that it is fastest for.")] = 1,
    task: TaskOption = None,
) -> None:
    """Write a saved model as a file for other programs, and check that it computes the same."""
    from automc.registry import FORMATS

    FORMATS.check(format)
    target = out or directory / f"model.{format}"
    saved = _report(directory)
    from automc.leaving import export as leaving

    leaving.ready(target, format, kernels=kernels)  # before the task is loaded, which may train it
    loaded, module = _loaded(directory, task, saved)
    inputs = loaded.calibration_inputs(leaving.SAMPLES)
    made = leaving.export(module, target, format=format, example_inputs=inputs, kernels=kernels, batch=batch)
    if not made.any_size:
        say(f"It takes batches of {len(inputs[0])} only, since its forward computes with the size of a batch.")
    if not made.checked:
        say("Nothing was checked, since onnxruntime is not installed: pip install automc[onnx].")
    tell(f"{made.path}: {made.bytes} bytes" + f", checked: it computes what {directory} does" * made.checked)
    if kernels:
        _tell_of_kernels(made, directory)


def bench(
    directory: SavedArgument,
    task: TaskOption = None,
    batch: Annotated[str, typer.Option(metavar="N,N", help="Batch sizes.")] = "1,32,128",
    threads: Annotated[str, typer.Option(metavar="N,N", help="Numbers of threads.")] = "1,2",
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Let layers of both models compute in bfloat16, where that is faster.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Time a saved model against the dense one, and measure the memory and the bytes both take."""
    batches = numbers(batch, "Batch sizes", "1,32,128")
    counts = numbers(threads, "Threads", "1,2")
    saved = _report(directory)
    from automc.report import bench as side_by_side

    side_by_side.check_counts("A batch", batches)
    side_by_side.check_counts("A number of threads", counts)
    loaded, module = _loaded(directory, task, saved)
    found = side_by_side.bench(module, loaded, batches=batches, threads=counts, bf16=bf16)
    if json:
        print_json(found)
        return
    console().print(side_by_side.table(found))
    for line in side_by_side.lines(found):
        tell(line)


def _report(directory: Path) -> dict[str, Any]:
    """The report beside a saved model, once its files are what they were."""
    from automc import artifact

    return artifact.read_report(directory)


def _loaded(directory: Path, task: str | None, saved: dict[str, Any]) -> tuple["Task", "nn.Module"]:
    """The task of a saved model, and the model."""
    reference = reference_of(task, saved.get("reference"), str(directory))
    from automc.saved import load
    from automc.tasks import load_task

    loaded = load_task(reference)
    return loaded, load(directory, loaded)


def _tell_of_kernels(made: "Exported", directory: Path) -> None:
    """What an export with kernels has become, and what it needs."""
    from automc.kernels.images import lanes
    from automc.leaving.kernels import loading

    if made.form is None:
        why = "nothing is faster here than torch's own kernels" if lanes() else "there are no compiled kernels here"
        say(f"It is written as without --kernels, and runs without automc, since {why}.")
        return
    saved = (directory / "model.safetensors").stat().st_size
    plans = f"plans run on vectors of {lanes()} floats, as here, and say so elsewhere"
    tell(f"form: {made.form}; {plans}; model.safetensors takes {saved} bytes")
    tell(f"to load, where automc is installed: {loading(made.path)}")
