from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cases import targets
from secateur.curvature.loss_factors import Factor, exact_factors, sampled_factors, ties_samples
from secateur.errors import DataError
from secateur.objective.losses import LOSSES

SHAPES = [(4, 3), (4, 3, 2), (1, 1)]


def summed(factors: Iterable[Factor]) -> Tensor:
    """Σ_v λ_v u_v u_vᵀ of each sample [N, C, C]."""
    total = torch.zeros(1, dtype=torch.float64)
    for weight, _, vectors in factors:
        u = torch.cat([vector.flatten(1) for vector in vectors], 1)
        total = total + weight[:, None, None] * u[:, :, None] * u[:, None, :]
    return total


def dense(loss: Any, outputs: Any, t: Any) -> Tensor:
    """N times the Hessian in each sample's outputs, the others' left out [N, C, C]."""
    several = isinstance(outputs, tuple)
    parts = outputs if several else (outputs,)
    n, widths = len(parts[0]), [part[0].numel() for part in parts]

    def error(o: Tensor) -> Tensor:
        pieces = [piece.reshape(part.shape) for piece, part in zip(torch.split(o, widths, 1), parts, strict=True)]
        return n * loss(tuple(pieces) if several else pieces[0], t)

    whole = torch.func.hessian(error)(torch.cat([part.flatten(1) for part in parts], 1))
    return torch.stack([whole[i, :, i] for i in range(n)])


def made(name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    out = torch.randn(shape, dtype=torch.float64)
    if name == "cross_entropy":
        return out, torch.randint(0, shape[1], (shape[0], *shape[2:]))
    return out, targets(name, out, 0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LOSSES)
def test_named_losses_are_decomposed(name: str, shape: tuple[int, ...]) -> None:
    out, t = made(name, shape)
    got = summed(exact_factors(LOSSES[name], out, t))
    torch.testing.assert_close(got, dense(LOSSES[name], out, t), rtol=1e-12, atol=1e-14)


def test_targets_may_be_probabilities() -> None:
    out, t = torch.randn(4, 3, 2).double(), torch.randn(4, 3, 2).double().softmax(1) * 0.9995  # as rounded ones are
    got = summed(exact_factors(LOSSES["cross_entropy"], out, t))
    torch.testing.assert_close(got, dense(LOSSES["cross_entropy"], out, t), rtol=1e-12, atol=1e-14)


def own(outputs: tuple[Tensor, Tensor], t: Tensor) -> Tensor:
    a, b = outputs
    return (F.softplus(a).sum(1) * b[:, 0] ** 2 * t).mean()


def test_a_loss_of_ones_own_by_its_eigenvectors_also_negative_ones() -> None:
    outputs, t = (torch.randn(4, 2).double(), torch.randn(4, 1).double()), torch.randn(4).double()
    factors = list(exact_factors(own, outputs, t))
    torch.testing.assert_close(summed(factors), dense(own, outputs, t), rtol=1e-12, atol=1e-13)
    assert any(bool((factor.weight < 0).any()) for factor in factors)
    assert all(a is b for factor in factors for a, b in zip(factor.tensors, outputs, strict=True))


def test_an_output_that_is_returned_twice_is_one() -> None:
    out = torch.randn(4, 2).double()
    factors = list(exact_factors(lambda o, _: (o[0] * o[1]).sum(1).mean(), (out, out), None))
    torch.testing.assert_close(summed(factors), 2 * torch.eye(2).double().expand(4, 2, 2))


def test_a_linear_loss_has_no_curvature() -> None:
    assert list(exact_factors(lambda o, _: o.mean(), torch.ones(3, 2), None)) == []


@pytest.mark.parametrize("shape", SHAPES[:2])
@pytest.mark.parametrize("name", LOSSES)
def test_drawn_ones_are_right_in_expectation(name: str, shape: tuple[int, ...]) -> None:
    out, t = made(name, shape)
    exact = summed(exact_factors(LOSSES[name], out, t))
    got = summed(sampled_factors(LOSSES[name], out, t, torch.Generator().manual_seed(0), 4000))
    assert (got - exact).abs().max() < 0.08 * exact.abs().max()


def test_what_ties_samples_or_has_no_distribution_is_refused() -> None:
    out = torch.randn(3, 2).double()
    with pytest.raises(DataError, match="ties samples to each other"):
        list(exact_factors(lambda o, _: o.mean().square(), out, None))
    with pytest.raises(DataError, match="known for cross_entropy"):
        list(sampled_factors(own, out, None, torch.Generator(), 1))
    with pytest.raises(DataError, match=r"shapes \(3, 2\), \(2,\): expected the samples along the first dimension"):
        list(exact_factors(own, (out, out[0]), torch.ones(3).double()))


@pytest.mark.parametrize("name", LOSSES)
def test_named_losses_tie_no_samples(name: str) -> None:
    assert not ties_samples(LOSSES[name], *made(name, (4, 3)))
    assert not ties_samples(lambda o, _: F.softplus(o).sum(1).mean(), torch.randn(3, 2), None)
