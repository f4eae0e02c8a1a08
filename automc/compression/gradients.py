"""What gradients say of every layer's weights: collected once for all layers, from one model and its calibration data.

The model itself is not touched: everything runs on a copy in eval mode.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automc.compression.calibration import output_rows
from automc.errors import TaskError
from automc.task import Inputs

CHUNK = 64
SENSITIVITY_SAMPLES = 16
Found = dict[str, Tensor]
"""By layer name."""


def loss_gradient(model: nn.Module, layers: Sequence[str], inputs: Inputs, targets: Tensor | None) -> Found:
    """Mean gradient of the cross-entropy over all samples."""
    labels = _labels(targets)
    work, weights = _working_copy(model, layers)
    for chunk, target in _chunks(inputs, labels):
        loss = F.cross_entropy(_scores(work(*chunk)), target, reduction="sum") / len(labels)
        loss.backward()  # type: ignore[no-untyped-call]
    return _grads(weights)


def hessian_gradient(model: nn.Module, layers: Sequence[str], inputs: Inputs, targets: Tensor | None) -> Found:
    """H g over all the layers' weights together: the derivative of g^T stop(g), chunk by chunk (GraSP, section 3)."""
    labels = _labels(targets)
    gradient = loss_gradient(model, layers, inputs, labels)
    work, weights = _working_copy(model, layers)
    for chunk, target in _chunks(inputs, labels):
        loss = F.cross_entropy(_scores(work(*chunk)), target, reduction="sum") / len(labels)
        first = torch.autograd.grad(
            loss, list(weights.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
        product = torch.stack([(g * gradient[n]).sum() for g, n in zip(first, weights, strict=True)]).sum()
        product.backward()  # type: ignore[no-untyped-call]
    return _grads(weights)


def output_gram(model: nn.Module, layers: Sequence[str], inputs: Inputs, generator: torch.Generator) -> Found:
    """Second moment of the loss's gradient at each layer's output (groups, o, o), positions summed, samples averaged.

    Labels are drawn from the model's own distribution, which makes it the Fisher information and no mere fit of the
    data (Martens and Grosse 2015, section 5).
    """
    work, _ = _working_copy(model, layers)
    sums: Found = {}

    def see(name: str, module: nn.Module) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            output.register_hook(lambda g: _add(sums, name, g, module))  # type: ignore[no-untyped-call]

        return hook

    for name in layers:
        module = work.get_submodule(name)
        module.register_forward_hook(see(name, module))
    for chunk, _ in _chunks(inputs, torch.zeros(len(inputs[0]))):
        scores = _scores(work(*chunk))
        drawn = torch.multinomial(scores.detach().softmax(dim=1), 1, generator=generator)[:, 0]
        F.cross_entropy(scores, drawn, reduction="sum").backward()  # type: ignore[no-untyped-call]
    return {name: total / len(inputs[0]) for name, total in sums.items()}


def synaptic_flow(model: nn.Module, layers: Sequence[str], inputs: Inputs) -> Found:
    """|w dR/dw|, R the sum of outputs with every state tensor made absolute and inputs of one; float64, no data."""
    work, weights = _working_copy(model, layers)
    work = work.double()
    with torch.no_grad():
        for tensor in work.state_dict().values():
            if tensor.is_floating_point():
                tensor.abs_()
    ones = tuple(torch.ones_like(x[:1], dtype=torch.float64) if x.is_floating_point() else x[:1] for x in inputs)
    _scores(work(*ones)).sum().backward()  # type: ignore[no-untyped-call]
    flows = {n: w.detach() * g for (n, w), g in zip(weights.items(), _grads(weights).values(), strict=True)}
    return {n: f.abs().to(torch.float32) for n, f in flows.items()}


def output_sensitivity(model: nn.Module, layers: Sequence[str], inputs: Inputs) -> Found:
    """Mean of |dy_k / dw| over outputs k and the first `SENSITIVITY_SAMPLES` samples."""
    work, weights = _working_copy(model, layers)
    totals = {n: torch.zeros_like(w) for n, w in weights.items()}
    count = 0
    for i in range(min(SENSITIVITY_SAMPLES, len(inputs[0]))):
        outputs = _scores(work(*(x[i : i + 1] for x in inputs)))[0]
        for k, output in enumerate(outputs):
            keep = k + 1 < len(outputs)
            found = torch.autograd.grad(
                output, list(weights.values()), retain_graph=keep, allow_unused=True, materialize_grads=True
            )
            for n, g in zip(weights, found, strict=True):
                totals[n] += g.abs()
            count += 1
    return {n: t.detach() / count for n, t in totals.items()}


def _working_copy(model: nn.Module, layers: Sequence[str]) -> tuple[nn.Module, Mapping[str, nn.Parameter]]:
    work = copy.deepcopy(model).eval().requires_grad_(False)
    weights: dict[str, nn.Parameter] = {}
    for name in layers:
        weight = work.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        weight.requires_grad_(True)
        weights[name] = weight
    return work, weights


def _chunks(inputs: Inputs, labels: Tensor) -> Iterator[tuple[Inputs, Tensor]]:
    for start in range(0, len(inputs[0]), CHUNK):
        stop = start + CHUNK
        yield tuple(x[start:stop].clone() for x in inputs), labels[start:stop]


def _labels(targets: Tensor | None) -> Tensor:
    if targets is None or targets.is_floating_point() or targets.dim() != 1:
        raise TaskError(
            "This criterion must have class labels (N,) with the calibration batches; there are none: add them, or "
            "choose obs."
        )
    return targets


def _scores(outputs: object) -> Tensor:
    """The outputs as class scores (B, classes)."""
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        raise TaskError(
            "This criterion must have a classifier that gives scores (B, classes); this model gives something else: "
            "choose obs."
        )
    return outputs


def _grads(weights: Mapping[str, nn.Parameter]) -> Found:
    return {n: (torch.zeros_like(w) if w.grad is None else w.grad.clone()).detach() for n, w in weights.items()}


def _add(sums: Found, name: str, gradient: Tensor, module: nn.Module) -> None:
    linear = isinstance(module, nn.Linear)
    count = gradient.numel() // gradient.shape[-1 if linear else 1]
    rows = output_rows(gradient.detach(), torch.arange(count), channels_last=linear)  # (rows, out)
    groups = int(getattr(module, "groups", 1))
    split = rows.reshape(len(rows), groups, -1).transpose(0, 1)  # (groups, rows, o)
    sums[name] = sums.get(name, 0) + split.transpose(1, 2) @ split
