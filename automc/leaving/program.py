"""A module as the operations that `torch.export` records, for a batch of any size where the model allows it."""

import functools
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram

from automc.errors import ArtifactError
from automc.graph.named import parts_of, without_names
from automc.task import Inputs

BATCH = "batch"
"""What the first dimension of every input is called."""
ROUNDED = ".rounded"
"""In a file with names: what a quantizer gives is called by its path, this, and the number of its call."""


def recorded(module: nn.Module, inputs: Inputs) -> tuple[ExportedProgram, bool]:
    """The program, and whether its batch may have any size; ArtifactError for a model `torch.export` refuses.

    `inputs` are at least two samples: a dimension of one would be taken for a constant.
    """
    dimensions = tuple({0: Dim(BATCH)} for _ in inputs)
    with torch.no_grad(), quietly(), _plain(module) as module:
        try:
            program, any_size = torch.export.export(module, inputs, dynamic_shapes=dimensions), True
        except Exception:  # whatever a model's own forward raises when it is given symbols
            program, any_size = _of_this_size(module, inputs), False
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # where its lines lie on this machine is nobody else's business
    return program, any_size


def _of_this_size(module: nn.Module, inputs: Inputs) -> ExportedProgram:
    try:
        return torch.export.export(module, inputs)
    except Exception as error:
        raise ArtifactError(
            f"A model must be one that torch.export can follow; at this one it raises {in_short(error)}: write the "
            "forward without what it names, or load with automc what automc saved."
        ) from error


@contextmanager
def _plain(module: nn.Module) -> Iterator[nn.Module]:
    """The module; within, outputs that have names lie in a dict: who reads the file may not have their class."""
    if isinstance(module, fx.GraphModule):  # which torch.export copies without what is set here
        yield without_names(module)
        return
    forward = module.forward

    @functools.wraps(forward)
    def named(*args: Any, **kwargs: Any) -> Any:
        made = forward(*args, **kwargs)
        parts = parts_of(made)
        return made if parts is None else parts

    module.forward = named
    try:
        yield module
    finally:
        del module.forward


def in_short(error: BaseException) -> str:
    """An exception's kind and the first line of what it says, which is often pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


@contextmanager
def quietly() -> Iterator[None]:
    """Within, no log lines, printed graphs and warnings of torch's exporters, which speak to their authors."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._export", "torch.onnx", "torch.fx")]
    before = [x.level for x in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
