"""A question asked of a network: E(g) of one model and its units, on some data, judged by some samples."""

from __future__ import annotations

import copy
import dataclasses
from functools import cached_property, partial
from typing import Any

from torch import Tensor, nn

from secateur.arguments import require_instance, require_model, require_seed
from secateur.errors import ArgumentError
from secateur.objective.data import first_inputs
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.objective.held_back import hold_back
from secateur.objective.memory import memory_cap, samples_at_once
from secateur.objective.quality.metric import Metric, require_metric
from secateur.objective.unlabelled import MoreInputs, data_for
from secateur.own_code.find_units import find_units
from secateur.phases import phase
from secateur.structure.check_units import check_units
from secateur.structure.inputs import Call, as_call, like_model, sample_weight
from secateur.structure.units import Units, require_units


class Question:
    """One model, its units, the data that saliency and weights come from, and the samples that judge the result.

    What can be checked without capturing the model is checked here; the rest is made when it is first asked for, once.

    Args:
        model: Evaluated as in eval mode, left as it was.
        data: As for `secateur.score`; may be `masked`.
        loss: As for `secateur.score`.
        units: From `find_units`; None to find them with the example inputs.
        example_inputs: As for `find_units`; None for the first batch's.
        validation: Data on which loss and accuracy are measured; None for `data`.
        seed: The seed of criteria that draw random numbers.
        max_memory: As for `secateur.score`.

    Attributes:
        more: Inputs beside the data, that weights are fitted to at the end.
        judged_on: On which samples loss and accuracy are measured: "data", "validation", or "held back" from `data`.
        metric: What is measured there, too; None for nothing.

    Raises:
        ArgumentError: The model or the seed is none, there is no loss of that name, or `max_memory` is no size.
    """

    def __init__(
        self, model: nn.Module, data: Any, loss: Any, units: Units | None = None, *, example_inputs: Any = None,
        validation: Any = None, seed: int = 0, max_memory: int | str | None = None,
    ) -> None:  # fmt: skip
        model = require_model(model)
        require_seed(seed)
        self.model, self.loss = model, loss
        self._samples = data, validation
        self.metric: Metric | None = None
        self._read_samples()
        self.seed, self.max_memory = seed, max_memory
        self.more = MoreInputs()
        self._units, self._example = units, example_inputs
        self.judged_on = "data" if validation is None else "validation"
        memory_cap(max_memory, sample_weight(model).device)

    def _read_samples(self) -> None:
        read = partial(data_for, self.model, loss=self.loss, targets=self.metric is not None)
        self.data, self.validation = (
            read(data, name=name) for data, name in zip(self._samples, ("data", "validation"), strict=True)
        )

    def measuring(self, metric: Any) -> Question:
        """Return the question with a metric of the user's own, which is measured where the loss is; None for none.

        Raises:
            ArgumentError: It is no function, or there is no data or no loss.
        """
        question = copy.copy(self)
        question.metric = require_metric(metric)
        if metric is not None and (self.loss is None or self.data is None):
            raise ArgumentError("metric: is measured where the loss is, and needs data and a loss")
        question._read_samples()
        return question

    @cached_property
    def call(self) -> Call:
        """The example inputs, as the model takes them."""
        example = first_inputs(self.data) if self._example is None else self._example
        return like_model(self.model, as_call(example))

    @cached_property
    def all_units(self) -> Units:
        """The units of the model, of which there may be none.

        Raises:
            ModelError: The model cannot be captured.
        """
        with phase("capturing the model"):
            return find_or_check(self.model, self.data, self._units, self.max_memory, self._example)

    @cached_property
    def units(self) -> Units:
        """The units that may be removed.

        Raises:
            ModelError: The model cannot be captured, or has no removable units.
        """
        return require_units(self.all_units)

    @cached_property
    def ones(self) -> Tensor:
        """The gates of the network as trained [K]."""
        return ones(self.model, self.units)

    @cached_property
    def gated(self) -> GatedLoss:
        """E(g) on the data that saliency and weights come from."""
        return GatedLoss(self.model, self.units, self.data, self.loss, self.seed, self.max_memory, metric=self.metric)

    @cached_property
    def calibration(self) -> GatedLoss:
        """E(g) on the data and the inputs beside them, that weights are fitted to at the end."""
        more = self.more.unlabelled
        return self.gated if more is None else self.gated.with_inputs(more, "unlabelled")

    @cached_property
    def judge(self) -> GatedLoss:
        """E(g) on the samples that judge the result."""
        return self.gated if self.validation is None else self.gated.on_data(self.validation, "validation")

    @property
    def samples(self) -> int:
        """The number of samples that judge the result; 0 without data."""
        return self.judge.samples if self.judge.has_data else 0

    def for_model(self, model: nn.Module, units: Units | None) -> Question:
        """Return the same question, asked of another model."""
        question = Question(
            model, self.data, self.loss, units, example_inputs=self._example, validation=self.validation,
            seed=self.seed, max_memory=self.max_memory,
        )  # fmt: skip
        return question.with_more(self.more).measuring(self.metric)

    def with_more(self, more: MoreInputs) -> Question:
        """Return the question with inputs beside the data.

        Raises:
            DataError: They are none that can be read again.
        """
        question = copy.copy(self)
        unlabelled = data_for(self.model, more.unlabelled, "output", "unlabelled")
        question.more = dataclasses.replace(more, unlabelled=unlabelled)
        return question

    @property
    def whole_batches(self) -> bool:
        """Whether batches cannot be divided, since the model's code fixes their size."""
        return self.units.captured.spec.fixed is not None

    def holding_back(self) -> Question:
        """Return the question with every fifth sample held back from the data, to judge what the others are fitted to.

        Raises:
            DataError: There are too few samples.
        """
        fitted, held = hold_back(self.gated.batches, self.whole_batches)
        question = copy.copy(self)
        question.__dict__.pop("calibration", None)  # of all data
        question.__dict__ |= {
            "gated": self.gated.on_batches(fitted),
            "judge": self.gated.on_batches(held),
            "judged_on": "held back",
        }
        return question


def find_or_check(
    model: nn.Module, data: Any, units: Units | None, max_memory: int | str | None = None, example_inputs: Any = None
) -> Units:
    """Return the units handed in, held against the model; where there are none, those that it has.

    Args:
        model: Left as it was.
        data: As `batches` takes it; its first batch is compared on, or of that so many samples as are run at a time.
            None for random inputs of the form that the units were found with.
        units: The units that `find_units` made, or None.
        max_memory: As for `secateur.score`.
        example_inputs: Inputs to find units with or to compare on; None for the first batch's.

    Raises:
        ArgumentError: The model, the units or the memory are no such thing.
        DataError: There is no sample.
        ModelError: The model cannot be captured, or the units were found on another forward.
    """
    model = require_model(model)
    if units is not None:
        require_instance("units", units, Units, "what secateur.find_units returns")
    memory = memory_cap(max_memory, sample_weight(model).device)
    if example_inputs is None and (data is not None or units is None):
        example_inputs = first_inputs(data)
    if units is None:
        return find_units(model, example_inputs)
    call = units.captured.spec.sample(model) if example_inputs is None else as_call(example_inputs)
    n = samples_at_once(units.captured, memory)
    check_units(model, units, units.captured.spec.take(call, slice(n)))
    return units
