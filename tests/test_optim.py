"""The weight update of the note 000."""

from __future__ import annotations

import copy
import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from rounding import assert_close_ulps
from secateur import SecateurError
from secateur.objective.losses import find_loss
from secateur.optim import TaylorRoot, curvature_of
from secateur.reference import weight_ggn, weight_hessian


def reference(loss, g, h):
    """Of exact numbers, with sixty digits and no end of range."""
    with localcontext(prec=60, Emin=-5000, Emax=5000):
        loss, g, h = Decimal(loss), Decimal(g), Decimal(h)
        discriminant = g * g - 2 * h * loss
        if loss == 0 or (g == 0 and h == 0):
            return 0.0
        if discriminant < 0:
            return float(-g / h)
        root = discriminant.sqrt()
        return float(-2 * loss / (g + root if g >= 0 else g - root))


def stepped(loss, g, h=None, w=0.0, dtype=torch.float64, **options):
    """Weights after one step, from their loss, gradients and curvatures."""
    p = nn.Parameter(torch.full_like(torch.tensor(g, dtype=dtype), w))

    def closure():
        p.grad = torch.tensor(g, dtype=dtype)
        return torch.tensor(loss, dtype=torch.float64)

    second = {} if h is None else {"order": 2, "curvature": lambda: [torch.tensor(h, dtype=dtype)]}
    TaylorRoot([p], **second, **options).step(closure)
    return p.tolist()


def descend(loss, w, second, **options):
    """A weight after one step of order 2 on a function of it with a given second derivative."""
    p = nn.Parameter(torch.tensor(w, dtype=torch.float64))
    optimiser = TaylorRoot([p], 2, curvature=lambda: [torch.tensor(second)], **options)

    def closure():
        optimiser.zero_grad()
        value = loss(p)
        value.backward()
        return value

    assert optimiser.step(closure).item() == loss(torch.tensor(w, dtype=torch.float64)).item()
    return p.item()


single = st.floats(width=32, allow_nan=False, allow_infinity=False)
double = st.floats(1e-290, 1e290).flatmap(lambda size: st.sampled_from([0.0, size, -size]))


@settings(deadline=None)
@given(single, single, single)
@example(1.0, 0.0, -2.0)
@example(1.0, -(2.0**-149), 2.0**-149)
@example(2.0**-149, 2.0**-149, 2.0**-149)
@example(3e38, 3e38, 3e38)
@example(2.0, 2.0, 1.0)
def test_steps_are_those_of_the_formula_at_any_float32(loss, g, h):
    most = torch.finfo(torch.float32).max
    for x, second in ((reference(loss, g, 0.0), None), (reference(loss, g, h), [h])):
        (got,) = stepped(loss, [g], second, dtype=torch.float32)
        assert got == pytest.approx(min(max(x, -most), most), rel=1e-6, abs=1e-45)


@settings(deadline=None)
@given(double, double, double)
@example(1e290, 1e-290, -1e290)
@example(1e-290, 1e-200, 1e-250)
@example(1.0, 1e-200, 0.0)
def test_no_square_leaves_the_range_of_float64(loss, g, h):
    most = torch.finfo(torch.float64).max
    x = min(max(reference(loss, g, h), -most), most)
    assert stepped(loss, [g], [h]) == [pytest.approx(x, rel=1e-6, abs=1e-300)]


def test_a_step_by_hand_at_either_order():
    assert stepped(6.0, [2.0, -3.0]) == [-1.5, 1.0]  # −(6/2)/2, −(6/2)/−3
    assert_close_ulps(stepped(1.5, [2.0], [1.0]), [-1.0])  # 1.5 − 2 + ½ = 0
    assert_close_ulps(stepped(1.5, [-2.0], [1.0]), [1.0])


@pytest.mark.parametrize(("w", "zero"), [(0.0, 1.0), (2.0, 1.0), (3.0, 4.0), (5.0, 4.0), (1.0, 1.0), (4.0, 4.0)])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_nearest_zero_of_a_quadratic_is_reached_in_one_step(w, zero, sign):
    assert_close_ulps(descend(lambda w: sign * (w - 1) * (w - 4), w, 2.0 * sign), zero)


def test_of_two_zeros_equally_far_it_is_the_left_one_as_the_sign_of_zero_is_plus():
    assert_close_ulps(descend(lambda w: 4 - w**2, 0.0, -2.0), -2.0)


def test_a_double_zero_is_reached():
    # where rounding leaves two zeros they are apart by its root
    assert descend(lambda w: (w - 2) ** 2, 0.0, 2.0) == pytest.approx(2.0, abs=1e-7)


