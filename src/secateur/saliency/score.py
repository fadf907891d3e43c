"""The saliency of every unit, by any criterion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from secateur.arguments import checked_call
from secateur.errors import choose
from secateur.objective.gated_loss import GatedLoss
from secateur.objective.question import Question
from secateur.process_state import one_at_a_time
from secateur.saliency.criterion import GRANULARITIES, Criterion, Granularity, Saliency, as_criterion
from secateur.saliency.weight_score import score_weights
from secateur.structure.units import Units


def find_criterion(chosen: str | Saliency | Criterion, gated: GatedLoss) -> Criterion:
    """Return the criterion of that name, or that a function is, if there is all that it needs.

    Raises:
        ArgumentError: There is none.
        DataError: It needs data or a loss, and there is none.
    """
    criterion = as_criterion(chosen)
    criterion.require(gated.has_data, gated.has_loss)
    return criterion


THRESHOLDS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": torch.mean,
    "median": lambda values: values.sort().values[[(len(values) - 1) // 2, len(values) // 2]].mean(),
}


def apply_threshold(values: Tensor, threshold: str | None) -> Tensor:
    """Replace estimates above their mean or median by it (003 section 2.3), so that they tie; infinite ones are none.

    >>> apply_threshold(torch.tensor([1.0, 2.0, 9.0]), "mean")
    tensor([1., 2., 4.])
    """
    judged = values[values.isfinite()]
    if threshold is None or not len(judged):
        return values
    most = choose("threshold", threshold, THRESHOLDS)(judged)
    return torch.where(values.isfinite(), values.clamp(max=most), values)


@checked_call
@one_at_a_time
def score(
    model: nn.Module,
    data: Any,
    loss: Any,
    *,
    units: Units | None = None,
    criterion: str | Saliency | None = None,
    threshold: str | None = None,
    granularity: Granularity = "unit",
    seed: int = 0,
    max_memory: int | str | None = None,
) -> dict[str, Tensor]:
    """Return the saliency of every unit: by how much the loss rises when it alone is removed, or an estimate.

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
            Two names need no targets and keep the outputs as they were. "output": ½ Σ_i (o_i − ô_i)², ô the model's own
            outputs, their ``logits`` or all tensors of floating-point numbers; "distribution": Kullback-Leibler's
            divergence from the model's own softmax, the mean over positions, of classes along dimension 1, or the last
            of ``logits`` with three. `data` are then inputs alone, a tensor, a tuple or a dict as one dataset or an
            iterable of such batches; targets beside them are left out, and first derivatives are 0.
        units: From `find_units`; None to find them with the first batch of the data.
        criterion: One of those above, or of another package, by name, or a function as `secateur.criterion` takes it;
            None for ``oracle``, of weights ``obd``.
        threshold: "mean" or "median": estimates above it are replaced by it.
        granularity: "unit" or "weight".
        seed: The seed of ``random`` and ``fisher``.
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
    choose("granularity", granularity, GRANULARITIES)
    own = "obd" if granularity == "weight" else "oracle"
    chosen = as_criterion(own if criterion is None else criterion, granularity)
    if threshold is not None:
        choose("threshold", threshold, THRESHOLDS)
    question = Question(model, data, loss, units, seed=seed, max_memory=max_memory)
    if granularity == "weight":
        scores = score_weights(question, chosen)
        flat = apply_threshold(torch.cat([values.flatten() for values in scores.values()]), threshold)
        pieces = torch.split(flat, [values.numel() for values in scores.values()])
        return {name: piece.reshape(scores[name].shape) for name, piece in zip(scores, pieces, strict=True)}
    values = saliency_of(find_criterion(chosen, question.gated), question.gated, question.ones)
    return question.units.split(apply_threshold(values, threshold).cpu())


def standard_errors(question: Question, criterion: str | Saliency | None) -> dict[str, Tensor] | None:
    """Return the standard errors of the saliencies that `score` gives with this seed; None where nothing is drawn."""
    chosen = as_criterion("oracle" if criterion is None else criterion)
    if chosen.error is None:
        return None
    errors = _values_of_units(chosen, chosen.error, question.gated, question.ones)
    return question.units.split(errors.cpu())


def saliency_of(criterion: Criterion, gated: GatedLoss, g: Tensor) -> Tensor:
    """Return the criterion's saliencies [K], float64.

    Raises:
        ArgumentError: It fails, or what it gives is none.
        DataError: One of them is NaN: the loss or its derivative is, on this data.
    """
    return _values_of_units(criterion, criterion.saliency, gated, g)


def _values_of_units(criterion: Criterion, function: Saliency, gated: GatedLoss, g: Tensor) -> Tensor:
    """Return what a function of the criterion gives for all units, float64; only units that are there are checked.

    Raises:
        ArgumentError: It fails, gives no numbers for all units, or −∞ for one of them.
        DataError: One of the numbers is NaN.
    """
    with torch.enable_grad(), criterion.blamed():
        result = function(gated, g)
    values = criterion.as_saliencies(result, g, f"a floating-point number for each of {len(g)} units")
    criterion.check_saliencies([values[g != 0]])
    return values
