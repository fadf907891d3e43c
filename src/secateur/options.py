"""Options that belong together, as one object each: how an order is made, and how the remaining weights are fitted.

Both are validated once, when they are made, before any model is captured; both are kept in the plan, in its JSON and
in the written file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from secateur.arguments import require_flag, require_whole
from secateur.errors import ArgumentError, choose

RANKINGS = ("single", "iterative", "quadratic", "layerwise")
BY_STEPS = ("single", "iterative")  # rankings that estimate units apart
CURVATURES = ("ggn", "fisher", "hessian")  # what a quadratic ranking can be made of
THRESHOLDS = ("mean", "median")
WEIGHTINGS = ("ggn", "none")
LARGEST_RIDGE = 1e6


@dataclass(frozen=True)
class Ranking:
    """The settings by which saliencies make an order of removals.

    Attributes:
        criterion: The name of a criterion, or a criterion of the user's own; None for the ranking's own.
        ranking: "single", "iterative", "quadratic" or "layerwise"; None for iterative where its counted work is small,
            else layerwise.
        threshold: "mean" or "median": estimates above it are replaced by it.
        shortlist: The number of units evaluated exactly at each step; None for all, with compensation for none.
        refresh: The number of removals after which the parabola, or with compensation all weights, are made anew.
        swaps: Whether a quadratic ranking exchanges units at its end.

    Raises:
        ArgumentError: An option is not possible, or is for another ranking.

    >>> Ranking(ranking="quadratic", refresh=5).resolved(fitted=False).criterion
    'hessian'
    """

    criterion: Any = None
    ranking: str | None = None
    threshold: str | None = None
    shortlist: int | None = None
    refresh: int | None = None
    swaps: bool = False

    def __post_init__(self) -> None:
        if self.ranking is not None:
            _choose("ranking", self.ranking, RANKINGS)
        if self.threshold is not None:
            _choose("threshold", self.threshold, THRESHOLDS)
        for name, what in (("shortlist", "units"), ("refresh", "removals")):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name), 1, f"a number of {what} above 0")
        require_flag("swaps", self.swaps)
        if self.swaps and self.ranking != "quadratic":
            raise ArgumentError(f"swaps: is for ranking='quadratic', not {self._or_default!r}")
        if self.threshold is not None and self.ranking not in (*BY_STEPS, None):
            raise ArgumentError("threshold: is for ranking='single' or 'iterative', where units are estimated apart")
        if self.refresh is not None and self.ranking == "layerwise":
            raise ArgumentError("refresh: is for the other rankings; 'layerwise' fits all weights once, at its end")

    @property
    def _or_default(self) -> str:
        """The ranking, or the one that is taken where these settings ask for none."""
        return self.ranking or "iterative"

    def resolved(self, fitted: bool, sized: bool = True) -> Ranking:
        """Return the ranking with the criterion filled in, if it fits the compensation and the budget.

        A parabola that has to last is made of the Gauss-Newton matrix, which has no direction downwards; one that is
        made anew after a few removals may be exact.

        Args:
            fitted: Whether weights make up for each removal.
            sized: Whether the budget bounds a size or asks for a minimum of removals.

        Raises:
            ArgumentError: An option has no meaning there.
        """
        if self.ranking == "quadratic":
            default = "ggn" if self.refresh is None else "hessian"
        else:
            default = "obs" if fitted else "taylor1" if self.ranking == "layerwise" else "oracle"
        complete = self if self.criterion is not None else replace(self, criterion=default)
        complete._check_quadratic(sized)
        complete._check_refresh(fitted)
        complete._check_shortlist(fitted)
        return complete

    def _check_quadratic(self, sized: bool) -> None:
        if self.ranking == "quadratic" and self.criterion not in CURVATURES:
            known = ", ".join(CURVATURES)
            raise ArgumentError(
                f"ranking='quadratic' takes a criterion with interactions: {known}; got {self.criterion!r}"
            )
        if self.swaps and not sized:
            raise ArgumentError("swaps: improve what a budget of size removes; give bytes, params, remove_fraction ...")

    def _check_refresh(self, fitted: bool) -> None:
        if self.refresh is not None and self.ranking != "quadratic" and not fitted:
            raise ArgumentError(
                f"refresh: is for ranking='quadratic' or compensate=True, not {self._or_default!r} without it"
            )

    def _check_shortlist(self, fitted: bool) -> None:
        exact = self.criterion == "oracle" or (self.criterion == "obs" and fitted)
        if self.shortlist is not None and not (
            exact and self.ranking in ("iterative", None) and self.threshold is None
        ):
            raise ArgumentError(
                "shortlist: is for ranking='iterative' without threshold, with criterion='oracle', or with 'obs' and "
                "compensate=True"
            )

    def to_json(self) -> dict[str, Any]:
        """Return what differs from an iterative ranking's defaults as plain data; `from_json` reads it."""
        changed = _changed(self)
        return {name: value for name, value in changed.items() if (name, value) != ("ranking", "iterative")}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ranking:
        """Read what `to_json` gives."""
        return cls(**{"ranking": "iterative", **data})