def test_without_a_zero_the_step_ends_where_the_parabola_comes_nearest():
    assert descend(lambda w: (w - 2) ** 2 + 1, 5.0, 2.0) == 2.0
    assert descend(lambda w: -((w - 2) ** 2) - 1, 5.0, -2.0) == 2.0


def test_a_negative_loss_is_climbed_up_to_zero():
    assert_close_ulps(descend(lambda w: w**2 - 4, 1.0, 2.0), 2.0)
    assert stepped(-6.0, [2.0]) == [3.0]


@pytest.mark.parametrize("h", [1e-2, -1e-3, 1e-6, -1e-12, 1e-300, 0.0])
def test_order_2_tends_to_order_1_as_the_curvature_goes(h):
    assert stepped(3.0, [2.0], [h]) == [pytest.approx(-1.5, abs=1.2 * abs(h) + 1e-15)]  # −E/g − hE²/2g³
    assert h == 0 or stepped(3.0, [2.0], [1e-2]) != stepped(3.0, [2.0])


def test_nothing_to_go_by_is_no_step():
    assert stepped(5.0, [0.0, 0.0], w=7.0) == [7.0, 7.0]
    assert stepped(5.0, [0.0, 0.0], [0.0, 3.0], w=7.0) == [7.0, 7.0]
    assert stepped(0.0, [2.0, 0.0, 0.0], [1.0, 1.0, 0.0], w=7.0) == [7.0] * 3
    inf = math.inf
    assert stepped(5.0, [inf, 1.0, inf, 1.0], [1.0, inf, inf, -inf], w=7.0) == [7.0] * 4
    assert stepped(0.0, [1.0], [inf], w=7.0) == [7.0]


def test_each_of_p_weights_solves_for_its_share_over_all_groups():
    a, b, idle, frozen = (nn.Parameter(torch.zeros(n, dtype=torch.float64)) for n in (3, 1, 5, 7))
    frozen.requires_grad_(False)
    optimiser = TaylorRoot([{"params": [idle, a]}, {"params": [frozen, b], "lr": 0.5}])
    optimiser.step(lambda: backward(8 + 2 * a.sum() - 4 * b.sum()))
    assert a.tolist() == [-1.0] * 3  # −(8/4)/2
    assert b.tolist() == [0.25]  # half of −(8/4)/−4
    assert not idle.any()


def backward(loss):
    loss.backward()
    return loss


def test_a_loss_linear_in_all_weights_is_solved_by_all_together():
    w = nn.Parameter(torch.zeros(10, dtype=torch.float64))
    slopes = torch.arange(1.0, 11.0, dtype=torch.float64)
    TaylorRoot([w]).step(lambda: backward(3 + slopes @ w))
    assert_close_ulps(slopes @ w, torch.tensor(-3.0, dtype=torch.float64), ulps=8)


def test_learning_rate_and_bound_are_those_of_the_group():
    a, b = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups = [{"params": [a], "lr": 0.5}, {"params": [b], "max_step": 0.25}]
    TaylorRoot(groups, lr=2, max_step=3).step(lambda: backward(8 + a.sum() - b.sum()))
    assert (a.item(), b.item()) == (-1.5, 0.5)  # −4 and 4, bounded, then times the learning rate
    assert stepped(1.0, [1e-30, -1e-30, 0.0, 1.0], max_step=2.0) == [-2.0, 2.0, 0.0, -0.25]


def test_the_curvature_is_asked_once_after_the_closure_at_the_same_weights():
    w, calls = nn.Parameter(torch.tensor([3.0])), []

    def closure():
        optimiser.zero_grad()
        calls.append(("closure", w.item()))
        return backward((w**4 - 16).sum())

    def curvature():
        calls.append(("curvature", w.item()))
        (slope,) = torch.autograd.grad((w**4).sum(), w, create_graph=True)
        yield from torch.autograd.grad(slope.sum(), w)

    optimiser = TaylorRoot([w], order=2, curvature=curvature)
    optimiser.step(closure)
    assert calls == [("closure", 3.0), ("curvature", 3.0)]
    for _ in range(4):
        optimiser.step(closure)
    assert w.item() == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("order", [1, 2])
def test_any_dtype_is_kept_and_stays_finite(dtype, order):
    w = nn.Parameter(torch.tensor([1.0, 1.0, -1.0], dtype=dtype))
    tiny = torch.finfo(dtype).tiny

    def closure():
        w.grad = torch.tensor([3.0, tiny, -tiny], dtype=dtype)
        return 18.0

    h = {"curvature": lambda: [torch.tensor([0.0, 0.0, 0.0])]} if order == 2 else {}
    TaylorRoot([w], order, lr=1e300, **h).step(closure)
    most = torch.finfo(dtype).max
    assert w.tolist() == [-2e300 if dtype == torch.float64 else -most, -most, most]
    assert w.dtype == dtype


