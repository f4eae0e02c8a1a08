"""The two networks of DDPG with their gradients written out, over flat buffers.

A network is a set of views into one vector. Its target and its gradient are the same class over other vectors, so a
soft update and an optimizer step are one operation each: at batches of 64 calls cost as much as arithmetic, and
autograd's bookkeeping more than both. `tests/agents/test_networks.py` holds every gradient against autograd.
"""

import math

import torch
from torch import Tensor

LOGIT_PENALTY = 1e-3
"""Weight of the squared logits in a steady actor's loss."""


class Actor:
    """From states (B, S) to actions (B, A) in (0, 1): two hidden layers of H ReLUs, then a sigmoid.

    A steady actor divides the last layer's input by its norm, where that is above one, and has its logits penalised.
    """

    def __init__(self, flat: Tensor, state_size: int, action_size: int, hidden: int, *, steady: bool) -> None:
        self.steady = steady
        self.w1, self.b1, self.w2, self.b2, self.w3, self.b3 = _views(
            flat, self.shapes(state_size, action_size, hidden)
        )

    @staticmethod
    def shapes(state_size: int, action_size: int, hidden: int) -> tuple[tuple[int, ...], ...]:
        """Weights and biases, first layer first."""
        h = hidden
        return (h, state_size), (h,), (h, h), (h,), (action_size, h), (action_size,)

    def __call__(self, state: Tensor) -> Tensor:
        """Actions (B, A)."""
        return self._forward(state)[-1].sigmoid_()

    def gradient(
        self, into: "Actor", state: Tensor, critic: "Critic", shown: Tensor | None = None, weight: float = 0.0
    ) -> None:
        """Writes the gradient of -mean Q(s, actor(s)), plus the penalty of a steady actor.

        Plus `weight` times the mean squared difference from actions `shown` (B, A), where the critic prefers these.
        """
        h1, h2, norm, y, logits = self._forward(state)
        action = logits.sigmoid()
        d = critic.action_gradient(state, action).neg_()
        if shown is not None:
            better = critic(state, shown) > critic(state, action)  # (B, 1)
            d.add_((action - shown) * better, alpha=2.0 * weight / action.numel())
        d.mul_(action).mul_(1.0 - action)  # of the logits (B, A)
        if self.steady:
            d.add_(logits, alpha=2.0 * LOGIT_PENALTY / logits.numel())
        torch.mm(d.t(), y, out=into.w3)
        torch.sum(d, dim=0, out=into.b3)
        d = d @ self.w3  # (B, H)
        if self.steady:
            d.sub_(y * (d * y).sum(dim=1, keepdim=True) * (norm > 1.0)).div_(norm)
        d = _through_relu(d, h2)
        torch.mm(d.t(), h1, out=into.w2)
        torch.sum(d, dim=0, out=into.b2)
        d = _through_relu(d @ self.w2, h1)
        torch.mm(d.t(), state, out=into.w1)
        torch.sum(d, dim=0, out=into.b1)

    def _forward(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Both hidden layers, the norm, what the last layer sees, the logits."""
        h1 = torch.addmm(self.b1, state, self.w1.t()).relu_()
        h2 = torch.addmm(self.b2, h1, self.w2.t()).relu_()
        norm = h2.new_ones(1)
        if self.steady:
            norm = torch.linalg.vector_norm(h2, dim=1, keepdim=True).clamp_min_(1.0)
        y = h2 / norm
        return h1, h2, norm, y, torch.addmm(self.b3, y, self.w3.t())


class Critic:
    """From states (B, S) and actions (B, A) to values (B, 1); a layer of each is added before the first ReLU."""

    def __init__(self, flat: Tensor, state_size: int, action_size: int, hidden: int) -> None:
        self.ws, self.bs, self.wa, self.ba, self.w2, self.b2, self.w3, self.b3 = _views(
            flat, self.shapes(state_size, action_size, hidden)
        )

    @staticmethod
    def shapes(state_size: int, action_size: int, hidden: int) -> tuple[tuple[int, ...], ...]:
        """Weights and biases of the state's and the action's layer, the second and the last one."""
        h = hidden
        return (h, state_size), (h,), (h, action_size), (h,), (h, h), (h,), (1, h), (1,)

    def __call__(self, state: Tensor, action: Tensor) -> Tensor:
        """Values (B, 1)."""
        _, h2 = self._forward(state, action)
        return torch.addmm(self.b3, h2, self.w3.t())

    def gradient(self, into: "Critic", state: Tensor, action: Tensor, target: Tensor) -> None:
        """Writes the gradient of the mean squared difference from the target values (B, 1)."""
        h1, h2 = self._forward(state, action)
        value = torch.addmm(self.b3, h2, self.w3.t())
        d = (value - target).mul_(2.0 / len(value))
        torch.mm(d.t(), h2, out=into.w3)
        torch.sum(d, dim=0, out=into.b3)
        d = _through_relu(d * self.w3, h2)
        torch.mm(d.t(), h1, out=into.w2)
        torch.sum(d, dim=0, out=into.b2)
        d = _through_relu(d @ self.w2, h1)
        torch.mm(d.t(), state, out=into.ws)
        torch.mm(d.t(), action, out=into.wa)
        torch.sum(d, dim=0, out=into.bs)
        into.ba.copy_(into.bs)

    def action_gradient(self, state: Tensor, action: Tensor) -> Tensor:
        """Gradient of the mean value with respect to the actions (B, A)."""
        h1, h2 = self._forward(state, action)
        d = _through_relu(self.w3.expand_as(h2), h2)
        return _through_relu(d @ self.w2, h1) @ self.wa / len(h1)

    def _forward(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        h1 = torch.addmm(self.bs + self.ba, state, self.ws.t()).addmm_(action, self.wa.t()).relu_()
        return h1, torch.addmm(self.b2, h1, self.w2.t()).relu_()


def sizes(shapes: tuple[tuple[int, ...], ...]) -> list[int]:
    """Entries of each part of a network."""
    return [math.prod(shape) for shape in shapes]


def initialise_(flat: Tensor, shapes: tuple[tuple[int, ...], ...], generator: torch.Generator) -> None:
    """Uniform in +-1 / sqrt(fan in), PyTorch's own default, from a generator of our own; +-0.003 in the last layer."""
    fan_in = 1
    for index, (part, shape) in enumerate(zip(flat.split_with_sizes(sizes(shapes)), shapes, strict=True)):
        fan_in = shape[1] if len(shape) == 2 else fan_in
        bound = 3e-3 if index >= len(shapes) - 2 else fan_in**-0.5
        part.uniform_(-bound, bound, generator=generator)


def _views(flat: Tensor, shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    return [part.view(shape) for part, shape in zip(flat.split_with_sizes(sizes(shapes)), shapes, strict=True)]


def _through_relu(gradient: Tensor, output: Tensor) -> Tensor:
    """The gradient before a ReLU from the one behind it and the ReLU's output."""
    before: Tensor = torch.ops.aten.threshold_backward(gradient, output, 0)
    return before
