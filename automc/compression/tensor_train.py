"""A linear layer as a tensor train: Novikov et al. 2015, Tensorizing Neural Networks, section 4.

Inputs and outputs are read as three-way arrays, (n1, n2, n3) and (m1, m2, m3), and the weight is a chain of cores
G_k (m_k, r_k, r_(k-1), n_k) with r_0 = r_3 = 1. The layer contracts its input with one core after another and never
forms the weight. Deviation: where the channels do not factor evenly, zero inputs are appended and the surplus
outputs are dropped.
"""

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automc.compression.alternating import Product
from automc.graph.ranks import train_modes


class TensorTrain(nn.Module):
    """A linear layer whose weight is a chain of cores."""

    def __init__(self, layer: nn.Linear, ranks: tuple[int, ...]) -> None:
        """Takes sizes, type and bias of `layer`; the cores are zero until fitted."""
        super().__init__()
        self.method = "tt"
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.modes = train_modes(layer.in_features, layer.out_features)
        self.bonds = (1, *ranks, 1)
        self.parts = nn.ModuleList(  # the cores, each as a matrix (m_k r_k, r_(k-1) n_k)
            nn.Linear(self.bonds[k] * n, m * self.bonds[k + 1], bias=False, device="meta", dtype=layer.weight.dtype)
            for k, (n, m) in enumerate(self.modes)
        ).to_empty(device=layer.weight.device)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """From (..., in_features) to (..., out_features)."""
        inputs = prod(n for n, _ in self.modes)
        x = F.pad(x, (0, inputs - self.in_features)).unsqueeze(-1).unsqueeze(-1)  # (..., n1 n2 n3, 1, 1)
        for core, (n, m), r in zip(self.parts, self.modes, self.bonds[1:], strict=True):
            inputs //= n
            x = x.unflatten(-3, (n, inputs))  # type: ignore[no-untyped-call]
            x = x.movedim(-4, -1).flatten(-2)  # (..., rest of n, done of m, r n_k)
            x = core(x).unflatten(-1, (m, r)).flatten(-3, -2)  # (..., rest of n, done of m, r)
        x = x.squeeze(-1).squeeze(-2)[..., : self.out_features]
        return x if self.bias is None else x + self.bias

    def rows(self) -> Tensor:
        """The weight (out, n) that the cores stand for, float64."""
        return self.product().rows(self.tensors())

    def product(self) -> Product:
        """How the cores make the weight."""
        return Product(("ipa", "jqpb", "kqc"), "ijkabc", self.out_features, self.in_features, outputs=3)

    def tensors(self) -> list[Tensor]:
        """The cores with their own axes, float64."""
        (n1, m1), (n2, m2), (n3, m3) = self.modes
        _, r1, r2, _ = self.bonds
        shapes = ((m1, r1, n1), (m2, r2, r1, n2), (m3, r2, n3))
        weights = [part.weight for part in self.parts if isinstance(part.weight, Tensor)]
        return [w.detach().to(torch.float64).reshape(s) for w, s in zip(weights, shapes, strict=True)]

    def start(self, weight: Tensor) -> list[Tensor]:
        """TT-SVD (Oseledets 2011, algorithm 1) of a weight (out, n): the cores it cuts off, left to right."""
        (n1, m1), (n2, m2), (n3, m3) = self.modes
        _, r1, r2, _ = self.bonds
        full = F.pad(weight, (0, n1 * n2 * n3 - weight.shape[1], 0, m1 * m2 * m3 - weight.shape[0]))
        paired = full.reshape(m1, m2, m3, n1, n2, n3).permute(0, 3, 1, 4, 2, 5)
        u, s, v = torch.linalg.svd(paired.reshape(m1 * n1, -1), full_matrices=False)
        first = u[:, :r1].reshape(m1, n1, r1).transpose(1, 2)  # (m1, r1, n1)
        rest = (s[:r1, None] * v[:r1]).reshape(r1 * m2 * n2, m3 * n3)
        u, s, v = torch.linalg.svd(rest, full_matrices=False)
        second = u[:, :r2].reshape(r1, m2, n2, r2).permute(1, 3, 0, 2)  # (m2, r2, r1, n2)
        third = (s[:r2, None] * v[:r2]).reshape(r2, m3, n3).transpose(0, 1)  # (m3, r2, n3)
        return [first, second, third]