def test_a_share_too_small_for_float16_still_counts():
    count = 2**16
    w = nn.Parameter(torch.zeros(count, dtype=torch.float16))

    def closure():
        w.grad = torch.full_like(w, 2.0**-14)
        return torch.tensor(2.0**-11, dtype=torch.float16)  # a share of 2⁻²⁷, which float16 has not

    TaylorRoot([w]).step(closure)
    assert w.unique().tolist() == [-(2.0**-13)]


def test_the_state_goes_round():
    first, second = (
        TaylorRoot([{"params": [nn.Parameter(torch.ones(2))], "lr": lr}], max_step=bound)
        for lr, bound in ((0.25, 8.0), (1, None))
    )
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.state_dict() == first.state_dict()
    assert [(g["lr"], g["max_step"]) for g in second.param_groups] == [(0.25, 8.0)]
    assert first.state_dict()["state"] == {}
    w = second.param_groups[0]["params"][0]
    second.step(lambda: backward(w.sum()))
    assert w.tolist() == [0.75, 0.75]  # 1 − ¼ · (2/2)/1


def test_a_schedule_sets_the_learning_rate():
    w = nn.Parameter(torch.zeros(1))
    optimiser = TaylorRoot([w])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.5)
    for expected in (-1.0, -1.5):
        optimiser.zero_grad()
        optimiser.step(lambda: backward(1 + w - w.detach()))
        schedule.step()
        assert w.item() == expected


def nothing():
    return []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"order": 3}, "TaylorRoot: expected order 1 or 2, got 3"),
        ({"order": 2}, "TaylorRoot: order 2 needs curvature, a function without arguments, got None"),
        ({"curvature": nothing}, "TaylorRoot: order 1 uses no curvature; leave it out, or give order=2"),
        ({"lr": -1}, "TaylorRoot: expected a finite lr of at least 0, got -1"),
        ({"lr": math.nan}, "TaylorRoot: expected a finite lr of at least 0, got nan"),
        ({"lr": math.inf}, "TaylorRoot: expected a finite lr of at least 0, got inf"),
        ({"lr": "1"}, "TaylorRoot: expected a finite lr of at least 0, got '1'"),
        ({"max_step": 0.0}, "TaylorRoot: expected a max_step above 0, or None, got 0.0"),
        ({"max_step": math.nan}, "TaylorRoot: expected a max_step above 0, or None, got nan"),
        ({"max_step": "1"}, "TaylorRoot: expected a max_step above 0, or None, got '1'"),
    ],
)
def test_options_that_are_not_possible_are_refused(options, text):
    with pytest.raises(SecateurError) as refused:
        TaylorRoot([nn.Parameter(torch.zeros(1))], **options)
    assert str(refused.value) == text
    if "lr" in options:
        with pytest.raises(SecateurError) as refused:
            TaylorRoot([{"params": [nn.Parameter(torch.zeros(1))], **options}])
        assert str(refused.value) == text


def test_a_step_without_a_closure_is_refused():
    with pytest.raises(SecateurError) as refused:
        TaylorRoot([nn.Parameter(torch.zeros(1))]).step()
    text = "TaylorRoot.step: needs a closure that zeroes the gradients and returns the loss"
    assert str(refused.value) == text


GOOD = (torch.ones(2), torch.ones(3))


