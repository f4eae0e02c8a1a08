"""Factorised layers against closed forms, brute force, numpy, scipy and tensorly."""

import copy
import itertools
from math import prod

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from automc.compression.alternating import Product, alternate
from automc.compression.calibration import input_rows, output_shape
from automc.compression.lowrank import build, fit_
from automc.compression.tensor_train import TensorTrain
from automc.criteria.kron import eigendamage
from automc.criteria.roots import root
from automc.errors import GraphError, PolicyError
from automc.graph.ranks import (
    METHODS,
    Shape,
    least_share,
    macs,
    offered,
    parameters,
    ranks,
    train_modes,
    train_sizes,
)
from automc.graph.trace import trace_model


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


LAYERS = {
    "plain": (lambda: nn.Conv2d(6, 8, 3, padding=1), (2, 6, 9, 8)),
    "strided": (lambda: nn.Conv2d(6, 10, 3, stride=2, padding=1, bias=False), (2, 6, 9, 12)),
    "uneven": (lambda: nn.Conv2d(5, 7, (3, 5), stride=(2, 1), padding=(0, 2), dilation=(2, 1)), (2, 5, 13, 11)),
    "same": (lambda: nn.Conv2d(4, 6, (4, 3), padding="same", dilation=(1, 2)), (2, 4, 9, 11)),
    "valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 7, 9)),
    "reflect": (lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect"), (2, 4, 9, 8)),
    "circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 9, 8)),
    "pointwise": (lambda: nn.Conv2d(12, 10, 1, stride=2), (2, 12, 7, 6)),
    "line": (lambda: nn.Conv1d(6, 8, 3, stride=2, padding=1), (2, 6, 11)),
    "linear": (lambda: nn.Linear(30, 22), (3, 30)),
    "tokens": (lambda: nn.Linear(16, 27, bias=False), (2, 5, 16)),
    "prime": (lambda: nn.Linear(23, 13), (3, 23)),
    "tall": (lambda: nn.Linear(9, 40), (3, 9)),
}


def case(name):
    """(layer, its shape by way of the traced model, an input)."""
    make, size = LAYERS[name]
    layer = seeded(make).eval()
    x = rand(*size, seed=1)
    facts = trace_model(nn.Sequential(layer), (x,)).facts.layers[0]
    return layer, Shape.of(facts), x


def tops(shape, method):
    known = METHODS[method]
    return known.ranks(shape, known.top(shape))


CASES = [(n, m) for n in LAYERS for m in METHODS if METHODS[m].fits(case(n)[1])]


def scrambled(layer, method, chosen, seed=3):
    """A factored layer with random factors."""
    made = build(layer, method, chosen)
    with torch.no_grad():
        for i, part in enumerate(made.parts):
            weight = part.get_parameter("weight")
            weight.copy_(rand(*weight.shape, seed=seed + i) / weight[0].numel() ** 0.5)
    return made


def moment(n, seed=5, samples=400, rank=None):
    """A second moment with correlations and unequal scales."""
    mix = rand(rank or n, n, seed=seed).double() * torch.logspace(0, -1, n, dtype=torch.float64)
    x = rand(samples, rank or n, seed=seed + 1).double() @ mix + 0.3
    return x.T @ x / samples


def energy(gap, gram):
    return float(((gap @ gram) * gap).sum())


def relative(weight, fitted, gram):
    return energy(weight - fitted, gram) / energy(weight, gram)


# --- Ranks and costs. -------------------------------------------------------------------------------------------------


def test_every_method_has_a_case_with_a_stride_or_tokens():
    assert {m for _, m in CASES} == set(METHODS)
    assert {m for n, m in CASES if n == "strided"} == {"svd", "spatial", "tucker2", "cp", "eigendamage"}


@pytest.mark.parametrize(("name", "method"), CASES)
def test_parameters_and_macs_are_those_of_the_built_module(name, method):
    layer, shape, x = case(name)
    top = METHODS[method].top(shape)
    for index in sorted({1, 2, max(1, top // 3), top}):
        chosen = METHODS[method].ranks(shape, index)
        made = build(layer, method, chosen)
        bias = 0 if layer.bias is None else layer.bias.numel()
        assert parameters(shape, method, chosen) == sum(p.numel() for p in made.parameters()) - bias
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            made(x)
        assert macs(shape, method, chosen) * len(x) * 2 == counter.get_total_flops()


@pytest.mark.parametrize("name", LAYERS)
def test_dense_entries_and_macs_are_the_layers(name):
    layer, shape, x = case(name)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(x)
    assert shape.entries == layer.weight.numel()
    assert shape.entries * shape.positions * len(x) * 2 == counter.get_total_flops()


shapes = st.builds(
    lambda inputs, outputs, kernel, out, stride, linear: Shape(
        "x",
        "linear" if linear else "conv",
        inputs,
        outputs,
        () if linear else kernel,
        True,
        prod(out),
        prod(out) if linear else out[0] * stride * out[1] * stride,
        prod(out) if linear else out[0] * out[1] * stride,
    ),
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([(3, 3), (5, 3), (1, 1), (2, 7), (1, 3)]),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 3),
    st.booleans(),
)
shares = st.floats(0.01, 0.99)


def taken(shape, method, chosen):
    return max(
        parameters(shape, method, chosen) / shape.entries,
        macs(shape, method, chosen) / (shape.entries * shape.positions),
    )


@settings(max_examples=300)
@given(shapes, st.sampled_from(list(METHODS)), shares)
def test_ranks_never_exceed_the_share_and_none_larger_fits(shape, method, share):
    if not METHODS[method].fits(shape):
        with pytest.raises(PolicyError, match="must fit its layer"):
            ranks(shape, method, share)
        return
    most = tops(shape, method)
    if taken(shape, method, (1,) * len(most)) > share:
        with pytest.raises(PolicyError, match=r"must leave room for rank 1.*raise the share"):
            ranks(shape, method, share)
        return
    chosen = ranks(shape, method, share)
    assert taken(shape, method, chosen) <= share
    assert all(1 <= r <= top for r, top in zip(chosen, most, strict=True))
    if chosen != most:  # one more of everything is too much
        larger = tuple(min(r + 1, top) for r, top in zip(chosen, most, strict=True))
        assert taken(shape, method, larger) > share


@settings(max_examples=300)
@given(shapes, st.sampled_from(list(METHODS)), shares, shares)
def test_ranks_never_fall_when_the_share_grows(shape, method, one, other):
    low, high = sorted((one, other))
    if METHODS[method].fits(shape) and least_share(shape, method) <= low:
        pairs = zip(ranks(shape, method, low), ranks(shape, method, high), strict=True)
        assert all(a <= b for a, b in pairs)


@settings(max_examples=300)
@given(shapes, st.sampled_from(["svd", "spatial", "cp"]), shares, st.integers(0, 5), st.integers(0, 5))
def test_costs_never_fall_when_channels_are_added_at_the_same_share(shape, method, share, more_in, more_out):
    if not METHODS[method].fits(shape) or least_share(shape, method) > share:
        return
    wider = shape.narrowed(shape.inputs + more_in, shape.outputs + more_out)
    before, after = ranks(shape, method, share), ranks(wider, method, share)
    assert before <= after
    assert parameters(shape, method, before) <= parameters(wider, method, after)
    assert macs(shape, method, before) <= macs(wider, method, after)


def test_ranks_of_known_layers():
    shape = Shape("x", "conv", 64, 32, (3, 3), True, 100, 400, 200)
    assert ranks(shape, "svd", 0.5) == (0.5 * 64 * 9 * 32 // (64 * 9 + 32),)
    # 3 x 1 on 10 x 20 positions, then 1 x 3 on 10 x 10: multiplications per rank 64 * 3 * 200 + 32 * 3 * 100
    assert ranks(shape, "spatial", 0.5) == (0.5 * 64 * 9 * 32 * 100 // (64 * 3 * 200 + 32 * 3 * 100),)
    assert ranks(shape, "cp", 0.5) == (0.5 * 64 * 9 * 32 * 100 // (64 * 400 + 3 * 200 + 3 * 100 + 32 * 100),)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_a_share_outside_zero_and_one_is_refused(share):
    with pytest.raises(PolicyError, match=r"must lie between 0 and 1.*'0'"):
        ranks(case("linear")[1], "svd", share)


def test_the_least_share_is_the_least():
    for name, method in CASES:
        shape = case(name)[1]
        share = least_share(shape, method)
        if share < 1:
            assert set(ranks(shape, method, share)) == {1}
            with pytest.raises(PolicyError, match="must leave room for rank 1"):
                ranks(shape, method, share * 0.999)


def test_methods_are_offered_where_they_are_defined():
    def names(*modules, size=(1, 8, 8, 8)):
        model = nn.Sequential(*modules)
        facts = trace_model(model, (torch.zeros(size),)).facts
        return [{m for m in METHODS if offered(Shape.of(f), m)} for f in facts.layers]

    matrix = {"svd", "eigendamage"}
    assert names(nn.Conv2d(8, 8, 3)) == [{*matrix, "spatial", "tucker2", "cp"}]
    assert names(nn.Conv2d(8, 8, (1, 3))) == [{*matrix, "tucker2"}]
    assert names(nn.Conv2d(8, 8, 1)) == [matrix]
    assert names(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 16, 3, groups=2)) == [set(), set()]
    assert names(nn.Conv1d(8, 8, 3), size=(1, 8, 9)) == [matrix]
    assert names(nn.Conv3d(8, 8, 3), size=(1, 8, 5, 5, 5)) == [set()]
    assert names(nn.Linear(64, 64), size=(1, 64)) == [{*matrix, "tt"}]
    assert names(nn.Linear(64, 1), size=(1, 64)) == [set()]  # rank 1 takes more than the layer itself


def test_a_tied_weight_is_not_offered():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x).relu())

    model = Tied()
    facts = trace_model(model, (torch.zeros(1, 16),)).facts
    assert facts.layers
    for layer in facts.layers:
        assert not offered(Shape.of(layer), "svd")
    with pytest.raises(PolicyError, match="must fit its layer"):
        ranks(Shape.of(facts.layers[0]), "svd", 0.5)


class Twice(nn.Module):
    """One convolution called twice, the second time on a smaller map if it does not pad."""

    def __init__(self, padding):
        super().__init__()
        self.conv: nn.Module = nn.Conv2d(6, 6, 3, padding=padding)

    def forward(self, x):
        return self.conv(self.conv(x))


def test_a_shared_module_counts_every_call():
    model, x = Twice(1), rand(1, 6, 7, 5)
    facts = trace_model(model, (x,)).facts.layers[0]
    shape = Shape.of(facts)
    for method in ("svd", "spatial", "tucker2", "cp", "eigendamage"):
        chosen = ranks(shape, method, 0.7)
        other = copy.deepcopy(model)
        other.conv = build(model.conv, method, chosen)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            other(x)
        assert counter.get_total_flops() == 2 * macs(shape, method, chosen)


def test_calls_of_different_sizes_leave_only_matrices():
    model, x = Twice(0), rand(1, 6, 9, 9)
    facts = trace_model(model, (x,)).facts.layers[0]
    shape = Shape.of(facts)
    assert {m for m in METHODS if offered(shape, m)} == {"svd", "eigendamage"}


def test_an_unknown_method_is_named_with_the_nearest():
    with pytest.raises(PolicyError, match=r"'spacial' is none: did you mean 'spatial'\?"):
        ranks(case("plain")[1], "spacial", 0.5)


@settings(max_examples=200)
@given(st.integers(1, 5000))
def test_tensor_train_sizes_cover_the_channels_with_little_to_spare(channels):
    sizes = train_sizes(channels)
    assert channels <= prod(sizes) <= 1.1 * channels
    assert list(sizes) == sorted(sizes)


def test_tensor_train_sizes_of_powers_are_exact_and_even():
    assert train_sizes(64) == (4, 4, 4)
    assert train_sizes(1000) == (10, 10, 10)
    assert train_sizes(768) == (8, 8, 12)
    assert train_modes(768, 10) == ((12, 1), (8, 2), (8, 5))


# --- The module. ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_factored_layer_is_the_dense_layer_with_the_weight_it_stands_for(name, method):
    layer, shape, x = case(name)
    chosen = METHODS[method].ranks(shape, min(4, METHODS[method].top(shape)))
    made = scrambled(layer, method, chosen)
    dense = copy.deepcopy(layer)
    with torch.no_grad():
        dense.weight.copy_(made.rows().reshape(dense.weight.shape))
        assert made.rows().abs().max() > 1e-3
        torch.testing.assert_close(made(x), dense(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_full_rank_gives_the_dense_output(name, method):
    layer, shape, x = case(name)
    made = build(layer, method, tops(shape, method))
    error = fit_(made, layer.weight.detach().flatten(1), moment(shape.fan_in))
    assert error < 1e-9
    with torch.no_grad():
        torch.testing.assert_close(made(x), layer(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_factored_layer_copies_traces_exports_and_reloads(name, method):
    layer, shape, x = case(name)
    made = scrambled(layer, method, METHODS[method].ranks(shape, 2)).eval()
    with torch.no_grad():
        want = made(x)
        assert torch.equal(copy.deepcopy(made)(x), want)
        assert torch.equal(fx.symbolic_trace(made)(x), want)
        torch.testing.assert_close(torch.export.export(made, (x,)).module()(x), want)
        fresh = build(layer, method, METHODS[method].ranks(shape, 2))
        assert not torch.equal(fresh(x), want)
        fresh.load_state_dict(made.state_dict())
        assert torch.equal(fresh(x), want)


@pytest.mark.parametrize("method", ["svd", "tt"])
def test_linear_factors_take_any_leading_shape(method):
    layer = seeded(lambda: nn.Linear(30, 22))
    made = scrambled(layer, method, (2,) if method == "svd" else (2, 2))
    x = rand(2, 3, 4, 30)
    with torch.no_grad():
        flat = made(x.reshape(-1, 30)).reshape(2, 3, 4, 22)
        torch.testing.assert_close(made(x), flat)
        torch.testing.assert_close(made(x[0, 0, 0]), flat[0, 0, 0])
        assert made(x[:0]).shape == (0, 3, 4, 22)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_building_draws_nothing_and_takes_type_mode_and_bias_of_the_layer(name, method):
    layer, shape, _ = case(name)
    layer = layer.double()
    layer.weight.requires_grad_(False)
    before = torch.random.get_rng_state()
    made = build(layer, method, METHODS[method].ranks(shape, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not made.training
    assert {p.dtype for p in made.parameters()} == {torch.float64}
    assert all(not w.requires_grad and not w.any() for w in (part.get_parameter("weight") for part in made.parts))
    if layer.bias is None:
        assert made.bias is None
    else:
        assert made.bias is not None and torch.equal(made.bias, layer.bias)
        assert made.bias.data_ptr() != layer.bias.data_ptr()
        assert made.bias.requires_grad
    assert build(layer.train(), method, METHODS[method].ranks(shape, 2)).training


def test_what_cannot_be_factored_is_refused():
    with pytest.raises(GraphError, match=r"Only plain linear.*got ConvTranspose2d"):
        build(nn.ConvTranspose2d(4, 4, 3), "svd", (1,))
    with pytest.raises(GraphError, match=r"got Conv3d"):
        build(nn.Conv3d(4, 4, 3), "svd", (1,))
    with pytest.raises(PolicyError, match=r"'svd' does not fit Conv2d\(4, 4, .*groups=2"):
        build(nn.Conv2d(4, 4, 3, groups=2), "svd", (1,))
    with pytest.raises(PolicyError, match=r"'spatial' does not fit Linear"):
        build(nn.Linear(4, 4), "spatial", (1,))
    for wrong in ((0,), (5,), (1, 1), ()):
        with pytest.raises(PolicyError, match=r"must lie between \(1,\) and \(4,\).*got"):
            build(nn.Linear(4, 8), "svd", wrong)
    with pytest.raises(PolicyError, match=r"between \(1, 1\) and \(4, 6\)"):
        build(nn.Conv2d(4, 6, 3), "tucker2", (5, 6))


# --- The fit. ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("out", "n"), [(7, 12), (12, 7), (6, 6)])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_svd_reaches_the_eckart_young_bound_of_the_outputs(out, n, rank):
    weight, gram = rand(out, n).double(), moment(n)
    made = build(nn.Linear(n, out).double(), "svd", (rank,))
    error = fit_(made, weight, gram)
    values = np.linalg.svd(weight.numpy() @ scipy.linalg.sqrtm(gram.numpy()).real, compute_uv=False)
    assert error == pytest.approx((values[rank:] ** 2).sum() / (values**2).sum(), rel=1e-6)
    assert relative(weight, made.rows(), gram) == pytest.approx(error, rel=1e-9)
    assert np.linalg.matrix_rank(made.rows().numpy(), tol=1e-8) == rank


@pytest.mark.parametrize(("out", "n"), [(7, 12), (12, 7)])
def test_svd_is_the_plain_truncated_svd_for_white_inputs(out, n):
    weight = rand(out, n).double()
    made = build(nn.Linear(n, out).double(), "svd", (3,))
    fit_(made, weight, 2.5 * torch.eye(n))
    u, s, v = np.linalg.svd(weight.numpy(), full_matrices=False)
    np.testing.assert_allclose(made.rows().numpy(), (u[:, :3] * s[:3]) @ v[:3], atol=1e-8)


def test_eigendamage_keeps_what_the_loss_needs_and_fits_the_outputs():
    """Its basis is that of `criteria.kron`, tested there; its last factor is the best one for that basis."""
    weight, gram = rand(6, 9).double(), moment(9)
    lost = []
    for loud in range(6):
        outputs = torch.eye(6).double()
        outputs[loud, loud] = 1e4
        made = build(nn.Linear(9, 6).double(), "eigendamage", (3, 2))
        error = fit_(made, weight, gram, outputs)
        basis = eigendamage(weight, gram, outputs, 2, 3)
        right, core, left = made.tensors()
        torch.testing.assert_close(core @ right, basis.core @ basis.right)
        before = basis.left @ basis.core @ basis.right
        assert error < relative(weight, before, gram)
        for seed in range(20):
            other = (left + 1e-3 * rand(6, 2, seed=seed)) @ core @ right
            assert relative(weight, other, gram) > error
        gap = weight - made.rows()
        lost.append((gap @ gram @ gap.T).diagonal())
    assert torch.stack(lost).argmin(dim=0).tolist() == list(range(6))  # each output loses least where it is loud


def test_no_other_matrix_of_that_rank_and_no_gradient_descent_beats_svd():
    weight, gram = rand(6, 10).double(), moment(10)
    made = build(nn.Linear(10, 6).double(), "svd", (2,))
    best = fit_(made, weight, gram)
    for seed in range(50):
        a = rand(2, 10, seed=seed).double()
        b = torch.linalg.solve(a @ gram @ a.T, a @ gram @ weight.T).T  # the best partner of a random factor
        assert relative(weight, b @ a, gram) > best
        nudge = 1e-3 * rand(6, 2, seed=seed).double() @ rand(2, 2, seed=seed + 1).double()
        assert relative(weight, (made.tensors()[1] + nudge) @ made.tensors()[0], gram) > best
    assert descended(made.product(), made.tensors(), weight, gram, seeds=range(4)) == pytest.approx(best, rel=1e-6)


def descended(product: Product, like, weight, gram, seeds):
    """The least error joint quasi-Newton descent on all factors finds from random starts: nothing shared with fit_."""
    best = float("inf")
    for seed in seeds:
        factors = [(rand(*f.shape, seed=7 * seed + i).double() * 0.5).requires_grad_() for i, f in enumerate(like)]
        method = torch.optim.LBFGS(factors, max_iter=400, tolerance_change=1e-14, line_search_fn="strong_wolfe")

        def closure(factors=factors, method=method):
            method.zero_grad()
            gap = weight - product.rows(factors)
            loss = ((gap @ gram) * gap).sum()
            loss.backward()
            return loss

        method.step(closure)
        best = min(best, relative(weight, product.rows([f.detach() for f in factors]), gram))
    return best


SMALL = {
    "spatial": (lambda: nn.Conv2d(3, 4, 3, bias=False), (3,)),
    "tucker2": (lambda: nn.Conv2d(4, 4, 2, bias=False), (2, 3)),
    "cp": (lambda: nn.Conv2d(3, 4, 2, bias=False), (4,)),
    "tt": (lambda: nn.Linear(8, 8, bias=False), (2, 2)),
}


@pytest.mark.parametrize("method", SMALL)
def test_the_fit_is_near_the_best_of_many_descents(method):
    make, chosen = SMALL[method]
    layer = seeded(make).double()
    weight = layer.weight.detach().flatten(1)
    gram = moment(weight.shape[1])
    made = build(layer, method, chosen)
    error = fit_(made, weight, gram, sweeps=200)
    assert error <= 1.3 * descended(made.product(), made.tensors(), weight, gram, seeds=range(3))


@pytest.mark.parametrize("method", ["spatial", "tucker2", "cp"])
def test_the_last_factor_is_the_least_squares_one(method):
    make, chosen = SMALL[method]
    layer = seeded(make).double()
    weight = layer.weight.detach().flatten(1)
    gram = moment(weight.shape[1])
    made = build(layer, method, chosen)
    error = fit_(made, weight, gram, sweeps=0)
    *others, last = made.tensors()
    half = torch.from_numpy(scipy.linalg.sqrtm(gram.numpy()).real)

    def outputs(factor):
        return (made.product().rows([*others, factor]) @ half).flatten()

    jacobian = torch.stack([outputs(e.reshape(last.shape)) for e in torch.eye(last.numel(), dtype=torch.float64)], 1)
    direct = torch.linalg.lstsq(jacobian, (weight @ half).flatten()[:, None]).solution
    gap = jacobian @ direct - (weight @ half).flatten()[:, None]
    assert error == pytest.approx(float(gap.square().sum()) / energy(weight, gram), rel=1e-6)
    torch.testing.assert_close(last.flatten(), direct[:, 0], rtol=1e-5, atol=1e-6)


def test_conjugate_gradients_reach_the_least_squares_core_of_a_tensor_train():
    layer = seeded(lambda: nn.Linear(23, 13, bias=False)).double()
    weight, gram = layer.weight.detach(), moment(23, samples=2000) + torch.eye(23)
    made = build(layer, "tt", (2, 3))
    product, start = made.product(), made.start(weight)
    *others, last = alternate(product, start, weight, gram, sweeps=0, steps=start[-1].numel())
    half = torch.from_numpy(scipy.linalg.sqrtm(gram.numpy()).real)
    units = torch.eye(last.numel(), dtype=torch.float64).reshape(-1, *last.shape)
    jacobian = torch.stack([(product.rows([*others, e]) @ half).flatten() for e in units], 1)
    direct = torch.linalg.lstsq(jacobian, (weight @ half).flatten()[:, None]).solution
    torch.testing.assert_close(last.flatten(), direct[:, 0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["spatial", "tucker2", "cp", "tt"])
def test_sweeps_never_raise_the_error_and_the_first_lowers_it(method):
    make, chosen = SMALL[method]
    layer = seeded(make).double()
    weight = layer.weight.detach().flatten(1)
    gram = moment(weight.shape[1])
    made = build(layer, method, chosen)
    errors = [fit_(made, weight, gram, sweeps=s) for s in range(6)]
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(errors))
    assert errors[1] < 0.999 * errors[0]


@pytest.mark.parametrize(("name", "method"), [c for c in CASES if c[0] in ("plain", "strided", "tokens", "line")])
def test_the_error_is_that_of_the_outputs_on_the_data(name, method):
    layer, shape, _ = case(name)
    x = rand(*(16, *LAYERS[name][1][1:]), seed=8).abs()
    shape_out = output_shape(layer, x)
    rows = input_rows(layer, x, torch.arange(prod(shape_out)))[0].double()
    made = build(layer, method, METHODS[method].ranks(shape, 3))
    error = fit_(made, layer.weight.detach().flatten(1), rows.T @ rows / len(rows))
    assert 0 < error < 1
    with torch.no_grad():
        bias = 0 if layer.bias is None else layer.bias.reshape(-1, *[1] * (len(shape_out) - 1))
        bias = layer.bias if isinstance(layer, nn.Linear) and layer.bias is not None else bias
        gap, energy_of = made(x) - layer(x), layer(x) - bias
    assert error == pytest.approx(float(gap.square().sum() / energy_of.square().sum()), rel=1e-3)


@pytest.mark.parametrize("method", ["spatial", "tucker2", "cp", "tt", "svd"])
def test_a_fit_by_the_data_beats_a_fit_of_the_weights_on_the_data(method):
    layer, shape, _ = case("linear" if method == "tt" else "plain")
    weight = layer.weight.detach().flatten(1)
    gram = moment(shape.fan_in)
    made = build(layer, method, METHODS[method].ranks(shape, 4))
    by_data = fit_(made, weight, gram)
    fit_(made, weight, torch.eye(shape.fan_in))
    assert by_data < 0.9 * relative(weight.double(), made.rows(), gram)


@pytest.mark.parametrize(("name", "method"), [c for c in CASES if c[1] in ("svd", "spatial", "tucker2", "tt")])
def test_a_weight_of_that_rank_is_found_again(name, method):
    layer, shape, _ = case(name)
    chosen = METHODS[method].ranks(shape, min(3, METHODS[method].top(shape)))
    weight = scrambled(layer, method, chosen).rows()
    # Appended zero outputs raise a tensor train's rank, so there it is found by alternating, not at the start.
    limit = 1e-6 if method == "tt" and prod(train_sizes(shape.outputs)) > shape.outputs else 1e-9
    for gram in (torch.eye(shape.fan_in), moment(shape.fan_in)):
        assert fit_(build(layer, method, chosen), weight, gram) < limit


@pytest.mark.parametrize("method", [m for m in METHODS if m != "svd"])
def test_pull_is_the_adjoint_of_rows(method):
    name = "linear" if method == "tt" else "uneven"
    layer, shape, _ = case(name)
    made = scrambled(layer, method, METHODS[method].ranks(shape, 3))
    product, factors = made.product(), made.tensors()
    cotangent = rand(shape.outputs, shape.fan_in, seed=9).double()
    for k, factor in enumerate(factors):
        free = [f.clone().requires_grad_(i == k) for i, f in enumerate(factors)]
        (want,) = torch.autograd.grad(product.rows(free), free[k], cotangent)
        assert factor.shape == want.shape
        torch.testing.assert_close(product.pull(factors, k, cotangent), want)


def test_a_larger_share_never_fits_worse():
    for method in METHODS:
        layer, shape, _ = case("linear" if method == "tt" else "plain")
        gram = moment(shape.fan_in)
        errors = [
            fit_(build(layer, method, ranks(shape, method, share)), layer.weight.detach().flatten(1), gram)
            for share in (0.45, 0.7, 0.95)
        ]
        assert errors == sorted(errors, reverse=True)


# --- Against tensorly and numpy, for white inputs. --------------------------------------------------------------------


def white(layer, method, chosen, sweeps):
    made = build(layer, method, chosen)
    weight = layer.weight.detach().flatten(1)
    return fit_(made, weight, torch.eye(weight.shape[1]), sweeps=sweeps)


def test_spatial_starts_at_the_svd_of_the_rearranged_kernel():
    layer = seeded(lambda: nn.Conv2d(6, 8, (3, 5), bias=False)).double()
    matrix = layer.weight.detach().permute(1, 2, 0, 3).reshape(18, 40).numpy()
    values = np.linalg.svd(matrix, compute_uv=False)
    for rank in (1, 4, 12):
        bound = (values[rank:] ** 2).sum() / (values**2).sum()
        assert white(layer, "spatial", (rank,), 0) == pytest.approx(bound, rel=1e-6)
        assert white(layer, "spatial", (rank,), 50) == pytest.approx(bound, rel=1e-6)  # that is the optimum


def test_tucker2_is_as_good_as_tensorlys():
    decomposition = pytest.importorskip("tensorly.decomposition")
    tensorly = pytest.importorskip("tensorly")
    layer = seeded(lambda: nn.Conv2d(9, 12, 3, bias=False)).double()
    weight = layer.weight.detach().numpy()
    (core, factors), _ = decomposition.partial_tucker(weight, rank=[7, 5], modes=[0, 1], n_iter_max=200, tol=1e-10)
    there = tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])
    reference = ((there - weight) ** 2).sum() / (weight**2).sum()
    assert white(layer, "tucker2", (5, 7), 100) <= 1.001 * reference


@pytest.mark.filterwarnings("ignore:Trying to compute SVD")
@pytest.mark.parametrize("rank", [2, 8, 20])
def test_cp_is_as_good_as_tensorlys(rank):
    decomposition = pytest.importorskip("tensorly.decomposition")
    tensorly = pytest.importorskip("tensorly")
    layer = seeded(lambda: nn.Conv2d(6, 8, 3, bias=False)).double()
    weight = layer.weight.detach().numpy()
    found = [decomposition.parafac(weight, rank, n_iter_max=100, init="svd", random_state=s) for s in range(4)]
    errors = [((tensorly.cp_to_tensor(f) - weight) ** 2).sum() / (weight**2).sum() for f in found]
    assert white(layer, "cp", (rank,), 100) <= 1.1 * np.mean(errors)  # its starts differ by up to a half at rank 20


def test_tensor_train_starts_at_tensorlys_decomposition():
    decomposition = pytest.importorskip("tensorly.decomposition")
    tensorly = pytest.importorskip("tensorly")
    layer = seeded(lambda: nn.Linear(24, 27, bias=False)).double()
    made = build(layer, "tt", (4, 5))
    assert isinstance(made, TensorTrain)
    (n1, m1), (n2, m2), (n3, m3) = made.modes
    assert (n1 * n2 * n3, m1 * m2 * m3) == (24, 27)
    weight = layer.weight.detach()
    paired = weight.reshape(m1, m2, m3, n1, n2, n3).permute(0, 3, 1, 4, 2, 5).reshape(m1 * n1, m2 * n2, m3 * n3)
    there = tensorly.tt_to_tensor(decomposition.tensor_train(paired.numpy(), rank=[1, 4, 5, 1]))
    there = torch.from_numpy(np.array(there)).reshape(m1, n1, m2, n2, m3, n3).permute(0, 2, 4, 1, 3, 5).reshape(27, 24)
    torch.testing.assert_close(made.product().rows(made.start(weight)), there)


# --- Bad input. -------------------------------------------------------------------------------------------------------

HARD = {
    "nothing": lambda n: torch.zeros(n, n),
    "dead inputs": lambda n: (
        torch.diag((torch.arange(n) % 3 > 0).double()) @ moment(n) @ torch.diag((torch.arange(n) % 3 > 0).double())
    ),
    "one live input": lambda n: torch.diag((torch.arange(n) == 1).double()),
    "fewer samples than inputs": lambda n: moment(n, samples=4),
    "duplicates": lambda n: moment(n)[torch.arange(n) // 2][:, torch.arange(n) // 2],
    "summed in float32": lambda n: (lambda x: (x.T @ x).double() / 50)(rand(50, 3) @ rand(3, n, seed=1) * 100),
    "huge": lambda n: 1e12 * moment(n),
    "tiny": lambda n: 1e-12 * moment(n),
}


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize(("name", "method"), [c for c in CASES if c[0] in ("plain", "linear", "tall")])
def test_hard_moments_give_finite_values_and_errors(name, method, kind):
    layer, shape, _ = case(name)
    gram = HARD[kind](shape.fan_in)
    for index in (2, METHODS[method].top(shape)):
        made = build(layer, method, METHODS[method].ranks(shape, index))
        error = fit_(made, layer.weight.detach().flatten(1), gram)
        assert np.isfinite(error) and 0 <= error <= 1
        assert all(bool(torch.isfinite(p).all()) for p in made.parameters())
        assert float(made.rows().abs().max()) < 1e3 * float(layer.weight.detach().abs().max())
    assert error < 1e-6


@pytest.mark.parametrize(("name", "method"), CASES)
def test_an_all_zero_weight_stays_zero(name, method):
    layer, shape, _ = case(name)
    made = build(layer, method, METHODS[method].ranks(shape, 2))
    for gram in (moment(shape.fan_in), torch.zeros(shape.fan_in, shape.fan_in)):
        assert fit_(made, torch.zeros(shape.outputs, shape.fan_in), gram) == 0
        assert not made.rows().any()


@pytest.mark.parametrize(("out", "n"), [(7, 12), (12, 7)])
def test_svd_spends_ranks_the_data_leave_over_on_the_weight(out, n):
    weight = rand(out, n).double()
    made = build(nn.Linear(n, out).double(), "svd", (4,))
    fit_(made, weight, HARD["one live input"](n))
    u = weight[:, 1:2] / weight[:, 1].norm()
    rest = torch.linalg.svdvals(weight - u @ u.T @ weight)
    torch.testing.assert_close(made.rows()[:, 1], weight[:, 1])
    assert float((weight - made.rows()).square().sum()) == pytest.approx(float(rest[3:].square().sum()), rel=1e-3)


@pytest.mark.parametrize("name", ["plain", "tall"])
def test_svd_of_full_rank_keeps_what_inputs_without_data_would_do(name):
    layer, shape, _ = case(name)
    made = build(layer, "svd", tops(shape, "svd"))
    fit_(made, layer.weight.detach().flatten(1), HARD["dead inputs"](shape.fan_in))
    torch.testing.assert_close(made.rows().float(), layer.weight.detach().flatten(1), rtol=0, atol=1e-4)


def test_a_matrix_that_is_no_second_moment_is_refused():
    with pytest.raises(GraphError, match="no large negative part"):
        root(torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)))


def test_wrong_sizes_and_values_that_are_not_finite_are_refused():
    layer = nn.Linear(6, 4)
    made, weight = build(layer, "svd", (2,)), rand(4, 6)
    with pytest.raises(GraphError, match=r"weight \(4, 6\) and a Gram matrix \(6, 6\); got \(4, 6\) and \(5, 5\)"):
        fit_(made, weight, torch.eye(5))
    with pytest.raises(GraphError, match=r"got \(6, 4\)"):
        fit_(made, weight.T, torch.eye(6))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(GraphError, match="must have finite weights and moments"):
            fit_(made, weight, torch.full((6, 6), bad))
        with pytest.raises(GraphError, match="must have finite weights and moments"):
            fit_(made, torch.full((4, 6), bad), torch.eye(6))
