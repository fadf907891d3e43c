"""Which ranking is taken where none is asked for: by counted work, never by a clock, so that a plan can be repeated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

from secateur.compensation.calibration import EACH, FEWER, PIECE, ROWS, rows_of_its_own
from secateur.compensation.linear_layers import Layer, find_layers, layers_of
from secateur.compensation.targets import last_layers
from secateur.least_squares.moments import LARGE
from secateur.objective.memory import bytes_alive, bytes_of
from secateur.objective.question import Question
from secateur.options import Ranking
from secateur.planning.budget import Budget

SMALL = 2 * 10**11  # multiplications with addition that an iterative ranking may take: some seconds
FITS = 100  # of all weights, along a whole iterative order
FACTORISATIONS = 4  # by D³ each, of a fit that chooses its ridge: how iterative fits are counted
REMOVAL = 60  # small operations of one removal


def choose_ranking(question: Question, ranking: Ranking, fitted: bool, budget: Budget | None) -> tuple[Ranking, str]:
    """Return the settings with a ranking, and why it was taken.

    Args:
        question: The model, its units and the data.
        ranking: Settings without a ranking; those that only an iterative one has decide.
        fitted: Whether weights make up for each removal.
        budget: Says how many units may go.
    """
    for name in ("threshold", "shortlist", "refresh"):
        if getattr(ranking, name) is not None:
            return replace(ranking, ranking="iterative"), f"it has a {name}"
    units = question.units
    limits = (budget or Budget(remove_units=0)).removable(units.sizes, units.least)
    phases = iterative_work(question, ranking.criterion or ("obs" if fitted else "oracle"), limits, budget)
    work = sum(phase.multiplications for phase in phases)
    chosen = "iterative" if work <= SMALL else "layerwise"
    counted = f"an iterative ranking takes some {work:.0e} multiplications, and {SMALL:.0e} count as few"
    return replace(ranking, ranking=chosen), counted


class Work(NamedTuple):
    """What one phase takes.

    Attributes:
        name: The phase.
        passes: Multiplications in passes of data through the network.
        products: Those in products of matrices.
        solves: Those in factorisations, in float64.
        operations: Small operations, which take their time whatever they compute.
        bytes: What is held at the worst, beside model and data.
    """

    name: str
    passes: int = 0
    products: int = 0
    solves: int = 0
    operations: int = 0
    bytes: int = 0

    @property
    def multiplications(self) -> int:
        """All multiplications with addition."""
        return self.passes + self.products + self.solves


class Counts:
    """The sizes that work is counted by.

    Args:
        question: The model, its units and the data.
        fitted: Whether weights make up for what goes.
        limits: The number of units that each set may lose.
        budget: Says how many units go.
    """

    def __init__(self, question: Question, fitted: bool, limits: Mapping[str, int], budget: Budget | None) -> None:
        self.question, self.units = question, question.units
        self.fitted, self.limits, self.budget = fitted, limits, budget
        has_data = question.gated.has_data
        self.samples = question.gated.samples if has_data else 0
        self.judging = question.samples if has_data else 0
        self.macs = question.units.macs({})
        self.one_pass = self.macs * self.samples

    @cached_property
    def layers(self) -> list[Layer]:
        """The layers that sum units up, where weights are fitted."""
        layers = find_layers(self.units) if self.fitted else []
        return [layer for layer in layers if any(layers_of(unit_set, [layer]) for unit_set in self.units)]

    @cached_property
    def blocks(self) -> dict[Layer, int]:
        """The number of moment matrices of each layer."""
        weighted = last_layers(self.layers) if self.question.gated.has_loss else []
        return {layer: layer.outputs.size if layer in weighted else 1 for layer in self.layers}

    def kept_rows(self, layer: Layer) -> int | None:
        """Return how many rows are kept of a layer that is fitted by its rows; None where it has moments."""
        return rows_of_its_own(layer, self.samples)

    def rows(self, layer: Layer) -> int:
        """Return how many rows a layer's moments are taken over."""
        kept = self.kept_rows(layer)
        if kept is not None:
            return kept
        most = ROWS if self.blocks[layer] == 1 else FEWER
        return min(self.samples * layer.positions, max(most, EACH * layer.width))

    @cached_property
    def removals(self) -> int:
        """The number of units that may go until a budget that counts units is met."""
        longest, budget = sum(self.limits.values()), self.budget
        if budget is None or not budget.least or budget.costs or budget.latency_ms is not None:
            return longest
        return longest if budget.scope == "set" else min(longest, budget.fewest(self.units.total))

    @property
    def left(self) -> float:
        """The share of the units that is left at the end, about; half where the budget does not count units."""
        return max(0.5, 1 - self.removals / max(1, self.units.total))

    @property
    def calls(self) -> int:
        """The number of calls of the captured graph."""
        return sum(node.op == "call_function" for node in self.units.captured.graph.nodes)

    @cached_property
    def largest_batch(self) -> int:
        """The number of samples that are run at a time."""
        return max(batch.size for batch in self.question.gated.batches) if self.samples else 0

    @property
    def batch_bytes(self) -> int:
        """The bytes of all values of the largest batch, which a backward pass needs; views take none."""
        nodes = self.units.captured.graph.nodes
        return bytes_of(node for node in nodes if not getattr(node.target, "is_view", False)) * self.largest_batch

    @cached_property
    def alive_bytes(self) -> int:
        """The bytes of the values of one sample that a forward pass holds at a time."""
        graph = self.units.captured.graph
        return bytes_alive(graph, [node for node in graph.nodes if node.op == "call_function"])

    @property
    def forward_bytes(self) -> int:
        """The bytes that a forward pass of the largest batch holds."""
        return self.alive_bytes * self.largest_batch

    def row_bytes(self, layer: Layer) -> int:
        """Return what the rows take that are unfolded at a time, with a copy."""
        return 2 * min(self.rows(layer), PIECE) * layer.height * self.question.ones.element_size()

    def moment_bytes(self, layer: Layer) -> int:
        """Return what a layer's moments take, those to fit and those held out; or the rows that are kept."""
        inputs, kept = layer.height, self.kept_rows(layer)
        if kept is not None:
            return 4 * kept * (inputs + layer.outputs.size)
        return 2 * self.blocks[layer] * inputs**2 * (4 if inputs >= LARGE else 8)

    def solve_bytes(self, layer: Layer) -> int:
        """Return what the matrices take that a layer's factorisation holds at a time."""
        return 3 * 8 * self.blocks[layer] * (self.kept_rows(layer) or layer.height) ** 2

    def fit_bytes(self, layer: Layer) -> int:
        """Return what the fit of one layer holds."""
        return self.moment_bytes(layer) + max(self.row_bytes(layer), self.solve_bytes(layer))

    @property
    def walk_bytes(self) -> int:
        """The bytes that both networks hold between two layers of a fit: of all batches if that fits, else of one."""
        alive = 2 * bytes_alive(self.units.captured.graph, {layer.call for layer in self.layers})
        fits = alive * self.samples <= self.question.gated.memory // 3
        return alive * self.samples + self.forward_bytes if fits else 2 * self.forward_bytes


