"""How good are the decisions? Every criterion beside the oracle, as units go one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

from torch import Tensor

from secateur.compensation.compensator import Compensator
from secateur.compensation.unit_surgeon import UnitSurgeon
from secateur.cutting.slices import gates
from secateur.reporting.page import Cell, Table
from secateur.saliency.score import find_criterion, saliency_of
from secateur_experiments.extra import from_extra
from secateur_experiments.papers import figures
from secateur_experiments.papers.degradation import Jobs
from secateur_experiments.papers.finding import Drawing, Finding
from secateur_experiments.study import ONE, TWO, Study, Way
from secateur_experiments.subjects import Subject

stats = from_extra("scipy.stats")

CRITERIA = ("taylor1", "taylor2", "hessian", "ggn", "magnitude", "activation")
OBS = "obs"  # beside what removal costs after compensation
PREDICT = ("taylor1", "taylor2", "hessian", OBS)  # drawn
IN_LOSS = (*PREDICT, "ggn")  # in units of the loss
TINY = 1e-30
POINTS = 12  # of an order at which decisions are judged
SAMPLES = 2_000  # of the calibration part


class Judged(NamedTuple):
    """One criterion at one point: what it says of each unit left, and what removing it does [units left]."""

    share: float
    predicted: list[float]
    measured: list[float]

    @property
    def correlation(self) -> float:
        """Spearman's correlation of the ranks.

        >>> Judged(0.0, [1.0, 2.0, 3.0], [10.0, 30.0, 20.0]).correlation
        0.5
        """
        if min(map(len, (set(self.predicted), set(self.measured)))) < 2:
            return 0.0  # of what is always the same
        return round(float(stats.spearmanr(self.predicted, self.measured).statistic), 12)

    @property
    def regret(self) -> float:
        """How much more its choice costs than the best.

        >>> Judged(0.0, [1.0, 2.0, 3.0], [10.0, 30.0, 5.0]).regret
        5.0
        """
        chosen = min(range(len(self.predicted)), key=self.predicted.__getitem__)
        return self.measured[chosen] - min(self.measured)


Lines = dict[str, tuple[list[float], list[float]]]  # label → shares, values
Judgement = dict[str, list[Judged]]


def judged(study: Study, subject: Subject, seed: int) -> Judgement:
    """Return criterion → what it says along the brute-force order; obs along its own."""
    return study.once(("judged", subject.name, seed), lambda: _judged(study, subject, seed))


def _judged(study: Study, subject: Subject, seed: int) -> Judgement:
    judgement: Judgement = {name: [] for name in (*CRITERIA, OBS)}
    gated, model, units = study.gated(subject, seed, SAMPLES), study.network(subject, seed), study.units(subject, seed)
    for way in (Way("oracle"), Way("obs", compensate=True)):
        plan = study.plan(subject, seed, way)
        for i in range(POINTS):
            n = i * units.total // POINTS
            g = gates(model, units, plan.prefix(n).kept)
            share, left = n / units.total, g != 0
            if way.compensate:
                judgement[OBS].append(Judged(share, *_after_compensation(gated, g, left)))
                continue
            measured = saliency_of(find_criterion("oracle", gated), gated, g)[left].tolist()
            for name in CRITERIA:
                predicted = saliency_of(find_criterion(name, gated), gated, g)[left].tolist()
                judgement[name].append(Judged(share, predicted, measured))
    return judgement


def _after_compensation(gated: Any, g: Tensor, left: Tensor) -> tuple[list[float], list[float]]:
    surgeon = UnitSurgeon(Compensator(gated))
    surgeon.begin(g)
    predicted, measured = surgeon.saliency(g), surgeon.exact(g, left.nonzero()[:, 0])
    return predicted[left].tolist(), measured[left].tolist()


def decision_jobs(study: Study) -> Jobs:
    """Return the work behind `decisions`."""
    return [
        partial(judged, study, study.logistic(hidden), seed) for hidden in (ONE, TWO) for seed in study.seeds
    ]  # fmt: skip


def decisions(study: Study) -> Finding:
    """Make tables of rank correlation and regret, and set the predicted beside the measured rise."""
    drawings, tables, rows = [], [], dict[str, Any]()
    for hidden in (ONE, TWO):
        subject = study.logistic(hidden)
        several = [judged(study, subject, seed) for seed in study.seeds]
        rows[subject.name] = {name: summary(name, [network[name] for network in several]) for name in several[0]}
        rows[subject.name]["taylor2"]["to exact"] = median(
            _apart(network["taylor2"][0], network["hessian"][0]) for network in several
        )
        tables.append(_table(subject.name, rows[subject.name]))
        drawings += [_over_shares(subject.name, several), _predictions(subject.name, several)]
    text = (
        "At each point of the brute-force order every criterion scores the units that are left; the oracle says what "
        "the removal of each would cost. obs is judged along its own order, by the rise after compensation.",
        "Regret: how much more the removal of the unit that a criterion would choose costs than that of the best. "
        f"Both on {study.some(SAMPLES):,} calibration samples.",
    )
    return Finding("How good are the decisions?", text, tuple(drawings), tuple(tables), rows)


def summary(name: str, several: Sequence[Sequence[Judged]]) -> dict[str, Any]:
    """Return medians over the networks, at the start, in the middle and over all points, with errors of losses."""
    middle = POINTS // 2
    return {
        "correlation at start": median(points[0].correlation for points in several),
        "correlation at half": median(points[middle].correlation for points in several),
        "correlation": median(point.correlation for points in several for point in points),
        "regret": median(sum(point.regret for point in points) for points in several),
        **({"error": median(relative_error(points[0]) for points in several)} if name in IN_LOSS else {}),
    }  # fmt: skip


def _apart(estimate: Judged, exact: Judged) -> float:
    return relative_error(Judged(0.0, estimate.predicted, exact.predicted))


def relative_error(judged: Judged) -> float:
    """Return the mean of |predicted − measured|, to the mean of |measured|.

    >>> relative_error(Judged(0.0, [1.0, 2.0], [2.0, 2.0]))
    0.25
    """
    pairs = zip(judged.predicted, judged.measured, strict=True)
    return sum(abs(p - m) for p, m in pairs) / max(sum(abs(m) for m in judged.measured), TINY)


def _table(name: str, rows: dict[str, dict[str, float]]) -> Table:
    columns = ["criterion", "rank correlation, whole network", "half gone", "all points", "regret, summed", "error, %"]
    cells: list[list[Cell]] = [
        [
            criterion, *(round(row[key], 3) for key in ("correlation at start", "correlation at half", "correlation")),
            row["regret"], round(100 * row["error"]) if "error" in row else None,
        ]
        for criterion, row in rows.items()
    ]  # fmt: skip
    note = "Error: the mean distance of the predicted from the measured rise, to the mean rise, in the whole network."
    return Table(columns, cells, name, note)


def _over_shares(name: str, several: Sequence[Judgement]) -> Drawing:
    panels: dict[str, Lines] = {"rank correlation with the truth": {}, "regret": {}}
    for criterion in several[0]:
        shares = [point.share for point in several[0][criterion]]
        for what, lines in zip(("correlation", "regret"), panels.values(), strict=True):
            at = [[getattr(network[criterion][i], what) for network in several] for i in range(POINTS)]
            lines[criterion] = shares, [median(values) for values in at]
    return Drawing(
        figures.lines_over_shares(f"{name}: decisions", panels),
        f"{name}: rank correlation with the truth and regret of each criterion against the share of units removed.",
        f"{name}. Left: 1 is the oracle's own ranking. Right: 0 is its choice. Medians of {len(several)} networks.",
    )


def _predictions(name: str, several: Sequence[Judgement]) -> Drawing:
    panels = {}
    for criterion in PREDICT:
        points = [point for network in several for point in network[criterion][: POINTS // 2 + 1 : POINTS // 2]]
        panels[criterion] = (
            [value for point in points for value in point.predicted],
            [value for point in points for value in point.measured],
        )
    return Drawing(
        figures.calibration(f"{name}: predicted and measured rises", panels, "squared error per sample"),
        f"{name}: the measured against the predicted rise of the error for each unit, one plot for each criterion.",
        f"{name}. All units of the whole network and of that with half of them gone; on the dashed line they agree. "
        "Log scales but near zero. Of obs: after compensation.",
    )