@pytest.mark.parametrize(
    ("loss", "gradients", "curvatures", "text"),
    [
        (math.nan, GOOD, GOOD, "TaylorRoot.step: the loss is nan; expected a finite number"),
        (torch.tensor(-math.inf), GOOD, GOOD, "TaylorRoot.step: the loss is -inf; expected a finite number"),
        (None, GOOD, GOOD, "TaylorRoot.step: the closure has to return the loss, one number (float() argument must"),
        (torch.ones(2), GOOD, GOOD, "TaylorRoot.step: the closure has to return the loss, one number ("),
        (1.0, (None, None), GOOD, "TaylorRoot.step: no weight has a gradient; the closure has to call loss.backward()"),
        (1.0, GOOD, GOOD[:1], "curvature: 1 tensors for 2 parameters"),
        (1.0, GOOD, [*GOOD, GOOD[0]], "curvature: 3 tensors for 2 parameters"),
        (1.0, GOOD, GOOD[::-1], "curvature of parameter 0: expected a tensor of shape (2,), got one of (3,)"),
        (1.0, GOOD, [GOOD[0], 1.0], "curvature of parameter 1: expected a tensor of shape (3,), got float"),
        (1.0, GOOD, [GOOD[0], GOOD[1] * math.nan], "curvature of parameter 1: it holds NaN"),
        (1.0, (GOOD[0], GOOD[1] * math.nan), GOOD, "gradient of parameter 1: it holds NaN"),
        (
            1.0,
            (GOOD[0], GOOD[1].to_sparse()),
            GOOD,
            "gradient of parameter 1: expected dense real numbers, got torch.float32 in torch.sparse_coo",
        ),
        (
            1.0,
            GOOD,
            (GOOD[0], GOOD[1] * 1j),
            "curvature of parameter 1: expected dense real numbers, got torch.complex64 in torch.strided",
        ),
    ],
)
def test_a_step_that_is_not_possible_is_refused_and_changes_nothing(loss, gradients, curvatures, text):
    weights = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]

    def closure():
        for w, gradient in zip(weights, gradients, strict=True):
            w.grad = gradient
        return loss

    with pytest.raises(SecateurError) as refused:
        TaylorRoot(weights, 2, curvature=lambda: curvatures).step(closure)
    assert str(refused.value).startswith(text)
    assert not any(w.any() for w in weights)


def test_complex_gradients_are_refused():
    w = nn.Parameter(torch.ones(1, dtype=torch.complex64))
    with pytest.raises(SecateurError) as refused:
        TaylorRoot([w]).step(lambda: backward(w.abs().sum()))
    assert str(refused.value) == (
        "gradient of parameter 0: expected dense real numbers, got torch.complex64 in torch.strided"
    )


class Unused(nn.Module):
    """A normed network with dropout, and a parameter without part in the outputs."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Parameter(torch.ones(2))
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(nn.functional.dropout(self.norm(self.first(x)).tanh(), 0.5, self.training))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Unused().double()


X, T = torch.rand(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1] * 3)
DENSE = {"ggn": weight_ggn, "hessian": lambda *args: weight_hessian(*args)[1]}


def dense_diagonal(network, kind, loss):
    """By reference, for the parameters in their order."""
    modes = network.training
    diagonal = DENSE[kind](network.eval(), (X,), T, find_loss(loss)).diagonal()
    network.train(modes)
    return torch.split(diagonal, [p.numel() for p in network.parameters()])


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
@pytest.mark.parametrize("kind", ["ggn", "hessian"])
def test_the_curvature_is_that_of_the_reference_at_the_weights_of_each_call(network, kind, loss):
    curvature = curvature_of(network, X, loss, kind)
    for _ in range(2):
        found = curvature(X, T)
        assert [h.shape for h in found] == [p.shape for p in network.parameters()]
        for h, dense in zip(found, dense_diagonal(network, kind, loss), strict=True):
            torch.testing.assert_close(h.flatten(), dense, rtol=1e-10, atol=1e-14)
        assert not found[0].any()  # spare
        assert all(h.any() for h in found[1:])
        with torch.no_grad():
            for p in network.parameters():
                p.mul_(1.5)


def test_drawn_targets_give_the_gauss_newton_diagonal_in_expectation(network):
    curvature = curvature_of(network, X, "cross_entropy", "fisher")
    many = X.repeat(100, 1), T.repeat(100)
    draws = torch.stack([torch.cat([h.flatten() for h in curvature(*many)]) for _ in range(25)])
    exact = torch.cat([h.flatten() for h in curvature_of(network, X, "cross_entropy")(X, T)])
    assert not torch.equal(draws[0], draws[1])
    error = draws.std(0) / 5
    assert ((draws.mean(0) - exact).abs() <= 4 * error + 1e-15).all()
    assert (error[2:] < 0.1 * exact[2:].max()).all()


@pytest.mark.parametrize("kind", ["ggn", "fisher", "hessian"])
def test_the_curvature_leaves_the_model_as_it_was(network, kind):
    network.train()
    network.norm.eval()
    before = copy.deepcopy(network.state_dict())
    curvature_of(network, X, "cross_entropy", kind)(X, T)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert (network.training, network.norm.training, network.last.training) == (True, False, True)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_the_curvature_is_of_the_weights_dtype():
    network = nn.Linear(3, 2)
    assert {h.dtype for h in curvature_of(network, X.float(), "squared_error")(X.float(), T)} == {torch.float32}


def test_an_unknown_kind_of_curvature_is_refused(network):
    with pytest.raises(SecateurError, match=r"^unknown kind 'exact'; one of: ggn, fisher, hessian$"):
        curvature_of(network, X, "squared_error", "exact")
