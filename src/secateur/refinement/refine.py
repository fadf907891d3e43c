"""Refinement: damped Gauss-Newton steps on all weights that stay, towards the original's own outputs.

    δ = −(G + λI)⁻¹ ∇D,  D the mean distance of the outputs to the original's, G its Gauss-Newton matrix

(Martens 2010): no labels and no learning rate. It is a training step, though one of a handful. Samples that are held
out say whether a step is taken, how λ goes on, and when to stop.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.errors import DataError
from secateur.objective.data import Batch
from secateur.objective.gated_loss import GatedLoss
from secateur.objective.held_back import EVERY, hold_back
from secateur.objective.unlabelled import Augment
from secateur.phases import phase
from secateur.refinement.augment import augmented
from secateur.refinement.conjugate_gradients import solve
from secateur.refinement.distance import Distance
from secateur.refinement.kronecker import Kronecker
from secateur.refinement.small_network import SmallNetwork, Tensors
from secateur.refinement.teacher import Teacher

MOST_STEPS = 20  # of "auto"
POOR, GOOD = 0.25, 0.75  # shares of the gain predicted at which λ grows and shrinks
FACTOR = 4.0  # by which it does
LEAST_GAIN = 0.002  # of the distance: less counts as none
MOST_REFUSED = 2  # steps without a gain, one after the other


def refined(
    gated: GatedLoss, g: Tensor, weights: Mapping[str, Tensor], steps: int | str, augment: Augment | None = None
) -> dict[str, Tensor]:  # fmt: skip
    """Return the weights, in the original's sizes, after some steps.

    Cost of a step: about 60 forward passes of the data through what is left, and the eigenvectors of a matrix for the
    inputs and one for the outputs of each layer.

    Args:
        gated: The original and its data, of which every fifth sample is held out.
        g: The gates [K], 0 for what is gone.
        weights: Parameters and buffers to start from, in place of the original's, by name.
        steps: How many steps are tried; "auto" for as many as gain.
        augment: Makes another sample of each, on the same side: to be fitted to or held out; None for none.

    Raises:
        DataError: There are too few samples to hold some out, or `augment` returns what is no sample.
    """
    if steps == 0 or bool((g != 0).all()):
        return dict(weights)
    search = Search(gated, g, weights, augment)
    most, refused = MOST_STEPS if steps == "auto" else int(steps), 0
    with phase("refining", most) as refining:
        for _ in refining.through(range(most)):
            refused = 0 if search.step() else refused + 1
            if refused == MOST_REFUSED:
                break
    return {**weights, **search.network.in_original(search.parameters)}


class Search:
    """The search for better parameters.

    Attributes:
        network: What is left.
        parameters: The best so far.
        distance: Theirs on the samples held out.
        damping: λ.
    """

    def __init__(
        self, gated: GatedLoss, g: Tensor, weights: Mapping[str, Tensor], augment: Augment | None = None
    ) -> None:  # fmt: skip
        teacher, (fitted, held) = Teacher(gated), _parts(gated)
        if augment is not None:
            made = augmented(gated, [*fitted, *held], augment)
            fitted, held = [*fitted, *made[: len(fitted)]], [*held, *made[len(fitted) :]]
        self.network = SmallNetwork(gated, g, weights)
        self._fitted, self._held = (Distance(self.network, teacher, batches) for batches in (fitted, held))
        self.parameters: Tensors = self.network.parameters
        self.distance = self._held.value(self.parameters)
        self._learn()
        self.damping = self._curvature.mean(self.parameters)

    def _learn(self) -> None:
        """Learn slope and curvature at the parameters."""
        self._slope = self._fitted.slope(self.parameters)
        self._curvature = Kronecker.of(self._fitted, self.parameters)

    def step(self) -> bool:
        """Take a step if it gains; return whether it does."""
        change, predicted = solve(
            lambda vector: self._fitted.product(self.parameters, vector),
            lambda vector: self._curvature.solve(vector, self.damping),
            self._slope,
            self.damping,
        )
        parameters = {name: tensor + change[name] for name, tensor in self.parameters.items()}
        distance = self._held.value(parameters)
        gain = self.distance - distance
        if gain > GOOD * predicted:
            self.damping /= FACTOR
        elif not gain > POOR * predicted:
            self.damping *= FACTOR
        enough = gain > LEAST_GAIN * self.distance
        if gain > 0:
            self.parameters, self.distance = parameters, distance
            self._learn()
        return enough


def _parts(gated: GatedLoss) -> tuple[list[Batch], list[Batch]]:
    """Return the batches to fit to and those held out.

    Raises:
        DataError: There are none to hold out.
    """
    whole = gated.units.captured.spec.fixed is not None
    if (len(gated.batches) if whole else gated.samples) < EVERY:
        raise DataError(
            f"refine: every fifth sample is held out to stop by, and there are fewer than {EVERY} "
            f"{'batches' if whole else 'samples'}; give more data"
        )
    return hold_back(gated.batches, whole)
