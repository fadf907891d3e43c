"""Criteria and where they are found: one registry for those of units and those of single weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from secateur.errors import ArgumentError, DataError, SecateurError, choose
from secateur.plugins import load_plugins, name_of_function, place_of_function
from secateur.structure.units import Units

# Of units: saliencies [K] at the gates g, from a `GatedLoss` and g [K]; those of units removed are not looked at.
# Of weights: saliencies by parameter, each of its parameter's shape, from a `WeightLoss`.
Saliency = Callable[..., Any]
Granularity = Literal["unit", "weight"]
Needs = Literal["nothing", "data", "loss"]

GROUP = "secateur.criteria"  # the entry points of other packages' criteria
GRANULARITIES = {"unit": "criterion", "weight": "weight criterion"}  # and what messages call theirs
NEEDS: dict[str, tuple[str, ...]] = {"nothing": (), "data": ("data",), "loss": ("data", "a loss")}


@dataclass(frozen=True)
class Criterion:
    """A way to compute or estimate saliency.

    Attributes:
        name: The name that users give.
        saliency: The function.
        granularity: Whether it judges units or single weights.
        needs: Nothing but weights, data without targets, or data and a loss.
        in_loss_units: Whether it predicts the rise of the loss.
        measures: Whether it measures that, so that it is right also for units of sliced sets, whose norms do not
            see a gate's derivative.
        error: The standard errors [K] of what it draws at random, where it does.
    """

    name: str
    saliency: Saliency
    granularity: Granularity = "unit"
    needs: Needs = "loss"
    in_loss_units: bool = True
    measures: bool = False
    error: Saliency | None = None

    @property
    def is_own(self) -> bool:
        """Whether it is one of this package's."""
        return str(getattr(self.saliency, "__module__", "")).startswith(f"{__package__}.")

    @property
    def why_nan(self) -> str:
        """The meaning of a NaN among its saliencies."""
        of_loss = "the loss or its derivative is NaN on this data"
        return of_loss if self.is_own else f"what it cannot judge is worth inf; or {of_loss}"

    def approximate_for(self, units: Units) -> list[str]:
        """Return the unit sets for which its estimates leave something out."""
        estimates = self.in_loss_units and not self.measures
        return [unit_set.name for unit_set in units if estimates and unit_set.removal == "sliced"]

    def require(self, data: bool, loss: bool) -> None:
        """Refuse to go on without what it needs.

        Raises:
            DataError: It needs data or a loss, and there is none.
        """
        available = {"data": data, "a loss": loss}
        missing = [what for what in NEEDS[self.needs] if not available[what]]
        if missing:
            free = ", ".join(c.name for c in criteria(self.granularity).values() if c.needs == "nothing")
            raise DataError(f"criterion {self.name!r} needs {' and '.join(missing)}; without them: {free}")

    @contextlib.contextmanager
    def blamed(self) -> Iterator[None]:
        """Show what goes wrong in a criterion of the user's own, or of another package, as its fault.

        Raises:
            ArgumentError: Something does that this package does not refuse.
        """
        try:
            yield
        except Exception as error:
            if self.is_own or isinstance(error, SecateurError):
                raise
            where = place_of_function(self.saliency)
            raise ArgumentError(
                f"criterion {self.name!r} failed ({type(error).__name__}: {error}); it is {where}"
            ) from error

    def refuse(self, result: object, expected: str) -> ArgumentError:
        """Return the error that says what it gave and what was expected."""
        got = f"{result.dtype} {[*result.shape]}" if isinstance(result, Tensor) else type(result).__name__
        where = place_of_function(self.saliency)
        return ArgumentError(f"criterion {self.name!r} gave {got}; expected {expected}; it is {where}")

    def as_saliencies(self, result: object, judged: Tensor, expected: str) -> Tensor:
        """Return what it gave for these gates or weights as a float64 tensor on their device.

        Raises:
            ArgumentError: It gave no floating-point tensor of their shape.
        """
        if not isinstance(result, Tensor) or not result.is_floating_point() or result.shape != judged.shape:
            raise self.refuse(result, expected)
        return result.detach().to(judged.device, torch.float64)

    def check_saliencies(self, tensors: Sequence[Tensor]) -> None:
        """Refuse saliencies that no ranking can be made of.

        Raises:
            ArgumentError: One of them is −∞.
            DataError: One of them is NaN: the loss or its derivative is, on this data.
        """
        if any(bool(values.isnan().any()) for values in tensors):
            raise DataError(f"criterion {self.name!r} gave NaN: {self.why_nan}")
        if any(bool(values.isneginf().any()) for values in tensors):
            raise ArgumentError(
                f"criterion {self.name!r} gave -inf; a {self.granularity} that it cannot judge is worth inf"
            )


