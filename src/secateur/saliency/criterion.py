"""What a criterion is, and where criteria are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur import saliency
from secateur.arguments import checked_call
from secateur.errors import DataError, choose
from secateur.saliency.gates import Gated
from secateur.saliency.question import Question
from secateur.saliency.weight_criterion import score_weights, weight_criteria
from secateur.structure.process_state import one_at_a_time
from secateur.structure.units import Units

# Saliency of all units [K] at the gates g; those of units already removed are not looked at.
Saliency = Callable[[Gated, Tensor], Tensor]
Needs = Literal["nothing", "data", "loss"]


@dataclass(frozen=True)
class Criterion:
    """A way to compute or estimate saliency.

    Attributes:
        name: As users give it.
        saliency: The function.
        needs: Nothing but weights, data without targets, or data and a loss.
        in_loss_units: Whether it predicts the rise of the loss.
        measures: Whether it measures that, so that it is right also for units of sliced sets, whose norms do not
            see a gate's derivative.
        error: The standard errors [K] of what it draws at random, where it does.
    """

    name: str
    saliency: Saliency
    needs: Needs
    in_loss_units: bool
    measures: bool
    error: Saliency | None = None

    def approximate_for(self, units: Units) -> list[str]:
        """The unit sets for which its estimates leave something out."""
        estimates = self.in_loss_units and not self.measures
        return [unit_set.name for unit_set in units if estimates and unit_set.removal == "sliced"]


_CRITERIA: dict[str, Criterion] = {}


def criterion(
    name: str,
    needs: Needs = "loss",
    in_loss_units: bool = True,
    measures: bool = False,
    error: Saliency | None = None,
) -> Callable[[Saliency], Saliency]:
    """Register the decorated function under this name."""

    def register(function: Saliency) -> Saliency:
        _CRITERIA[name] = Criterion(name, function, needs, in_loss_units, measures, error)
        return function

    return register


def criteria() -> dict[str, Criterion]:
    """All criteria by name: every module of this package is loaded."""
    for module in iter_modules(saliency.__path__):
        import_module(f"{saliency.__name__}.{module.name}")
    return dict(sorted(_CRITERIA.items()))


def find_criterion(name: str, gated: Gated) -> Criterion:
    """The criterion of that name, with all that it needs given.

    Raises:
        ArgumentError: There is none of that name.
        DataError: It needs data or a loss, and there is none.
    """
    found = choose("criterion", name, criteria())
    missing = {
        "nothing": [],
        "data": [] if gated.has_data else ["data"],
        "loss": [what for what, there in (("data", gated.has_data), ("a loss", gated.has_loss)) if not there],
    }[found.needs]
    if missing:
        free = ", ".join(c.name for c in criteria().values() if c.needs == "nothing")
        raise DataError(f"criterion {name!r} needs {' and '.join(missing)}; without them: {free}")
    return found


GRANULARITIES = {"unit": "unit", "weight": "weight"}
THRESHOLDS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": torch.mean,
    "median": lambda values: values.sort().values[[(len(values) - 1) // 2, len(values) // 2]].mean(),
}


def apply_threshold(values: Tensor, threshold: str | None) -> Tensor:
    """Estimates above their mean or median are replaced by it (003 section 2.3), and so tied.

    >>> apply_threshold(torch.tensor([1.0, 2.0, 9.0]), "mean")
    tensor([1., 2., 4.])
    """
    if threshold is None or not len(values):
        return values
    return values.clamp(max=choose("threshold", threshold, THRESHOLDS)(values))


@checked_call
@one_at_a_time
def score(
    model: nn.Module,
    data: Any,
    loss: Any,
    *,
    units: Units | None = None,
    criterion: str | None = None,
    threshold: str | None = None,
    granularity: str = "unit",
    seed: int = 0,
    max_memory: int | str | None = None,
) -> dict[str, Tensor]:
    """The saliency of every unit: by how much the loss rises when it alone is removed, or an estimate.

    ``oracle``: E(1 − e_k) − E(1); ``taylor1``: −∂E/∂g_k (003 eq. 3); ``taylor2``: −∂E/∂g_k + ½ Σ o² ∂²E/∂o²
    (003 eq. 4) by second-derivative back-propagation; ``hessian``: −∂E/∂g_k + ½ ∂²E/∂g_k²; ``ggn``: the same with
    the Gauss-Newton matrix's 1/N Σ_n J_nkᵀ L_n J_nk; ``fisher``: with 1/N Σ_n (∂ℓ_n/∂g_k)² for targets drawn from the
    model's own distribution; ``obs``: what is left of the rise if the weights of the other units make up for it; in
    other units ``magnitude``, ``activation`` and ``random``. For units of sliced sets the oracle, and ``obs`` with it,
    measures the network without them; the derivatives are approximate there, since no norm's statistics see a gate.

    Of single weights u_i, with ``granularity="weight"``: ``obd``: ½ u_i² ∂²E/∂u_i² (note 004 eq. 5), exactly;
    ``obd_ggn``, ``obd_fisher``, ``obd_recursion``: with the second derivative by Gauss and Newton, by drawn targets, by
    the paper's recursion; ``obs``: ½ u_i² / [H⁻¹]_ii, what is left makes up for it; ``magnitude`` and ``random``.

    Args:
        model: Evaluated as in eval mode, left as it was.
        data: A pair (inputs, targets) of tensors, or an iterable of such batches that can be read again; None
            for criteria that look at weights only.
        loss: ``loss(outputs, targets)``, the mean over the batch's samples, or "cross_entropy", "binary_cross_entropy",
            "squared_error", which take the outputs' ``logits`` or only tensor; None where the criterion needs none.
        units: From `find_units`; None to find them with the first batch of the data.
        criterion: One of those above; None for ``oracle``, of weights ``obd``.
        threshold: "mean" or "median": estimates above it are replaced by it.
        granularity: "unit" or "weight".
        seed: For ``random`` and ``fisher``.
        max_memory: Bytes that may be held beside model and data, or "2 GB"; None for a quarter of what is free. A
            dataset given whole is run in as many pieces as that needs; batches given one by one are not split.

    Returns:
        Per unit set a float64 tensor [size] on the CPU; of weights per parameter of two dimensions or more one of its
        shape.

    Raises:
        ArgumentError: An unknown name, a memory that is no size, a seed that is none, no model, no units.
        DataError: Unusable data or loss, or a criterion that needs them and has none.
        ModelError: The model cannot be captured, holds NaN, or has no removable units; or `units` were found on another
            forward.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    >>> for layer in model: _ = nn.init.ones_(layer.weight)
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> score(model, (x, torch.zeros(2, 1)), "squared_error", criterion="taylor1")
    {'0': tensor([-5., -5.], dtype=torch.float64)}
    """
    weights = choose("granularity", granularity, GRANULARITIES) == "weight"
    known: Mapping[str, Any] = weight_criteria() if weights else criteria()
    name = ("obd" if weights else "oracle") if criterion is None else criterion
    choose("weight criterion" if weights else "criterion", name, known)
    if threshold is not None:
        choose("threshold", threshold, THRESHOLDS)
    question = Question(model, data, loss, units, seed=seed, max_memory=max_memory)
    if weights:
        scores = score_weights(question, name)
        flat = apply_threshold(torch.cat([values.flatten() for values in scores.values()]), threshold)
        pieces = torch.split(flat, [values.numel() for values in scores.values()])
        return {name: piece.reshape(scores[name].shape) for name, piece in zip(scores, pieces, strict=True)}
    gated = question.gated
    values = saliency_of(find_criterion(name, gated), gated, question.ones)
    return question.units.split(apply_threshold(values, threshold).cpu())


def standard_errors(question: Question, criterion: str | None) -> dict[str, Tensor] | None:
    """Return those of the saliencies that `score` gives with this seed; None of a criterion that draws nothing."""
    found = criteria().get(criterion or "oracle")
    if found is None or found.error is None:
        return None
    with torch.enable_grad():
        return question.units.split(found.error(question.gated, question.ones).cpu())


def saliency_of(found: Criterion, gated: Gated, g: Tensor) -> Tensor:
    """The criterion's saliencies [K], float64.

    Raises:
        DataError: One of them is NaN: the loss or its derivative is, on this data.
    """
    with torch.enable_grad():
        values = found.saliency(gated, g).detach().double()
    if bool(values[g != 0].isnan().any()):
        raise DataError(f"criterion {found.name!r} gave NaN: the loss or its derivative is NaN on this data")
    return values
