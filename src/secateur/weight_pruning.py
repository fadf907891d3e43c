"""The loop of Optimal Brain Damage (note 004): score, set the least salient weights to zero, train, repeat."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from secateur.arguments import describe, require_whole
from secateur.artifacts.safetensors import weights_to_bytes
from secateur.curvature.weight_loss import WeightLoss
from secateur.cutting.trained import Retrain
from secateur.cutting.verify import check_masked
from secateur.cutting.weight_masks import freeze, rezero
from secateur.errors import ArgumentError, BudgetError, ModelError
from secateur.objective.losses import check_start
from secateur.objective.question import Question
from secateur.planning.budget import Budget
from secateur.planning.state import Basis, State
from secateur.planning.weight_order import FixedWeightOrder, SurgeonWeightOrder, WeightOrder
from secateur.planning.weight_plan import WeightPlan, WeightStep
from secateur.saliency.criterion import Criterion
from secateur.saliency.weight_score import saliencies_of, weights_of
from secateur.saliency.weights.obs import WeightSurgeon, obs
from secateur.structure.capture import check_finite
from secateur.structure.inputs import named_tensors
from secateur.structure.units import Units

OnRound = Callable[[int, int], None]  # rounds made, rounds there are
POINTS = 20  # that are measured on the way where nothing is trained in between


@dataclass(frozen=True)
class Loop:
    """The number of rounds, and the function that trains the network in between (note 004's loop).

    Attributes:
        rounds: The number of rounds.
        retrain: A function that is called with the network after each round; None for no training.

    Raises:
        ArgumentError: `rounds` is no number, or `retrain` no function.
    """

    rounds: int = 1
    retrain: Retrain | None = None

    def __post_init__(self) -> None:
        require_whole("rounds", self.rounds, 1, "a number above 0")
        if self.retrain is not None and (not callable(self.retrain) or isinstance(self.retrain, type)):
            raise ArgumentError(f"retrain: expected a function of the model, got {describe(self.retrain)}")

    @property
    def in_one_go(self) -> bool:
        """Whether there is one round and no training."""
        return self.rounds == 1 and self.retrain is None


def shrink_weights(
    question: Question, criterion: Criterion, loop: Loop, budget: Budget, on_round: OnRound
) -> tuple[nn.Module, WeightPlan, float]:
    """Return a copy of the model with weights removed, the plan, and how far the copy is from the masked graph.

    This is `secateur.shrink` with ``granularity="weight"``.

    Raises:
        ModelError: The model cannot be copied, or training leaves weights that are not finite.
        VerificationError: The copy would not compute what the graph does with the masks.
    """
    criterion.require(question.data is not None, question.loss is not None)
    model, units = question.model, question.all_units
    try:
        network = copy.deepcopy(model)
    except Exception as error:
        raise ModelError(f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error})") from error
    asked = question.for_model(network, units)
    weights = judge = weights_of(asked)
    fits, where = criterion.saliency is obs, asked.judged_on
    if asked.validation is not None:
        judge = weights_of(asked, "validation")
    elif fits and budget.bounds_quality:  # what is fitted on samples is not judged by them
        (weights, judge), where = weights.held_back(), "held back"
    plan = WeightLoop(weights, judge, units, criterion, budget, loop.retrain).run(loop.rounds, on_round)
    if plan.start.loss is not None:
        plan = replace(plan, basis=Basis(where, judge.samples, fits and where == "data"))
    reference = network if loop.retrain is not None or fits else model
    return network, plan, check_masked(reference, network, units.captured, plan.masks, question.call)


class WeightLoop:
    """A network between two rounds of removing single weights; it is changed in place.

    Args:
        weights: E as a function of the network's weights, on the data to score by.
        judge: E as a function of the same weights, on the data to measure the quality by.
        units: The network's units.
        criterion: Computes the saliencies.
        budget: The bounds that must hold at the end; each parameter counts as a unit set, each weight as a unit.
        retrain: A function that is called with the network after each round; None for no training.

    Raises:
        ArgumentError: The budget bounds what cannot be measured, or protects what is no parameter.
    """

    def __init__(
        self, weights: WeightLoss, judge: WeightLoss, units: Units, criterion: Criterion, budget: Budget,
        retrain: Retrain | None,
    ) -> None:  # fmt: skip
        self.weights, self.judge, self.units = weights, judge, units
        self.criterion, self.budget, self.retrain = criterion, budget, retrain
        self.network, self.params = weights.model, units.params({})
        self.sizes = {name: u.numel() for name, u in weights.present().items()}
        self.limits = budget.removable(self.sizes)
        self.sets = torch.repeat_interleave(torch.tensor(list(self.sizes.values()))).to(weights.flat().device)
        self.kept = torch.ones_like(self.sets, dtype=torch.bool)
        self.steps: list[WeightStep] = []
        quality = judge.measure()
        self.start = self._sizes().measured(quality)
        check_start(self.start.loss)
        budget.check_measured(self.start)
        budget.check_resolution(quality.predictions)

    def run(self, rounds: int, on_round: OnRound) -> WeightPlan:
        """Remove weights in so many rounds, and return which.

        With a size or a minimum in the budget the weights left fall by the same share in each round, to the least
        removal that satisfies it; with a bound of quality alone each round removes as much as that allows.

        Raises:
            BudgetError: The budget cannot be met; the message says how far one can get.
        """
        for n in range(1, rounds + 1):
            if not (self._shrink(n, rounds) if self.budget.least else self._shrink_while_good(n, rounds)):
                break
            on_round(n, rounds)
        freeze(self.network, self._masks())
        self.network.zero_grad()
        if self.budget.least and not self._holds(self.steps[-1]):
            raise self._unmet()
        return WeightPlan(
            self._masks(), self.start, tuple(self.steps), self.units.captured.spec, self.criterion.name, rounds
        )

    def _shrink(self, number: int, rounds: int) -> bool:
        """Make a round of those that lead to a size, and return True: another one may follow."""
        removals, present = self._removals(), int(self.kept.sum())
        needed = self._needed(removals)
        share = ((present - needed) / present) ** (1 / (rounds - number + 1))
        self._remove(removals, needed if number == rounds else round(present * (1 - share)), number, POINTS // rounds)
        return True

    def _shrink_while_good(self, number: int, rounds: int) -> bool:
        """Make a round that goes as far as quality allows; undo it, and return False, if training does harm."""
        kept, steps = self.kept, len(self.steps)
        tensors = {name: tensor.detach().clone() for name, tensor in named_tensors(self.network).items()}
        removals = self._removals()
        n = self._allowed(removals)
        if n:
            self._remove(removals, n, number, POINTS // rounds)
            if self._holds(self.steps[-1]):
                return True
        self.kept, self.steps = kept, self.steps[:steps]
        with torch.no_grad():
            for name, tensor in named_tensors(self.network).items():
                tensor.copy_(tensors[name])
        return False

    def _remove(self, removals: WeightOrder, n: int, number: int, points: int) -> None:
        """Make and measure n removals, at several points if nothing is trained in between."""
        count = 1 if self.retrain else max(1, min(n, points))
        for last, point in pairwise(n * i // count for i in range(count + 1)):
            self._put(removals, point)
            self._train()
            rise = removals.predicted(point) - removals.predicted(last)
            step = WeightStep(
                **vars(self._state()),
                round=number,
                removed=self._removed(),
                predicted=rise if self.criterion.in_loss_units and math.isfinite(rise) else None,
                trained=self.retrain is not None,
            )
            self.steps.append(step)

    def _train(self) -> None:
        """Call `retrain`; removed weights are zero afterwards, modes and gradients asked for are as before.

        Raises:
            ModelError: It leaves weights that are not finite.
        """
        if self.retrain is None:
            return
        modes = [(module, module.training) for module in self.network.modules()]
        requires = [(parameter, parameter.requires_grad) for parameter in self.network.parameters()]
        freeze(self.network, self._masks())
        with torch.enable_grad():
            self.retrain(self.network)
        rezero(self.network, self._masks())
        try:
            check_finite(self.network)
        except ModelError as error:
            raise ModelError(f"after retrain: {error}") from error
        for module, mode in modes:
            module.training = mode
        for parameter, required in requires:
            parameter.requires_grad_(required)

    def _removals(self) -> WeightOrder:
        gone = self._gone()
        limits = torch.tensor([limit - gone[name] for name, limit in self.limits.items()]).to(self.sets.device)
        if self.criterion.saliency is obs:  # which changes the weights that are left
            return SurgeonWeightOrder(WeightSurgeon(self.weights, self.kept), self.sets, limits)
        saliency = torch.cat([values.flatten() for values in saliencies_of(self.criterion, self.weights).values()])
        return FixedWeightOrder(saliency, self.weights.flat(), self.kept, self.sets, limits)

    def _needed(self, removals: WeightOrder) -> int:
        """Return the fewest further removals that satisfy what the budget asks for beside quality.

        Raises:
            BudgetError: No number of removals does.
        """
        sizes = self.budget.without_quality()

        def holds(n: int) -> bool:
            self._put(removals, n)
            return sizes.holds(self.start, self._sizes(), self._gone(), self.sizes)

        points = sorted({len(removals) >> i for i in range(len(removals).bit_length() + 1)})
        for last, point in pairwise([-1, *points]):  # few first: the more were made, the longer the next one takes
            if holds(point):
                return _bisect(holds, last, point)
        raise sizes.unmet(self._removed(), len(self.kept), self._sizes())

    def _allowed(self, removals: WeightOrder) -> int:
        """Return the most further removals that quality allows: from the last good point on the way up to the next."""

        def bad(n: int) -> bool:
            self._put(removals, n)
            return not self._holds(self._state())

        points = sorted({len(removals) * i // POINTS for i in range(POINTS + 1)})
        good = [n for n in points if not bad(n)]
        if not good or good[-1] == points[-1]:
            return good[-1] if good else 0
        return _bisect(bad, good[-1], points[points.index(good[-1]) + 1]) - 1

    def _holds(self, state: State) -> bool:
        return self.budget.holds(self.start, state, self._gone(), self.sizes)

    def _put(self, removals: WeightOrder, n: int) -> None:
        """Make the first n removals, from the weights before all of them."""
        self.kept = removals.kept.clone()
        self.kept[removals.gone(n)] = False
        self.weights.put(removals.after(n))

    def _masks(self) -> dict[str, Tensor]:
        return {name: mask.cpu() for name, mask in self.weights.split(self.kept).items()}

    def _removed(self) -> int:
        return int((~self.kept).sum())

    def _gone(self) -> Counter[str]:
        return Counter({name: int((~mask).sum()) for name, mask in self.weights.split(self.kept).items()})

    def _state(self) -> State:
        return self._sizes().measured(self.judge.measure())

    def _sizes(self) -> State:
        written = len(weights_to_bytes(self.network, self._masks(), self.units.captured.spec))
        return State(None, None, self.params - self._removed(), written, self.units.macs({}))

    def _unmet(self) -> BudgetError:
        """Return the error that says how many weights could go with the quality asked for."""
        quality = replace(self.budget, bytes=None, params=None, remove_fraction=0.0, remove_units=None, scope="global")
        good = [state for state in (self.start, *self.steps) if quality.holds(self.start, state, {}, self.sizes)][-1]
        return self.budget.unmet(getattr(good, "removed", 0), len(self.kept), good)


def _bisect(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the least number above `low` that holds, where `high` does and all numbers above it do."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
