"""Sampled Fisher information against the Gauss-Newton matrix that it estimates.

Covers secateur.curvature.fisher and secateur.saliency.units.fisher.
"""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from torch import nn

from cases import CASES, Case, targets
from secateur import Units, find_units, score
from secateur.curvature.fisher import estimate
from secateur.errors import DataError
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.saliency.units.fisher import standard_error
from secateur.saliency.units.ggn import ggn

LOSSES = ["cross_entropy", "binary_cross_entropy", "squared_error"]


@cache
def network() -> tuple[Case, Units]:
    case = CASES["two_hidden"]()
    return case, find_units(case.model, case.x)


def setting(loss: str, seed: int = 0) -> tuple[GatedLoss, torch.Tensor]:
    case, units = network()
    t = targets(loss, case.model(case.x), 0)
    return GatedLoss(case.model, units, (case.x, t), loss, seed), ones(case.model, units)


@pytest.mark.parametrize("loss", LOSSES)
def test_it_converges_to_ggn_at_the_rate_of_a_mean_of_draws(loss: str) -> None:
    """The error after 4 ** k draws, root mean square over units and repetitions, halves with each k."""
    exact = ggn(*setting(loss))
    errors = []
    for draws in (1, 4, 16, 64, 256):
        gaps = [estimate(*setting(loss, seed), draws)[0] - exact for seed in range(150)]
        errors.append(torch.stack(gaps).square().mean().sqrt().item())
    ratios = [before / after for before, after in itertools.pairwise(errors)]
    assert all(1.6 < ratio < 2.5 for ratio in ratios), ratios
    assert 13 < errors[0] / errors[-1] < 19


@pytest.mark.parametrize("loss", LOSSES)
def test_the_standard_error_covers_what_draws_do(loss: str) -> None:
    exact = ggn(*setting(loss))
    values, errors = map(torch.stack, zip(*(estimate(*setting(loss, seed), 50) for seed in range(100)), strict=True))
    spread = (values - exact).square().mean(0).sqrt()
    assert (spread < 1.15 * errors.mean(0)).all()
    assert (errors.mean(0) < 3 * spread).all()


def test_its_standard_error_is_that_of_the_mean_over_samples() -> None:
    """One sample, many draws: the spread of the draws alone."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)).double()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    data = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
    gated = GatedLoss(model, find_units(model, data[0]), data, "squared_error")
    value, error = estimate(gated, ones(model, gated.units), 40_000)
    # o = 2 g + 1, r = 2 ε: r² has mean 4 and variance 32
    assert value.item() == pytest.approx(-2 * 3 + 0.5 * 4, abs=4 * error.item())
    assert error.item() == pytest.approx(0.5 * (32 / 40_000) ** 0.5, rel=0.05)


@pytest.mark.parametrize("shape", [(3, 4), (3,)])
def test_positions_are_averaged_as_in_the_loss(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 12), nn.Unflatten(1, (3, 4))).double()
    x, y = torch.randn(6, 2).double(), torch.randint(0, 3, (6, 4))
    if shape == (3,):
        model, y = model[:3], targets("binary_cross_entropy", model[:3](x), 0)
    loss = "cross_entropy" if shape == (3, 4) else "binary_cross_entropy"
    units = find_units(model, x)
    exact = ggn(GatedLoss(model, units, (x, y), loss), ones(model, units))
    values, errors = estimate(GatedLoss(model, units, (x, y), loss), ones(model, units), 20_000)
    assert ((values - exact).abs() < 4.5 * errors).all()
    assert (errors < 0.02 * exact.abs().max()).all()


def test_soft_targets() -> None:
    case = CASES["two_hidden"]()
    soft = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)).double()
    soft *= 0.9995 / soft.sum(1, keepdim=True)  # as rounded ones are
    units = find_units(case.model, case.x)
    exact = ggn(GatedLoss(case.model, units, (case.x, soft), "cross_entropy"), ones(case.model, units))
    own = ggn(
        GatedLoss(case.model, units, (case.x, soft), lambda o, t: nn.functional.cross_entropy(o, t)), exact * 0 + 1
    )
    assert (exact - own).abs().max() <= 1e-12 * own.abs().max()
    values, errors = estimate(GatedLoss(case.model, units, (case.x, soft), "cross_entropy"), exact * 0 + 1, 20_000)
    assert ((values - exact).abs() < 4.5 * errors).all()


def test_the_seed_decides() -> None:
    case = CASES["two_hidden"]()
    a, b, c = (score(case.model, (case.x, case.y), "cross_entropy", criterion="fisher", seed=s)["0"] for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    gated = setting("cross_entropy", 1)
    assert (standard_error(*gated) > 0).all()


def test_a_loss_without_a_known_distribution_is_refused() -> None:
    case = CASES["one_hidden"]()
    with pytest.raises(DataError) as caught:
        score(case.model, (case.x, case.y), lambda o, t: (o[:, 0] - t).square().mean(), criterion="fisher")
    assert str(caught.value) == (
        "fisher: targets are drawn from the model's own distribution, which is known for cross_entropy, "
        "binary_cross_entropy and squared_error; use criterion='ggn' for a loss of your own"
    )
