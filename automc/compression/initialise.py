"""Weights to begin with, for pruning before training.

* orthogonal: layers that keep the norm of what passes, so that signals neither die nor blow up (Saxe et al. 2014). Lee
  et al. 2020 ("A Signal Propagation Perspective for Pruning Neural Networks at Initialization") show that SNIP-like
  scores are faithful only then.
* restore_isometry: the same authors' section 5: after pruning, the masked weights are brought back towards isometry by
  gradient descent on ||C^T C - I||_F per layer, without data; zeros stay.
* from_data: every layer's outputs get mean zero and variance one on a batch, layer after layer (Kraehenbuehl et al.
  2016, algorithm 1), then the layers' scales are set so that all have the same ratio of gradient to weight (algorithm
  2, geometric mean, for feed-forward chains of homogeneous layers).

All change a module in place and draw only from the generator given.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from automc.compression.calibration import watched
from automc.errors import GraphError
from automc.graph.holders import Layer, as_layer, axes
from automc.task import Inputs


@torch.no_grad()
def orthogonal(model: nn.Module, generator: torch.Generator, gain: float = 2**0.5) -> None:
    """Every layer's weight becomes orthogonal rows (out, n) times `gain` (2^(1/2) suits ReLU), its bias zero.

    With more rows than columns the columns are orthogonal. Conv-groups are orthogonal each by itself. A transposed
    convolution's rows are its inputs', which keep their norm in what it makes of them.
    """
    for layer in _layers(model):
        groups = int(getattr(layer, "groups", 1))
        rows = layer.weight.reshape(groups, -1, layer.weight[0].numel())
        drawn = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
        tall = rows.shape[1] >= rows.shape[2]
        q, r = torch.linalg.qr(drawn if tall else drawn.transpose(1, 2))
        q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]  # uniform over orthogonal matrices (Mezzadri 2007)
        layer.weight.copy_((gain * (q if tall else q.transpose(1, 2))).reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.zero_()


def isometry_gap(weight: Tensor, gain: float = 2**0.5) -> Tensor:
    """||W W^T / gain^2 - I||_F^2 of the rows of a weight (out, ...), or of its columns where it has more rows."""
    rows = weight.reshape(len(weight), -1) / gain
    square = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    return (square - torch.eye(len(square), dtype=square.dtype)).square().sum()


def restore_isometry(model: nn.Module, steps: int = 200, rate: float = 0.05, gain: float = 2**0.5) -> None:
    """Moves the weights that are not zero towards isometry, layer by layer, by Adam; biases are left alone."""
    for layer in _layers(model):
        mask = layer.weight.detach() != 0
        free = layer.weight.detach().clone().requires_grad_(True)
        optimizer = torch.optim.Adam([free], lr=rate * float(free.detach().abs().mean().clamp_min(1e-12)))
        groups = int(getattr(layer, "groups", 1))
        best, least = free.detach().clone(), float("inf")
        for _ in range(steps):
            gap = torch.stack([isometry_gap(part, gain) for part in (free * mask).chunk(groups)]).sum()
            if float(gap.detach()) < least:
                best, least = free.detach().clone(), float(gap.detach())
            optimizer.zero_grad()
            gap.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            layer.weight.copy_(best * mask)


@torch.no_grad()
def standardise(model: nn.Module, inputs: Inputs) -> None:
    """Scales and shifts every layer so that its output channels have mean zero and variance one on these inputs.

    Layers without bias are only scaled. A channel that never varies raises GraphError, naming its layer.
    """
    done: set[str] = set()
    names = tuple(name for name, module in model.named_modules() if as_layer(module) is not None)

    def see(name: str, module: nn.Module, x: Tensor) -> None:
        layer = as_layer(module)
        if layer is None or name in done:
            return
        done.add(name)
        output = layer.forward(x)
        rows = output.flatten(0, -2) if isinstance(layer, nn.Linear) else output.movedim(1, -1).flatten(0, -2)
        deviation = rows.std(dim=0, unbiased=False)
        if not bool((deviation > 0).all()):
            raise GraphError(f"Outputs of every layer must vary; a channel of {name!r} does not: pass other inputs.")
        layer.weight.div_(deviation.reshape([-1 if d == axes(layer)[0] else 1 for d in range(layer.weight.dim())]))
        if layer.bias is not None:
            layer.bias.copy_((layer.bias - rows.mean(dim=0)) / deviation)

    with watched(model, names, see):
        model(*inputs)


def from_data(model: nn.Module, inputs: Inputs, rounds: int = 10) -> None:
    """`standardise`, then scales under which all layers change equally fast.

    r_k is the norm of d|y|^2 / dW_k relative to W_k's, C the geometric mean over layers. In a homogeneous chain
    scaling layer k by s divides r_k by s^2, so (r_k / C)^(1/2) would equalise them at once; each round goes half of
    that way. The product of all factors is one, so the chain's output keeps its scale.
    """
    standardise(model, inputs)
    layers = list(_layers(model))
    for _ in range(rounds):
        outputs = model(*inputs)
        gradients = torch.autograd.grad(outputs.square().sum(), [layer.weight for layer in layers])
        norms = [layer.weight.detach().norm().clamp_min(1e-30) for layer in layers]
        rates = torch.stack([g.norm() / n for g, n in zip(gradients, norms, strict=True)]).clamp_min(1e-30)
        factors = (rates / rates.log().mean().exp()) ** 0.25
        with torch.no_grad():
            running = torch.ones(())
            for layer, factor in zip(layers, factors, strict=True):
                layer.weight.mul_(factor)
                running = running * factor
                if layer.bias is not None:
                    layer.bias.mul_(running)


def _layers(model: nn.Module) -> Iterator[Layer]:
    seen: set[int] = set()
    for module in model.modules():
        layer = as_layer(module)
        if layer is not None and id(layer.weight) not in seen:
            seen.add(id(layer.weight))
            yield layer
