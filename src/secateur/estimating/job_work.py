"""The work of a whole job, counted before it starts: multiplications, small operations and bytes of each phase."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.compensation.linear_layers import Layer, layers_of
from secateur.compensation.row_elimination import GROUPS
from secateur.least_squares.moments import COLUMNS, LARGE
from secateur.least_squares.ridge import GRID
from secateur.ordering import Job
from secateur.planning.budget import Budget
from secateur.planning.loss_curve import spacing
from secateur.planning.ranking_choice import REMOVAL, Counts, Work, iterative_work
from secateur.planning.set_curves import SHARES, probe_samples
from secateur.refinement.conjugate_gradients import STEPS as SOLVED
from secateur.refinement.kronecker import LARGEST

BACKWARD = 2  # passes that one backward pass is counted as
TRIED = 3  # ridges of a large layer, where not all are tried
EXPECTED = 6  # steps of a refinement until it gains no more
ENDS = 3  # where weights are fitted until a budget of quality alone is kept, and not one removal further
EIGENVECTORS = 10  # products for each number of a matrix and each of its rows
GATHERED = 128  # columns of an elimination that wait, on average
SLOW = 8  # how much longer a multiplication takes in a product with one vector
EXPORT = 10**8  # bytes that torch.export takes whatever the model, and keeps
START, CAPTURE, CALL = 200_000, 6_000, 3_000  # small operations of a capture, and for each call; of a proof for each


def job_work(job: Job) -> list[Work]:
    """Return what a job takes, about: the ranking, the fit at its end, the proof of the cut."""
    question, ranking, budget = job.question, job.ranking, job.budget or Budget(remove_units=0)
    fitted = job.compensation is not None and job.compensation.fit
    limits = budget.removable(question.units.sizes, question.units.least)
    counts = Counts(question, fitted, limits, job.budget)
    assert ranking.criterion is not None
    if ranking.ranking == "layerwise":
        ranked = _layerwise(counts, ranking.criterion)
    elif ranking.ranking == "iterative":
        ranked = iterative_work(question, ranking.criterion, limits, job.budget)
    else:
        ranked = _scored_once(counts, ranking.criterion)
    tried = 1 if budget.least else ENDS
    fits = tried + (counts.removals.bit_length() if ranking.ranking == "layerwise" and not budget.least else 0)
    steps = job.compensation.refine if job.compensation is not None else 0
    ends = [_fit(counts, fits)] if counts.layers else []
    ends += [_refining(counts, tried * (EXPECTED if steps == "auto" else int(steps)))] if steps else []
    phases = [_capture(counts), *ranked, *ends, *_proof(counts)]
    return [work._replace(bytes=work.bytes + EXPORT) for work in phases]


def _capture(counts: Counts) -> Work:
    return Work("capturing the model", operations=START + CAPTURE * counts.calls)


def _proof(counts: Counts) -> list[Work]:
    """Return the cut and its proof; the passes of one batch, some in float64."""
    passes, params = 6 * max(1, counts.largest_batch) * counts.macs, counts.units.params({})
    return [
        Work("measuring", 2 * counts.judging * counts.macs, bytes=counts.forward_bytes),
        Work("cutting and proving", passes, operations=CALL * counts.calls, bytes=16 * params),
    ]


def _scored_once(counts: Counts, criterion: str) -> list[Work]:
    passes = counts.units.total if criterion == "oracle" else 1 + BACKWARD
    measured = counts.removals // spacing(counts.removals, counts.judging * counts.macs)
    scoring = Work(f"scoring by {criterion}", passes * counts.one_pass, bytes=counts.batch_bytes)
    steps = REMOVAL * counts.removals
    return [scoring, Work("measuring along the order", measured * counts.judging * counts.macs, operations=steps)]


def _layerwise(counts: Counts, criterion: str) -> list[Work]:
    """Return one pass for the moments, and an order of removals and six measurements of each unit set."""
    open_sets = [unit_set for unit_set in counts.units if counts.limits[unit_set.name]]
    layers = {layer for layer in counts.layers if any(layers_of(unit_set, [layer]) for unit_set in open_sets)}
    learning = [_learning(counts, [layer for layer in counts.layers if layer in layers], criterion == "obs")]
    orders = [
        _order(counts, layer, counts.limits[unit_set.name], unit_set.size)
        for unit_set in open_sets
        for layer in layers_of(unit_set, counts.layers)
    ]
    most = max((counts.solve_bytes(layer) for layer in layers), default=0) + sum(map(counts.moment_bytes, layers))
    removals = sum(counts.limits[unit_set.name] for unit_set in open_sets)
    ordering = Work("ordering removals", 0, 0, sum(orders), REMOVAL * removals, most)
    scoring = [] if layers else [Work(f"scoring by {criterion}", (1 + BACKWARD) * counts.one_pass)]
    return [*(learning if layers else scoring), ordering, _probes(counts, len(open_sets) * len(SHARES))]


def _learning(counts: Counts, layers: Sequence[Layer], curved: bool) -> Work:
    passes = (1 + BACKWARD * (curved and counts.question.gated.has_loss)) * counts.one_pass
    products = sum(counts.blocks[layer] * _products(counts, layer, layer.height) for layer in layers)
    if passes > counts.one_pass:
        products += sum(counts.samples * layer.positions * layer.outputs.size**2 for layer in layers)
    values = counts.batch_bytes if passes > counts.one_pass else counts.forward_bytes
    held = sum(map(counts.moment_bytes, layers)) + values + max(map(counts.row_bytes, layers), default=0)
    return Work("learning moments", passes, products, 0, 0, held)


def _order(counts: Counts, layer: Layer, removals: int, units: int) -> int:
    """Return the multiplications of one layer's elimination: the inverse, and what is struck out of it."""
    inputs, outputs, kept = layer.height, layer.outputs.size, counts.kept_rows(layer)
    if kept is not None:
        return GROUPS * kept**2 * (inputs + kept // 6) * removals // units
    rows = inputs * removals // units  # that go
    struck = SLOW * rows * (inputs // 2) * (GATHERED + outputs // 2)
    return counts.blocks[layer] * (inputs**3 // 2 + rows * inputs**2 // 3 + struck + inputs * outputs**2)


def _probes(counts: Counts, times: int) -> Work:
    samples = probe_samples(counts.samples, times, counts.macs)
    return Work(
        "measuring the orders",
        times * samples * counts.macs,
        operations=times * counts.calls,
        bytes=counts.forward_bytes,
    )


def _fit(counts: Counts, fits: int) -> Work:
    """Return the fit of all layers at the sizes that are left, both networks side by side."""
    products = solves = 0
    for layer in counts.layers:
        inputs, outputs = round(counts.left * layer.height), round(counts.left * layer.outputs.size)
        blocks, kept = counts.blocks[layer], counts.kept_rows(layer)
        products += blocks * (_products(counts, layer, inputs) + counts.rows(layer) * inputs * outputs)
        size = kept or inputs
        tried = 1 + (len(GRID) if kept is not None or inputs < LARGE else TRIED)
        solves += tried * blocks * size**2 * (size // 6 + 2 * outputs // blocks)
    most = max(map(counts.fit_bytes, counts.layers))
    passes = 2 * counts.one_pass
    return Work("fitting layers", fits * passes, fits * products, fits * solves, 0, most + counts.walk_bytes)


def _refining(counts: Counts, steps: int) -> Work:
    """Return the products with the Gauss-Newton matrix of what is left, and the eigenvectors of the layers' factors."""
    passes = steps * (SOLVED * (2 + 2 + BACKWARD) + 2 * (1 + BACKWARD)) * counts.one_pass
    sizes = [round(counts.left * size) for lay in counts.layers for size in (lay.height, lay.outputs.size)]
    eigenvectors = steps * sum(EIGENVECTORS * size**3 for size in sizes if size < LARGEST)
    return Work("refining", round(counts.left * passes), 0, eigenvectors, 0, 3 * counts.batch_bytes)


def _products(counts: Counts, layer: Layer, inputs: int) -> int:
    """Return the products of so many inputs' second moments, or of the rows that are kept: half are others' too."""
    rows, kept = counts.rows(layer), counts.kept_rows(layer)
    if kept is not None:
        return kept**2 * inputs
    return rows * inputs * (inputs + min(inputs, COLUMNS)) // 2