@dataclass(frozen=True)
class Compensation:
    """The settings by which the weights that stay are fitted to make up for removed units (design section 7).

    W ← (ÃᵀÃ/N + λI)⁻¹ (ÃᵀZ/N + λW), layer after layer: Ã is what the shrunk network delivers to a layer, Z what the
    layer gave in the original. No gradient step.

    Attributes:
        ridge: λ relative to the mean square of a layer's inputs, above 0 and at most 1e6; None to choose it on every
            fifth sample.
        weighting: "ggn", by which samples count by the loss's curvature in the last layers, and units by it in all
            layers; or "none".
        recalibrate: Whether BatchNorm's statistics are estimated again on the data.
        add_bias: Whether layers that sum units up and have no bias get one.
        fit: Whether weights are fitted at all; False, with `recalibrate`, for BatchNorm's statistics alone.
        refine: The number of damped Gauss-Newton steps on all weights that stay, after the fit, towards the original's
            own outputs (`secateur.refinement`); "auto" until samples held out gain no more. A training step, without
            labels or a learning rate.

    Raises:
        ArgumentError: A setting is not possible, or has no meaning without a fit.

    >>> Compensation(ridge=1e-3).to_json()
    {'ridge': 0.001}
    """

    ridge: float | None = None
    weighting: str = "ggn"
    recalibrate: bool = False
    add_bias: bool = False
    fit: bool = True
    refine: int | str = 0

    def __post_init__(self) -> None:
        if self.refine != "auto":
            require_whole("refine", self.refine, 0, "a number of steps, or 'auto'")
        _choose("weighting", self.weighting, WEIGHTINGS)
        number = isinstance(self.ridge, int | float) and not isinstance(self.ridge, bool)
        if self.ridge is not None and not (number and 0 < self.ridge < math.inf):
            raise ArgumentError(f"ridge: expected a number above 0, or None to choose it, got {self.ridge!r}")
        if self.ridge is not None and self.ridge > LARGEST_RIDGE:
            raise ArgumentError(f"ridge: expected at most {LARGEST_RIDGE:g}, got {self.ridge!r}")
        for name in ("recalibrate", "add_bias", "fit"):
            require_flag(name, getattr(self, name))
        if not self.fit:
            self._check_without_fit()

    def _check_without_fit(self) -> None:
        for name in ("ridge", "weighting", "add_bias", "refine"):
            if getattr(self, name) != getattr(Compensation, name):
                raise ArgumentError(f"{name}: is for compensate=True")
        if not self.recalibrate:
            raise ArgumentError("fit=False: is for recalibrate=True; without both nothing changes")

    def to_json(self) -> dict[str, Any]:
        """Return what differs from the defaults as plain data; `from_json` reads it."""
        return _changed(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Compensation:
        """Read what `to_json` gives."""
        return cls(**data)


def compensation_of(compensate: Any, **options: Any) -> Compensation | None:
    """Return the settings that ``compensate=`` and loose options ask for; None where no tensor is to change.

    Args:
        compensate: A bool or a `Compensation`.
        **options: Fields of a `Compensation`, as loose keywords.

    Raises:
        ArgumentError: `compensate` is neither, or an option is given twice, or has no meaning without compensation.
    """
    changed = {name: value for name, value in options.items() if value != getattr(Compensation, name)}
    if isinstance(compensate, Compensation):
        if changed:
            raise ArgumentError(f"{', '.join(changed)}: already in compensate={compensate!r}; give it in one place")
        return compensate
    if not isinstance(compensate, bool):
        raise ArgumentError(
            f"compensate: expected True, False or secateur.Compensation(...), got {type(compensate).__name__}"
        )
    return Compensation(fit=compensate, **changed) if compensate or changed else None


def _choose(what: str, name: Any, names: tuple[str, ...]) -> None:
    choose(what, name, dict.fromkeys(names))


def _changed(options: Any) -> dict[str, Any]:
    return {f.name: getattr(options, f.name) for f in fields(options) if getattr(options, f.name) != f.default}
