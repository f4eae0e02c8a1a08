"""Single pieces against closed forms and brute force."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automc.compression.calibration import input_rows, moments, output_rows, output_shape, sampled_positions
from automc.compression.quantize import (
    RANGES,
    ActivationQuantizer,
    Observed,
    QuantizedLayer,
    activation_range,
    dequantize,
    weight_codes,
    weight_scale,
)
from automc.compression.regression import Regression
from automc.criteria.criterion import LayerView
from automc.criteria.curvature import damped_inverse
from automc.criteria.surgeon import Reader, eliminate
from automc.errors import PolicyError
from automc.policy import Recipe
from automc.registry import CRITERIA


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_gram_refit_equals_a_direct_least_squares_solve():
    x, w = rand(500, 12) + 0.3, rand(7, 12, seed=1)
    keep = torch.tensor([0, 2, 3, 7, 8, 11])
    fit = Regression.of_moments(w, moments(x[None]), keep)
    fitted = fit.solve(1e-12)
    shift = (fit.mean_y.T - fitted @ fit.mean_x.T)[:, 0]
    design = torch.cat((x[:, keep], torch.ones(500, 1)), dim=1).double()
    direct = torch.linalg.lstsq(design, (x @ w.T).double()).solution
    torch.testing.assert_close(fitted, direct[:-1].T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shift, direct[-1], rtol=1e-4, atol=1e-5)


def test_a_regression_behind_other_rows_is_that_of_what_they_give():
    x, y, a = rand(1, 400, 9) + 0.5, rand(400, 6, seed=1), rand(4, 9, seed=2)
    known = Regression.of(x, y, intercept=True)
    direct = Regression.of((x[0] @ a.T)[None], y, intercept=True)
    towards = Regression.of(x, x[0] @ a.T, intercept=True)
    for found, wanted in ((known.behind(a), direct), (known.towards(a), towards)):
        for name in ("gram", "cross", "mean_x", "mean_y"):
            torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(known.towards(a).solve(1e-12), a.double(), rtol=1e-4, atol=1e-4)


def test_regression_equals_a_direct_least_squares_solve_per_conv_group():
    x, y = rand(2, 400, 5) + 0.5, rand(400, 6, seed=1)
    fit = Regression.of(x, y, intercept=True)
    w = fit.solve(1e-12)
    for g in range(2):
        design = torch.cat((x[g], torch.ones(400, 1)), dim=1).double()
        direct = torch.linalg.lstsq(design, y[:, 3 * g : 3 * g + 3].double()).solution
        torch.testing.assert_close(w[3 * g : 3 * g + 3], direct[:-1].T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2),
        nn.Conv2d(4, 8, (1, 3), groups=2),
        nn.Conv2d(4, 4, 3, groups=4, padding=1),
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.Conv2d(4, 6, (2, 4), padding="same"),
        nn.Conv2d(4, 6, 3, padding=(2, 1), padding_mode="reflect"),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 6, 3, padding="same", padding_mode="replicate"),
        nn.Conv1d(4, 6, 3, padding=1),
        nn.Conv3d(4, 6, (2, 3, 1), stride=(1, 2, 1), padding=(1, 1, 0), groups=2),
        nn.Linear(5, 6),
    ],
)
def test_input_rows_times_weight_is_the_layers_output(layer):
    shapes = {nn.Linear: (3, 7, 5), nn.Conv1d: (3, 4, 9), nn.Conv3d: (3, 4, 5, 6, 4)}
    x = rand(*shapes.get(type(layer), (3, 4, 9, 8)))
    y = layer(x)
    assert output_shape(layer, x) == (tuple(y.shape[:-1]) if isinstance(layer, nn.Linear) else (3, *y.shape[2:]))
    positions = sampled_positions(output_shape(layer, x), 40, torch.Generator().manual_seed(0))
    rows = input_rows(layer, x, positions)
    weight = layer.weight.flatten(1).reshape(rows.shape[0], -1, rows.shape[2])
    got = (rows @ weight.transpose(1, 2)).transpose(0, 1).flatten(1) + layer.bias
    want = output_rows(y, positions, channels_last=isinstance(layer, nn.Linear))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def weight_of(holder: QuantizedLayer) -> Tensor:
    weight = holder.layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def residual(weight, gram, gone):
    """Least output error without some columns, by brute force."""
    stay = [i for i in range(len(gram)) if i not in gone]
    fitted = torch.linalg.solve(gram[stay][:, stay], (weight @ gram[:, stay]).T).T
    gap = weight.clone()
    gap[:, stay] -= fitted
    return float(((gap @ gram) * gap).sum())


def test_obs_elimination_equals_brute_force_refits():
    x, w = rand(200, 10).double() @ rand(10, 10, seed=2).double(), rand(4, 10, seed=1).double()
    gram = x.T @ x / 200
    blocks = torch.arange(10).reshape(5, 2)
    result = eliminate([Reader(w, gram, blocks)])
    energy = float(((w @ gram) * w).sum())
    gone: list[int] = []
    for step, unit in enumerate(result.order[:-1].tolist()):
        left = [u for u in range(5) if u not in result.order[:step].tolist()]
        costs = {u: residual(w, gram, gone + blocks[u].tolist()) for u in left}
        assert unit == min(costs, key=costs.__getitem__)
        gone += blocks[unit].tolist()
        assert float(result.error[step + 1]) * energy == pytest.approx(costs[unit], rel=1e-2)
    assert float(result.error[-1]) == pytest.approx(1, rel=1e-2)


def test_single_weight_obs_score_is_the_error_of_losing_it():
    x, w = rand(300, 6).double(), rand(3, 6, seed=1).double()
    gram = x.T @ x
    score = CRITERIA.load("obs").score(LayerView(w.float(), gram[None].float()))
    inverse = damped_inverse(gram)
    for row, column in itertools.product(range(3), range(6)):
        exact = residual(w[row : row + 1], gram, [column])
        assert float(score[row, column]) == pytest.approx(
            float(w[row, column] ** 2 / inverse[column, column]), rel=1e-3
        )
        assert float(score[row, column]) == pytest.approx(exact, rel=1e-2)


def test_magnitude_and_activation_scores_are_their_formulas():
    w = rand(4, 3, 2, 2)
    x = rand(50, 12, seed=1)
    view = LayerView(w, (x.T @ x)[None] / 50, norm_scale=torch.arange(1.0, 5.0))
    assert torch.equal(CRITERIA.load("l1").score(view), w.abs())
    assert torch.equal(CRITERIA.load("l2").score(view), w * w)
    norms = (x.square().mean(dim=0)).sqrt().reshape(3, 2, 2)
    torch.testing.assert_close(CRITERIA.load("activation").score(view), w.abs() * norms)
    torch.testing.assert_close(CRITERIA.load("bn_scale").score(view).flatten(1).sum(dim=1), torch.arange(1.0, 5.0))
    rows = w.flatten(1)
    distance = torch.stack([torch.stack([torch.dist(a, b) for b in rows]).sum() for a in rows])
    torch.testing.assert_close(CRITERIA.load("fpgm").score(view).flatten(1).sum(dim=1), distance, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", range(2, 9))
def test_quantized_weights_have_few_values_and_keep_zeros(bits):
    layer = QuantizedLayer(nn.Linear(40, 6), bits, 32)
    with torch.no_grad():
        weight_of(layer)[:, :10] = 0
    before = weight_of(layer).clone()
    layer.round_(weight_scale(before, bits))
    after = weight_of(layer)
    assert all(len(row.unique()) <= 2**bits - 1 for row in after)
    assert bool((after[:, :10] == 0).all())
    assert layer.weight_scale is not None
    codes = weight_codes(after, layer.weight_scale, bits)
    assert torch.equal(dequantize(codes, layer.weight_scale), after)
    if bits == 8:
        assert bool(((after - before).abs() <= layer.weight_scale[:, None] / 2 + 1e-7).all())


def test_weight_scale_has_the_least_error_of_its_candidates():
    w = rand(3, 50)
    scale = weight_scale(w, 3)
    for f in torch.linspace(0.4, 1.0, 24):
        other = f * w.abs().amax(dim=1) / 3
        gap = lambda s: (dequantize(weight_codes(w, s, 3), s) - w).square().sum(dim=1)  # noqa: E731
        assert bool((gap(scale) <= gap(other) + 1e-6).all())


def test_a_zero_weight_row_stays_zero():
    layer = QuantizedLayer(nn.Linear(4, 2), 4, 32)
    with torch.no_grad():
        weight_of(layer).zero_()
    layer.round_(weight_scale(weight_of(layer), 4))
    assert not weight_of(layer).any()


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_activation_quantizer_rounds_to_its_levels_and_keeps_zero(bits):
    x = F.relu(rand(1000))
    quantizer = ActivationQuantizer(bits)
    quantizer.calibrate(Observed.of([x]))
    y = quantizer(x)
    assert len(y.unique()) <= 2**bits
    assert float(quantizer(torch.zeros(1))) == 0
    assert float((y - x).square().mean()) < 4.0 ** (3 - bits)


@pytest.mark.parametrize("method", RANGES)
@pytest.mark.parametrize("bits", [4, 8])
def test_an_activation_range_holds_zero_and_lies_within_what_occurs(method: str, bits: int) -> None:
    for x in (rand(5000), rand(5000).relu(), rand(5000).abs() + 1, -rand(5000).abs() - 1, torch.zeros(50)):
        low, high = activation_range(Observed.of([x]), bits, method).tolist()
        assert min(float(x.min()), 0) <= low <= 0 <= high <= max(float(x.max()), 0)


def test_an_outlier_moves_minmax_only() -> None:
    x = torch.cat((rand(20000).relu(), torch.tensor([100.0])))
    tops = {method: float(activation_range(Observed.of([x]), 4, method)[1]) for method in RANGES}
    assert tops["minmax"] == 100
    assert tops["percentile"] < 5
    assert tops["mse"] < 100 and tops["kl"] < 100


def test_percentile_is_numpys() -> None:
    x = rand(30000)
    low, high = activation_range(Observed.of([x]), 8, "percentile").tolist()
    assert (low, high) == pytest.approx(np.quantile(x.numpy(), [1e-4, 1 - 1e-4]), rel=1e-4)


def test_kl_keeps_the_whole_range_of_evenly_filled_levels() -> None:
    """With as many distinct values as levels nothing is lost by rounding, so every clipped candidate is worse."""
    x = torch.arange(1, 16).repeat(40) / 15
    assert float(activation_range(Observed.of([x]), 4, "kl")[1]) == 1.0


@pytest.mark.parametrize(
    "wrong", [{"reconstruct": "sideways"}, {"rounding": "up"}, {"images": 0}, {"rows": -1}, {"ridge": float("nan")}]
)
def test_a_recipe_that_cannot_be_followed_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=next(iter(wrong))):
        Recipe(**wrong)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_shared_weights_have_few_values_keep_zeros_and_are_their_codes(bits: int) -> None:
    holder = QuantizedLayer(nn.Linear(40, 30), bits, 32, "kmeans")
    with torch.no_grad():
        weight_of(holder)[:, :10] = 0
    before = weight_of(holder).clone()
    holder.share_()
    after, codes = weight_of(holder), holder.codes
    assert codes is not None and holder.centroids is not None
    assert len(after.unique()) <= 2**bits
    assert torch.equal(after == 0, before == 0) and torch.equal(codes == 0, before == 0)
    assert int(codes.min()) >= 0 and int(codes.max()) < 2**bits
    assert torch.equal(holder.centroids[codes], after)
    uniform = QuantizedLayer(nn.Linear(40, 30), bits, 32)
    uniform.layer.load_state_dict({"weight": before, "bias": torch.zeros(30)})
    uniform.round_(weight_scale(before, bits))
    if bits == 4:  # one codebook for the layer against a scale for each row: about as good, with 1/2 of the table
        assert float((after - before).square().sum()) < 1.5 * float((weight_of(uniform) - before).square().sum())


def test_importance_moves_centroids_to_what_matters() -> None:
    torch.manual_seed(0)
    holder = QuantizedLayer(nn.Linear(100, 1), 2, 32, "kmeans")
    before = weight_of(holder).clone()
    importance = torch.ones(1, 100)
    importance[0, :10] = 1e4
    holder.share_(importance)
    gap = (weight_of(holder) - before).abs()[0]
    assert float(gap[:10].mean()) < float(gap[10:].mean())
