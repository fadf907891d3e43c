"""Every experiment of the papers, made again: what there is, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from secateur.errors import choose
from secateur.reporting.progress import progress_bar
from secateur_experiments.papers import correlation, decisions, degradation, surfaces, variants
from secateur_experiments.papers.degradation import Jobs
from secateur_experiments.papers.finding import Finding
from secateur_experiments.study import ONE, TWO, Study


class Experiment(NamedTuple):
    """The work that a figure takes, and what is made of it."""

    jobs: Callable[[Study], Jobs]
    make: Callable[[Study], Finding]


EXPERIMENTS: Mapping[str, Experiment] = {
    "1": Experiment(surfaces.intuition_jobs, surfaces.intuition),
    "2": Experiment(*degradation.figure_of("2", ONE, "single")),
    "3": Experiment(*degradation.figure_of("3", ONE, "iterative")),
    "4": Experiment(*surfaces.figure_of("4", ONE, "oracle")),
    "5": Experiment(*surfaces.figure_of("5", ONE, "taylor1")),
    "6": Experiment(*surfaces.figure_of("6", ONE, "taylor2")),
    "7": Experiment(*degradation.figure_of("7", TWO, "single")),
    "8": Experiment(*degradation.figure_of("8", TWO, "iterative")),
    "9": Experiment(*surfaces.figure_of("9", TWO, "oracle")),
    "10": Experiment(*surfaces.figure_of("10", TWO, "taylor1")),
    "11": Experiment(*surfaces.figure_of("11", TWO, "taylor2")),
    "12": Experiment(variants.toy_jobs, variants.toy_figure),
    "thresholds": Experiment(variants.threshold_jobs, variants.thresholds),
    "decisions": Experiment(decisions.decision_jobs, decisions.decisions),
    "correlation": Experiment(correlation.correlation_jobs, correlation.neurons),
    "deeper": Experiment(variants.deeper_jobs, variants.deeper),
}


def chosen(names: Sequence[str]) -> list[str]:
    """Return the experiments of these names, in the papers' order; "all" for all.

    Raises:
        ArgumentError: There is none of a name.

    >>> chosen(["thresholds", "2"])
    ['2', 'thresholds']
    """
    for name in names:
        choose("figure", name, {"all": None, **EXPERIMENTS})
    return [name for name in EXPERIMENTS if name in names or "all" in names]


def reproduce(study: Study, names: Sequence[str], progress: bool = True) -> dict[str, Finding]:
    """Make some experiments again.

    Args:
        study: The data and how much is done.
        names: From `chosen`.
        progress: Show a bar on stderr, with the time that is left.
    """
    jobs = [job for name in names for job in EXPERIMENTS[name].jobs(study)]
    with progress_bar("reproducing the papers", progress) as bar:
        for done, job in enumerate(jobs):
            bar(done, len(jobs))
            job()
        bar(len(jobs), len(jobs))
    return {name: EXPERIMENTS[name].make(study) for name in names}
