"""Criteria that look at what the loss, or the output, does when a weight moves.

g is the mean gradient of the loss over calibration data, H its Hessian, and labels are needed unless it says otherwise.

* taylor: g w, the first-order change of the loss. For a channel it is summed first and its magnitude taken then
  (Molchanov et al. 2019, eq. 8 without the square, which changes no ranking; Molchanov et al. 2017, eq. 8 is the same
  sum over activations); for a single weight |g w|.
* snip: |g w| (Lee et al. 2019, eq. 6 without the common factor), channels by its sum. Made for untrained weights.
* grasp: w (H g), the gradient's squared norm that a weight's absence takes away (Wang et al. 2020, eq. 8, whose -w H g
  is removed from the top). Scores have signs; more stays. Made for untrained weights.
* synflow: |w dR/dw| with R the sum of outputs of the network of absolute weights on inputs of one (Tanaka et al. 2020,
  section 4). No data. The paper prunes in 100 rounds with scores taken anew, exponentially more each; one score is one
  round, and rounds are the caller's.
* sensitivity: mean over samples and outputs of |dy_k / dw| (Tartaglione et al. 2018, eq. 3); weights the output hardly
  depends on leave. No labels. O(samples x outputs) backward passes.
"""

from torch import Tensor

from automc.criteria.criterion import Criterion, LayerView


def _taylor(view: LayerView) -> Tensor:
    assert view.gradient is not None  # the caller checks needs
    return view.gradient * view.weight


def _snip(view: LayerView) -> Tensor:
    return _taylor(view).abs()


def _grasp(view: LayerView) -> Tensor:
    assert view.hessian_gradient is not None
    return view.weight * view.hessian_gradient


def _synflow(view: LayerView) -> Tensor:
    assert view.flow is not None
    return view.flow


def _sensitivity(view: LayerView) -> Tensor:
    assert view.sensitivity is not None
    return view.sensitivity


TAYLOR = Criterion("taylor", _taylor, needs=frozenset({"gradient"}), sign="absolute")
SNIP = Criterion("snip", _snip, needs=frozenset({"gradient"}))
GRASP = Criterion("grasp", _grasp, needs=frozenset({"hessian_gradient"}), sign="ordered")
SYNFLOW = Criterion("synflow", _synflow, needs=frozenset({"flow"}))
SENSITIVITY = Criterion("sensitivity", _sensitivity, needs=frozenset({"sensitivity"}))
"""The last two are never negative, being magnitudes."""
