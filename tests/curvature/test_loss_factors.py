"""The factors of a loss's curvature, those of `secateur.curvature.named_losses` with them, against dense Hessians."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cases import targets
from secateur.curvature.loss_factors import Factor, drawn_factors, exact_factors, sampled_factors, ties_samples
from secateur.errors import DataError
from secateur.objective.kept_outputs import KEPT, keep
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


# ------------------------------------------------------------ losses that keep the outputs as they were


class Returned(NamedTuple):
    logits: Tensor


def kept_outputs(name: str, form: str) -> tuple[Any, Any, Any]:
    """Outputs, what is kept of others, and the loss of all tensors among them as one argument."""
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    shapes = {"plain": [(2, 3)], "positions": [(2, 3, 3)], "classes last": [(2, 3, 3)], "several": [(2, 3, 2), (2, 2)]}
    before, now = ([torch.randn(shape).double() for shape in shapes[form]] for _ in range(2))
    whole = {"classes last": lambda tensors: Returned(*tensors), "several": tuple}.get(form, lambda tensors: tensors[0])
    loss = KEPT[name]
    kept = keep(loss, whole(before), None if form == "plain" else mask)
    return now, kept, lambda tensors, t: loss(whole(tensors), t)


FORMS = [(name, form) for name in KEPT for form in ("plain", "positions", "classes last", "several")][:-1]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_losses_that_keep_outputs_are_decomposed(name: str, form: str) -> None:
    now, kept, loss = kept_outputs(name, form)
    expected = dense(loss, tuple(now), kept)
    outputs = {"classes last": lambda: Returned(*now), "several": lambda: tuple(now)}.get(form, lambda: now[0])()
    exact = list(exact_factors(KEPT[name], outputs, kept))
    torch.testing.assert_close(summed(exact), expected, rtol=1e-12, atol=1e-14)
    assert all(a is b for factor in exact for a, b in zip(factor.tensors, now, strict=True))
    drawn = summed(sampled_factors(KEPT[name], outputs, kept, torch.Generator().manual_seed(0), 4000))
    assert (drawn - expected).abs().max() < 0.08 * expected.abs().max()
    assert not ties_samples(KEPT[name], outputs, kept)


# ------------------------------------------------------------ drawn directions


def mixed(outputs: dict[str, Tensor], t: Tensor) -> Tensor:
    """Ties outputs to each other, also across tensors; concave in some directions; flat for the first sample."""
    a, b = outputs["a"].flatten(1), outputs["b"]
    return ((a.square().sum(1) * b[:, 0] + (a[:, 0] * a[:, 1]).exp() - b.prod(1) ** 2) * t).mean()


def mixed_outputs(n: int) -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    outputs = {"a": torch.randn(n, 2, 2).double(), "b": torch.randn(n, 2).double()}
    return outputs, torch.arange(n).double()


def test_drawn_directions_are_unbiased() -> None:
    outputs, t = mixed_outputs(3)
    exact = summed(exact_factors(mixed, outputs, t))
    assert bool((torch.linalg.eigvalsh(exact)[1:, 0] < 0).all())
    draws = torch.stack(
        [summed(drawn_factors(mixed, outputs, t, torch.Generator().manual_seed(seed), 2)) for seed in range(2000)]
    )
    error = draws.std(0) / len(draws) ** 0.5
    assert error.max() < 0.05 * exact.abs().max()  # enough draws to tell
    assert ((draws.mean(0) - exact).abs() <= 4.5 * error + 1e-12).all()
    assert not exact[0].any()
    assert not draws[:, 0].any()


def test_drawn_terms_come_in_pairs_of_opposite_signs_that_are_as_long() -> None:
    outputs, t = mixed_outputs(3)
    factors = list(drawn_factors(mixed, outputs, t, torch.Generator(), 2))
    assert [factor.weight.tolist() for factor in factors] == [[sign / 8] * 3 for sign in (1, -1, 1, -1)]
    assert all(a is b for factor in factors for a, b in zip(factor.tensors, outputs.values(), strict=True))
    plus, minus = (torch.cat([u.flatten(1) for u in factor.vectors], 1) for factor in factors[:2])
    v, w = (plus + minus) / 2, (plus - minus) / 2  # c v and w / c
    torch.testing.assert_close(v.norm(dim=1)[1:], w.norm(dim=1)[1:], rtol=1e-12, atol=0)


def test_the_same_directions_are_drawn_however_samples_come_in_batches() -> None:
    outputs, t = mixed_outputs(5)
    whole = summed(drawn_factors(mixed, outputs, t, torch.Generator().manual_seed(1)))
    generator, parts = torch.Generator().manual_seed(1), []
    for rows in (slice(0, 2), slice(2, 5)):
        some = {name: value[rows] for name, value in outputs.items()}
        parts.append(summed(drawn_factors(mixed, some, t[rows], generator)))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)


class Counted(torch.autograd.Function):
    """The square, whose backward passes are counted."""

    passes = 0

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(context: Any, slope: Tensor) -> Tensor:  # type: ignore[override]
        Counted.passes += 1
        (x,) = context.saved_tensors
        return slope * 2 * x


@pytest.mark.parametrize("outputs", [3, 300])
def test_passes_through_the_loss_do_not_grow_with_the_outputs(outputs: int) -> None:
    def loss(o: Tensor, _: Any) -> Tensor:
        return Counted.apply(Counted.apply(o)).sum(1).mean()

    Counted.passes = 0
    out = torch.randn(2, outputs).double()
    assert len(list(drawn_factors(loss, out, None, torch.Generator(), 3))) == 6
    assert Counted.passes == 2 + 4  # of two layers one pass for the slope; of the first one for ties, and for each draw


def test_drawn_directions_of_a_linear_loss_and_of_one_that_ties_samples() -> None:
    out = torch.randn(3, 2).double()
    assert list(drawn_factors(lambda o, _: o.mean(), out, None, torch.Generator())) == []
    with pytest.raises(DataError, match=r"^loss: it ties samples to each other, so that no sample has a curvature of"):
        list(drawn_factors(lambda o, _: o.mean().square(), out, None, torch.Generator()))
    with pytest.raises(DataError, match=r"^loss: its second derivative is NaN on this data"):
        list(drawn_factors(lambda o, _: (o.abs() ** 1.5).sum(1).mean(), out * 0, None, torch.Generator()))


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
