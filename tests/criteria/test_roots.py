"""Roots of matrices that are as bad as real data make them."""

import pytest
import torch
from torch import Tensor

from automc.criteria.curvature import damped_inverse
from automc.criteria.roots import damped, root
from automc.errors import GraphError


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def singular(kind: str) -> Tensor:
    x = rand(50, 8)
    if kind == "dead":
        x[:, 2] = 0
    elif kind == "equal":
        x[:, 3] = x[:, 5]
    elif kind == "few":
        x = x[:3]
    elif kind == "all dead":
        x = x * 0
    gram = x.T @ x / len(x)
    if kind == "rounded":  # what float32 sums leave: eigenvalues slightly below zero
        values, vectors = torch.linalg.eigh(gram)
        values[:3] = -1e-7
        gram = vectors @ values.diag() @ vectors.T
    return gram


KINDS = ["dead", "equal", "few", "all dead", "rounded"]


@pytest.mark.parametrize("kind", KINDS)
def test_roots_are_finite_and_near(kind: str) -> None:
    system = damped(singular(kind), 1e-4)
    found = root(system)
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found @ found.T, system, rtol=1e-3, atol=1e-3)
    assert bool(torch.isfinite(damped_inverse(singular(kind))).all())


@pytest.mark.parametrize("kind", KINDS)
def test_an_undamped_root_is_damped_only_as_far_as_needed(kind: str) -> None:
    system = singular(kind)
    found = root(system)
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found @ found.T, system, rtol=1e-5, atol=1e-5)


def test_a_sound_matrix_of_a_batch_is_left_alone() -> None:
    sound = singular("none")
    both = root(torch.stack([sound, singular("rounded")]))
    assert torch.equal(both[0], torch.linalg.cholesky(sound))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value: float) -> None:
    broken = singular("none")
    broken[1, 1] = value
    with pytest.raises(GraphError, match="finite"):
        root(broken)