_CRITERIA: dict[tuple[str, str], Criterion] = {}  # by granularity and name

Function = TypeVar("Function", bound=Saliency)


def criterion(
    name: str,
    granularity: Granularity = "unit",
    needs: Needs = "loss",
    in_loss_units: bool = True,
    measures: bool = False,
    error: Saliency | None = None,
) -> Callable[[Function], Function]:
    """Register the decorated function as a criterion, to be found by its name wherever one is given.

    Of units it is called with E(g), a `secateur.objective.gated_loss.GatedLoss`, and the gates g [K], 0 for units that
    are gone, and returns their saliencies, a floating-point tensor [K] in the order of the units; infinite for a unit
    that it cannot judge. Of weights it is called with a `secateur.curvature.weight_loss.WeightLoss` and returns a dict
    of tensors, each of its parameter's shape. The package of a criterion names it among its entry points, in the group
    ``secateur.criteria``, to be found on the command line, too. See docs/extending.md.

    Args:
        name: The name that users give; no other criterion of this granularity has it.
        granularity: "unit" or "weight": what it judges.
        needs: "nothing" but the weights, "data" without targets, or data and a "loss".
        in_loss_units: Whether it predicts the rise of the loss; else plans hold no prediction.
        measures: Whether it measures that rise on the network without the unit, so that it is right also where a norm
            is taken over units.
        error: The standard errors [K] of what it draws at random, a function of the same arguments.

    Raises:
        ArgumentError: The name is taken, or no name; or another argument is not one of those possible.

    >>> criterion("oracle")(lambda gated, g: g)
    Traceback (most recent call last):
    secateur.errors.ArgumentError: criterion 'oracle' is taken by secateur.saliency.units.oracle.oracle
    """
    if not isinstance(name, str) or not name:
        raise ArgumentError(f"criterion: expected a name, as in @secateur.criterion('mine'), got {name!r}")
    what = choose("granularity", granularity, GRANULARITIES)
    choose("needs", needs, NEEDS)

    def register(function: Function) -> Function:
        _load_own()  # so that none of their names can be taken first
        taken = _CRITERIA.get((granularity, name))
        if taken is not None:
            raise ArgumentError(
                f"{what} {name!r} is taken by {place_of_function(taken.saliency)}; "
                f"{place_of_function(function)} needs another name"
            )
        _CRITERIA[granularity, name] = Criterion(
            name, function, granularity, needs, in_loss_units, measures, error
        )  # fmt: skip
        return function

    return register


def criteria(granularity: Granularity = "unit") -> dict[str, Criterion]:
    """Return all criteria by name, those of other packages too."""
    _load_plugins()
    return {name: registered for (kind, name), registered in sorted(_CRITERIA.items()) if kind == granularity}


def _load_own() -> None:
    for room in ("units", "weights"):
        import_module(f"{__package__}.{room}")


def _load_plugins() -> list[str]:
    _load_own()
    return load_plugins(GROUP, lambda loaded: _registered(loaded) is not None)


def _registered(function: object) -> Criterion | None:
    return next((registered for registered in _CRITERIA.values() if registered.saliency == function), None)


def as_criterion(chosen: str | Saliency | Criterion, granularity: Granularity = "unit") -> Criterion:
    """Return the criterion of this name, or the one that a function is: its own where it was decorated.

    Raises:
        ArgumentError: There is none of this name, it judges something else, or a function that was not decorated has
            the name of another criterion.
    """
    what, table = GRANULARITIES[granularity], criteria(granularity)
    if not isinstance(chosen, Criterion) and not callable(chosen):
        failures = _load_plugins()
        return choose(what, chosen, table, "".join(f"; {failure}" for failure in failures))
    judge = chosen if isinstance(chosen, Criterion) else _registered(chosen) or _anonymous(chosen, granularity)
    if judge.granularity != granularity:
        raise ArgumentError(f"criterion {judge.name!r} judges {judge.granularity}s, not {granularity}s")
    return judge


def _anonymous(function: Saliency, granularity: Granularity) -> Criterion:
    """Return a criterion made of a function that was not decorated.

    Raises:
        ArgumentError: Its name is another criterion's, so that a plan could not tell which it was made with.
    """
    name = name_of_function(function)
    taken = _CRITERIA.get((granularity, name))
    if taken is not None:
        raise ArgumentError(
            f"criterion: the function {place_of_function(function)} has the name of "
            f"{place_of_function(taken.saliency)}; give it another one, or {name!r} for that"
        )
    return Criterion(name, function, granularity)