def iterative_work(question: Question, criterion: str, limits: Mapping[str, int], budget: Budget | None) -> list[Work]:
    """Return what an iterative ranking takes, about.

    Args:
        question: The model, its units and the data.
        criterion: The criterion's name.
        limits: The number of units that each set may lose.
        budget: Says how many units go.
    """
    counts = Counts(question, criterion == "obs", limits, budget)
    removals, one_pass = counts.removals, counts.one_pass
    held, steps = counts.batch_bytes, removals * REMOVAL
    if criterion == "obs":
        fits = min(removals, FITS) + 1
        layers = counts.layers
        held = counts.walk_bytes + max(map(counts.fit_bytes, layers), default=0)
        moments = sum(counts.rows(layer) * layer.height**2 for layer in layers)
        solves = FACTORISATIONS * sum(layer.height**3 for layer in layers)
        fitting = Work("ranking by obs", fits * 3 * one_pass, fits * moments, fits * solves, steps, held)
        return [fitting, Work("measuring along the order", min(removals, 50) * one_pass, bytes=counts.forward_bytes)]
    if criterion == "oracle":
        return [
            Work("ranking by oracle", removals * question.units.total * one_pass // 2, operations=steps, bytes=held)
        ]
    passes = removals * (3 * one_pass + question.units.params({}))
    return [Work(f"ranking by {criterion}", passes, operations=steps, bytes=held)]
