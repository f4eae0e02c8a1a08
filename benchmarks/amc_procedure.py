"""How AMC scores a candidate (He et al. 2018, as in its public code), to compare with.

Features of the dense network are collected once: 30,000 rows of inputs and outputs of every layer that reads pruned
channels. For each candidate and layer the input channels with the smallest sums of weight magnitudes are dropped, the
rest is refitted by scikit-learn's least squares without intercept, and the weights are written back padded with zeros;
then the full-size network runs over all validation images in batches of 256. The public code refits 1x1 convolutions
only; larger kernels are refitted here on their patches, as the paper says.
"""

import copy
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression
from torch import Tensor, nn

from automc.compression.calibration import input_rows, output_rows, output_shape
from automc.graph.facts import ModelFacts
from automc.policy import Policy
from automc.task import Task

ROWS = 30_000
BATCH = 256
Rows = NDArray[np.float32]


class AmcProcedure:
    """Scores policies of channel shares the way AMC does."""

    def __init__(self, task: Task, facts: ModelFacts) -> None:
        self.task, self.facts = task, facts
        self.readers = {g.name: g.consumers[0] for g in facts.groups if not g.coupled}
        self.rows: dict[str, tuple[Rows, Rows]] = {}
        self._collect()
        inputs = torch.cat([batch[0][0] for batch in task.validation])
        targets = torch.cat([batch[1] for batch in task.validation])
        self.batches = list(zip(inputs.split(BATCH), targets.split(BATCH), strict=True))

    def accuracy(self, policy: Policy) -> float:
        """Refits and scores one candidate."""
        model = copy.deepcopy(self.task.model)
        for group, decision in policy.groups:
            if decision.keep < 1:
                self._prune(model, self.readers[group], decision.keep)
        return evaluate(model, self.batches)

    @torch.no_grad()
    def _collect(self) -> None:
        model, generator = self.task.model, torch.Generator().manual_seed(0)

        def see(name: str) -> None:
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                positions = (
                    torch.randint(prod(output_shape(module, args[0])), (ROWS,), generator=generator).sort().values
                )
                x = input_rows(module, args[0], positions)[0]
                y = output_rows(output, positions, channels_last=False)
                self.rows[name] = (x.numpy(), y.numpy())

            handles.append(model.get_submodule(name).register_forward_hook(hook))

        handles: list[torch.utils.hooks.RemovableHandle] = []
        for name in self.readers.values():
            see(name)
        model(*self.task.calibration_inputs(1024))
        for handle in handles:
            handle.remove()

    def _prune(self, model: nn.Module, name: str, keep: float) -> None:
        weight = model.get_parameter(f"{name}.weight").detach()
        numbers = weight.numpy()
        left = max(1, round(keep * numbers.shape[1]))
        kept = np.sort(np.argsort(-np.abs(numbers).sum((0, 2, 3)))[:left])
        x, y = self.rows[name]
        columns = np.arange(numbers[0].size).reshape(numbers.shape[1], -1)[kept].ravel()
        fitted = LinearRegression(fit_intercept=False).fit(x[:, columns], y).coef_
        padded = np.zeros_like(numbers)
        padded[:, kept] = fitted.reshape(len(numbers), left, *numbers.shape[2:])
        weight.copy_(torch.from_numpy(padded))


@torch.no_grad()
def evaluate(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Accuracy of a plain forward pass: no folding, no change of layout."""
    model.eval()
    right = sum(int((model(x).argmax(dim=1) == y).sum()) for x, y in batches)
    return right / sum(len(y) for _, y in batches)
