"""Orders of removal, through `secateur.rank`.

Also covers secateur.ordering and secateur.planning.removal_order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from cases import CASES, Case
from secateur.artifacts.safetensors import to_bytes
from secateur.errors import ArgumentError, DataError
from secateur.objective.leave_one_out import rises
from secateur.planning import ranking
from secateur.planning.plan import Plan
from secateur.reference import RandomNetwork, gated_loss

REMOVABLE = [name for name in CASES if name != "one_unit"]
Evaluate = Callable[[Tensor], float]  # E(g)


def rank(model: nn.Module, data: Any, loss: Any = "cross_entropy", **options: Any) -> Plan:
    return sc.rank(model, data, loss, progress=False, **options)


def order(plan: Plan) -> list[tuple[str, int]]:
    return [(step.set, step.index) for step in plan.steps]


def greedy(evaluate: Evaluate, sets: dict[str, int]) -> list[tuple[tuple[str, int], float, float]]:
    """Algorithm II by brute force: (unit, rise, loss) of each step; of units tied the first."""
    places = [(name, i) for name, size in sets.items() for i in range(size)]
    g = torch.ones(len(places), dtype=torch.float64)
    left = dict(sets)
    steps = []
    while any(size > 1 for size in left.values()):
        here = evaluate(g)
        rises = {}
        for k, (name, _) in enumerate(places):
            if g[k] and left[name] > 1:
                without = g.clone()
                without[k] = 0
                rises[k] = evaluate(without) - here
        k = min(rises, key=lambda k: rises[k])
        g[k] = 0
        left[places[k][0]] -= 1
        steps.append((places[k], rises[k], evaluate(g)))
    return steps


def through_whole_model(case: Case, name: str = "") -> Evaluate:
    if name == "tied":  # the consumer's weight is the maker's too, so that no gate can be put on it
        encode = case.model.encode
        return lambda g: F.cross_entropy(torch.tanh(encode(case.x)) * g @ encode.weight, case.y).item()
    units = list(sc.find_units(case.model, case.x))
    return lambda g: gated_loss(case.model, units, (case.x,), case.y, F.cross_entropy, g).item()


def through_network(network: RandomNetwork, x: Tensor, target: Tensor, sets: dict[str, int]) -> Evaluate:
    def evaluate(g: Tensor) -> float:
        gates = dict(zip(sets, g.split(list(sets.values())), strict=True))
        return 0.5 * (network.gated(x, gates) - target).square().sum(1).mean().item()

    return evaluate


# ---------------------------------------------------------------- orders


@pytest.mark.parametrize("name", REMOVABLE)
def test_iterative_is_greedy_brute_force_through_the_whole_model(name: str) -> None:
    case = CASES[name]()
    plan = rank(case.model, (case.x, case.y))
    wanted = greedy(through_whole_model(case, name), plan.sizes)
    assert order(plan) == [unit for unit, _, _ in wanted]
    for step, (_, rise, loss) in zip(plan.steps, wanted, strict=True):
        assert step.predicted == pytest.approx(rise, abs=1e-10)
        assert step.loss == pytest.approx(loss, abs=1e-10)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_iterative_takes_the_unit_of_least_rise_at_each_step_of_a_random_network(seed: int) -> None:
    network = RandomNetwork(seed, widths=(1, 4), steps=5).double()
    x = network.sample(5)
    assume(sc.find_units(network, x).sets)  # a lone unit at a lone position may be dropped by a flatten
    target = torch.randn(network(x).shape, generator=torch.Generator().manual_seed(seed)).double()
    plan = rank(network, (x, target), "squared_error")
    sets = plan.sizes
    assert sets == network.sets
    evaluate = through_network(network, x, target, sets)
    places = [(name, i) for name, size in sets.items() for i in range(size)]
    g = torch.ones(len(places), dtype=torch.float64)
    left = dict(sets)
    assert plan.start is not None
    assert plan.start.loss == pytest.approx(evaluate(g), rel=1e-10)
    for step in plan.steps:
        here = evaluate(g)
        candidates = [k for k, (name, _) in enumerate(places) if g[k] and left[name] > 1]
        losses = {k: evaluate(g.index_fill(0, torch.tensor(k), 0)) for k in candidates}
        k = places.index((step.set, step.index))
        tolerance = 1e-10 * max(1, abs(here))
        assert k in losses
        assert losses[k] <= min(losses.values()) + tolerance  # rounding decides between equal ones
        assert step.loss == pytest.approx(losses[k], abs=tolerance)
        assert step.predicted == pytest.approx(losses[k] - here, abs=tolerance)
        g[k] = 0
        left[step.set] -= 1
    assert all(size == 1 for size in left.values())


@pytest.mark.parametrize("name", REMOVABLE)
def test_the_oracle_predicts_the_measured_rise_of_each_iterative_step(name: str) -> None:
    case = CASES[name]()
    states = rank(case.model, (case.x, case.y)).states
    for before, after in pairwise(states):
        assert after.predicted == pytest.approx(after.loss - before.loss, abs=1e-12)  # type: ignore[union-attr]


@pytest.mark.parametrize("criterion", ["oracle", "taylor1", "taylor2", "hessian", "magnitude", "activation"])
@pytest.mark.parametrize("name", ["two_hidden", "branches"])
def test_single_sorts_by_the_score_of_the_whole_network(name: str, criterion: str) -> None:
    case = CASES[name]()
    data = case.x, case.y
    scores = sc.score(case.model, data, "cross_entropy", criterion=criterion)
    by_score = sorted((value.item(), s, i) for s, values in scores.items() for i, value in enumerate(values))
    left = dict(case.sets)
    wanted = []
    for value, s, i in by_score:
        if left[s] > 1:  # the last unit of a set stays
            left[s] -= 1
            wanted.append((s, i, value))
    plan = rank(case.model, data, criterion=criterion, ranking="single")
    assert order(plan) == [(s, i) for s, i, _ in wanted]
    in_loss_units = criterion not in ("magnitude", "activation")
    for step, (_, _, value) in zip(plan.steps, wanted, strict=True):
        assert step.predicted == (pytest.approx(value, abs=1e-14) if in_loss_units else None)


def three_units(*outgoing: float) -> nn.Module:
    """One output, the sum of three equal units with these weights."""
    model = nn.Sequential(nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[1].weight.copy_(torch.tensor([outgoing]))
    return model


def test_iterative_and_single_differ_where_units_interact() -> None:
    one = torch.ones(2, 1, dtype=torch.float64)
    model = three_units(2, -2, 1)
    single, iterative = (rank(model, (one, one), "squared_error", ranking=r) for r in ("single", "iterative"))
    assert order(single) == [("0", 2), ("0", 0)]
    assert [(step.predicted, step.loss) for step in single.steps] == [(0.5, 0.5), (2.0, 4.5)]
    assert order(iterative) == [("0", 2), ("0", 1)]
    assert [(step.predicted, step.loss) for step in iterative.steps] == [(0.5, 0.5), (0.0, 0.5)]


@pytest.mark.parametrize("ranking", ["single", "iterative"])
def test_without_a_budget_one_unit_is_left_in_each_set(ranking: str) -> None:
    case = CASES["branches"]()
    plan = rank(case.model, (case.x, case.y), ranking=ranking, criterion="taylor1")
    assert plan.sizes == case.sets
    assert {name: len(kept) for name, kept in plan.kept.items()} == {"left": 1, "right": 1}
    assert Counter(name for name, _ in order(plan)) == {"left": 5, "right": 3}
    assert (plan.criterion, plan.ranking) == ("taylor1", ranking)


def test_a_network_of_one_unit_per_set_has_an_empty_order() -> None:
    case = CASES["one_unit"]()
    plan = rank(case.model, (case.x, case.y))
    assert plan.steps == ()
    assert plan.kept == {"0": (0,)}


@pytest.mark.parametrize(
    ("fields", "removed"),
    [
        ({"remove_units": 3}, 3),
        ({"remove_fraction": 0.4}, 4),
        ({"remove_units": 0}, 0),
        ({"params": 79}, 0),
        ({"remove_units": 2, "max_loss_increase": 100}, 2),
        ({"max_loss_increase": 0.0}, 8),
        ({"max_accuracy_drop": 0.0}, 8),
    ],
)
def test_an_order_ends_where_a_size_is_satisfied_and_not_before_where_only_quality_is_asked(
    fields: dict[str, Any], removed: int
) -> None:
    case = CASES["two_hidden"]()
    whole = rank(case.model, (case.x, case.y))
    plan = rank(case.model, (case.x, case.y), budget=sc.Budget(**fields))
    assert plan == whole.prefix(removed)


@pytest.mark.parametrize(("rise", "removed"), [(1.5, 1), (1.4, 2), (0.0, 2)])
def test_an_order_ends_where_size_and_quality_hold_together(rise: float, removed: int) -> None:
    one = torch.ones(2, 1, dtype=torch.float64)
    budget = sc.Budget(remove_units=1, max_loss_increase=rise)
    plan = rank(three_units(-2, 2, 1), (one, 2 * one), "squared_error", criterion="magnitude", budget=budget)
    assert [state.loss for state in plan.states] == [0.5, 2.0, 0.0][: removed + 1]
    assert len(plan.at(budget).steps) == removed


# ---------------------------------------------------------------- ties


class Squares(nn.Module):
    """Two sets whose costs cross: a unit of `a` frees less the fewer are left, one of `b` always the same."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.a = nn.Linear(5, 3), nn.Linear(5, 4)
        self.square, self.last = nn.Linear(4, 4), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, a = torch.relu(self.b(x)), torch.relu(self.a(x))
        a = torch.relu(self.square(a)) + a
        return self.last(torch.cat([a, b], -1))


def most_bytes_first(params: Callable[[dict[str, int]], int], sets: dict[str, int]) -> list[tuple[str, int]]:
    """The order of units that are all tied."""
    left = dict(sets)
    wanted = []
    while any(size > 1 for size in left.values()):
        freed = {s: params(left) - params(left | {s: size - 1}) for s, size in left.items() if size > 1}
        name = max(freed, key=lambda s: freed[s])  # of equal ones the first
        wanted.append((name, sets[name] - left[name]))
        left[name] -= 1
    return wanted


TIED: dict[str, tuple[Callable[[], nn.Module], Callable[[dict[str, int]], int], dict[str, int]]] = {
    "costs cross": (
        Squares,
        lambda n: 6 * n["b"] + 6 * n["a"] + n["a"] ** 2 + n["a"] + 2 * (n["a"] + n["b"]) + 2,
        {"b": 3, "a": 4},
    ),
    "the second set frees more": (
        lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5)),
        lambda n: 3 * n["0"] + (n["0"] + 1) * n["2"] + 5 * n["2"] + 5,
        {"0": 4, "2": 3},
    ),
    "both free as much at first": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)),
        lambda n: 6 * n["0"] + (n["0"] + 1) * n["2"] + 3 * n["2"] + 3,
        {"0": 6, "2": 4},
    ),
    "buffers count": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)),
        lambda n: 4 * n["0"] + (n["0"] + 1) * n["2"] + 4 * n["2"] + 3 * n["2"] + 3,
        {"0": 4, "2": 4},
    ),
}


@pytest.mark.parametrize("name", TIED)
@pytest.mark.parametrize(("criterion", "ranking"), [("magnitude", "iterative"), ("oracle", "single")])
def test_tied_units_go_by_bytes_freed_then_by_order_of_sets_then_by_index(
    name: str, criterion: str, ranking: str
) -> None:
    build, params, sets = TIED[name]
    model = build().double().eval()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(4, next(model.parameters()).shape[1]).double()
    zeros = torch.zeros_like(model(x))  # losses of 0, without rounding
    plan = rank(model, (x, zeros), "squared_error", criterion=criterion, ranking=ranking)
    assert plan.sizes == sets
    assert order(plan) == most_bytes_first(params, sets)


def test_equal_units_go_by_index_and_a_lower_saliency_goes_before_more_bytes() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 5)).double()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    with torch.no_grad():
        model[0].weight[2] = 0.5  # the unit of least magnitude, though one of the second set frees more
    x = torch.ones(2, 2, dtype=torch.float64)
    plan = rank(model, (x, torch.tensor([0, 1])), criterion="magnitude", ranking="single")
    assert order(plan)[0] == ("0", 2)
    assert [i for s, i in order(plan) if s == "0"] == [2, 0, 1]
    assert [i for s, i in order(plan) if s == "2"] == [0, 1]


@pytest.mark.parametrize("threshold", ["mean", "median"])
def test_what_a_threshold_replaces_is_tied(threshold: str) -> None:
    case = CASES["two_hidden"]()
    data = case.x, case.y
    scores = sc.score(case.model, data, "cross_entropy")
    values = torch.cat(list(scores.values()))
    bound = values.mean() if threshold == "mean" else values.quantile(0.5)
    below = sorted((v.item(), s, i) for s, vs in scores.items() for i, v in enumerate(vs) if v < bound)
    plan = rank(case.model, data, ranking="single", threshold=threshold)
    n = len(below)
    assert 0 < n < 8
    assert order(plan)[:n] == [(s, i) for _, s, i in below]

    def params(left: dict[str, int]) -> int:
        return 6 * left["0"] + (left["0"] + 1) * left["2"] + 3 * left["2"] + 3

    left = {s: size - sum(s == name for _, name, _ in below) for s, size in case.sets.items()}
    tied = [(s, i) for s, size in case.sets.items() for i in range(size) if (s, i) not in order(plan)[:n]]
    for step in plan.steps[n:]:
        freed = {s: params(left) - params(left | {s: left[s] - 1}) for s in left if left[s] > 1}
        name = max(freed, key=lambda s: freed[s])
        assert (step.set, step.index) == next(unit for unit in tied if unit[0] == name)
        assert step.predicted == pytest.approx(bound.item(), abs=1e-14)
        tied.remove((step.set, step.index))
        left[name] -= 1


@pytest.mark.parametrize("threshold", ["mean", "median"])
def test_a_threshold_looks_only_at_units_left_and_so_never_hides_the_least(threshold: str) -> None:
    case = CASES["one_hidden"]()
    with torch.no_grad():
        data = case.x, case.model(case.x)  # no error as trained, so that every removal raises it
    plain = rank(case.model, data, "squared_error")
    assert min(step.predicted for step in plain.steps) > 0  # type: ignore[type-var]
    replaced = rank(case.model, data, "squared_error", threshold=threshold)
    assert [(s.set, s.index, s.predicted, s.loss) for s in replaced.steps] == [
        (s.set, s.index, s.predicted, s.loss) for s in plain.steps
    ]


# ---------------------------------------------------------------- sizes and losses


def hand_macs(network: nn.Module, x: Tensor) -> int:
    """Outputs times inputs of each call of a dense layer, for one sample."""
    total = 0

    def add(layer: nn.Linear, given: tuple[Tensor], out: Tensor) -> None:
        nonlocal total
        total += out[0].numel() * given[0].shape[-1]

    hooks = [m.register_forward_hook(add) for m in network.modules() if isinstance(m, nn.Linear)]  # type: ignore[arg-type]
    network(x[:1])
    for hook in hooks:
        hook.remove()
    return total


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 40), min_size=2, max_size=2))
def test_sizes_of_each_step_are_those_of_the_cut_network_and_its_file(seed: int, prefixes: list[int]) -> None:
    network = RandomNetwork(seed).double()
    x = network.sample(4)
    units = sc.find_units(network, x)
    plan = rank(network, None, None, units=units, criterion="random", seed=seed)
    for n in {min(n, len(plan.steps)) for n in prefixes}:
        prefix = plan.prefix(n)
        small = sc.cut(network, prefix)
        state = plan.states[n]
        assert state.params == sum(p.numel() for p in small.parameters())
        assert state.bytes == len(to_bytes(small, prefix))
        assert state.macs == hand_macs(small, x)


@pytest.mark.parametrize("name", REMOVABLE)
def test_loss_and_accuracy_of_each_step_are_those_of_the_cut_network(name: str) -> None:
    case = CASES[name]()
    plan = rank(case.model, (case.x, case.y), criterion="taylor1", ranking="single")
    for n in {0, 1, len(plan.steps) // 2, len(plan.steps)}:
        with torch.no_grad():
            out = sc.cut(case.model, plan.prefix(n))(case.x)
        assert plan.states[n].loss == pytest.approx(F.cross_entropy(out, case.y).item(), abs=1e-10)
        assert plan.states[n].accuracy == (out.argmax(1) == case.y).sum().item() / len(case.y)


@pytest.mark.parametrize("form", ["list", "uneven", "loader"])
def test_batches_give_the_plan_of_the_whole_dataset(form: str) -> None:
    case = CASES["branches"]()
    data: Any = {
        "list": [(case.x[:3], case.y[:3]), (case.x[3:], case.y[3:])],
        "uneven": [(case.x[:1], case.y[:1]), (case.x[1:1], case.y[1:1]), (case.x[1:], case.y[1:])],
        "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(case.x, case.y), batch_size=4),
    }[form]
    whole, pieces = (rank(case.model, d, criterion="taylor1") for d in ((case.x, case.y), data))
    assert order(pieces) == order(whole)
    for a, b in zip(whole.states, pieces.states, strict=True):
        assert a.loss == pytest.approx(b.loss, abs=1e-12)
        assert (a.accuracy, a.params, a.bytes) == (b.accuracy, b.params, b.bytes)


def test_the_curve_is_measured_on_validation_data_and_the_order_made_on_data() -> None:
    case = CASES["two_hidden"]()
    data, other = (case.x, case.y), (torch.randn(9, 5).double(), torch.randint(0, 3, (9,)))
    plain, validated = rank(case.model, data), rank(case.model, data, validation=other)
    assert order(validated) == order(plain)
    assert [s.predicted for s in validated.steps] == [s.predicted for s in plain.steps]
    for n, state in enumerate(validated.states):
        with torch.no_grad():
            out = sc.cut(case.model, plain.prefix(n))(other[0])
        assert state.loss == pytest.approx(F.cross_entropy(out, other[1]).item(), abs=1e-10)
        assert state.accuracy == (out.argmax(1) == other[1]).sum().item() / len(other[1])


# ---------------------------------------------------------------- seeds, no data, errors


def test_a_seed_decides_the_order() -> None:
    case = CASES["branches"]()
    plans = [rank(case.model, (case.x, case.y), criterion="random", seed=seed) for seed in (0, 0, 1)]
    assert plans[0] == plans[1]
    assert order(plans[0]) != order(plans[2])


@pytest.mark.parametrize("ranking", ["single", "iterative"])
@pytest.mark.parametrize("criterion", ["oracle", "taylor2", "activation"])
def test_the_same_call_gives_the_same_plan(criterion: str, ranking: str) -> None:
    case = CASES["branches"]()
    plans = [rank(case.model, (case.x, case.y), criterion=criterion, ranking=ranking) for _ in range(2)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
@pytest.mark.parametrize("ranking", ["single", "iterative"])
def test_without_data_nothing_is_measured_and_the_order_is_the_same(criterion: str, ranking: str) -> None:
    case = CASES["two_hidden"]()
    units = sc.find_units(case.model, case.x)
    plan = rank(case.model, None, None, units=units, criterion=criterion, ranking=ranking)
    assert {(s.loss, s.accuracy) for s in plan.states} == {(None, None)}
    assert {s.predicted for s in plan.steps} == {None}
    assert order(plan) == order(rank(case.model, (case.x, case.y), criterion=criterion, ranking=ranking))


def test_magnitude_is_taken_again_without_what_went_with_removed_units() -> None:
    case = CASES["two_hidden"]()
    units = sc.find_units(case.model, case.x)
    plan = rank(case.model, None, None, units=units, criterion="magnitude")
    first, last = (case.model[i].weight.detach() for i in (0, 4))  # type: ignore[index, union-attr]
    middle, bias = case.model[2].weight.detach(), [case.model[i].bias.detach() for i in (0, 2)]  # type: ignore[index, union-attr]
    kept = {"0": list(range(6)), "2": list(range(4))}
    for step in plan.steps:
        norms = {
            ("0", i): first[i].square().sum() + bias[0][i] ** 2 + middle[kept["2"], i].square().sum() for i in kept["0"]
        } | {
            ("2", j): middle[j, kept["0"]].square().sum() + bias[1][j] ** 2 + last[:, j].square().sum()
            for j in kept["2"]
        }
        norms = {unit: norm for unit, norm in norms.items() if len(kept[unit[0]]) > 1}
        assert (step.set, step.index) == min(norms, key=lambda unit: norms[unit].item())
        kept[step.set].remove(step.index)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"ranking": "best"}, ArgumentError, "unknown ranking 'best'; one of: single, iterative, quadratic, layerwise"),
        ({"threshold": "max"}, ArgumentError, "unknown threshold 'max'; one of: mean, median"),
        ({"budget": 5}, ArgumentError, "budget: expected secateur.Budget(...), got 5"),
        (
            {"criterion": "best"},
            ArgumentError,
            "unknown criterion 'best'; one of: activation, fisher, ggn, hessian, magnitude, obs, oracle, random, "
            "taylor1, taylor2",
        ),
    ],
)
def test_an_unknown_option_is_refused(options: dict[str, Any], error: type[Exception], text: str) -> None:
    case = CASES["one_hidden"]()
    with pytest.raises(error) as caught:
        rank(case.model, (case.x, case.y), **options)
    assert str(caught.value) == text


def test_an_unknown_threshold_is_refused_where_nothing_is_to_be_removed() -> None:
    case = CASES["one_hidden"]()
    with pytest.raises(ArgumentError, match="unknown threshold 'max'; one of: mean, median"):
        rank(case.model, (case.x, case.y), threshold="max", budget=sc.Budget(remove_units=0))


@pytest.mark.parametrize("criterion", ["oracle", "taylor1", "activation"])
def test_a_criterion_that_needs_data_is_refused_without(criterion: str) -> None:
    case = CASES["one_hidden"]()
    units = sc.find_units(case.model, case.x)
    needs = "data" if criterion == "activation" else "data and a loss"
    with pytest.raises(DataError) as caught:
        rank(case.model, None, None, units=units, criterion=criterion)
    assert str(caught.value) == f"criterion {criterion!r} needs {needs}; without them: magnitude, random"


def test_without_data_units_must_be_given() -> None:
    with pytest.raises(DataError, match=r"pass units=find_units\(model, example_inputs\)"):
        rank(CASES["one_hidden"]().model, None, None, criterion="magnitude")


def test_a_shortlist_evaluates_only_the_best_of_the_cheap_criterion(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["two_hidden"]()
    units, data = sc.find_units(case.model, case.x), (case.x, case.y)
    sizes = []

    def counted(gated: Any, g: Any, chosen: Any) -> Any:
        sizes.append(len(chosen))
        return rises(gated, g, chosen)

    monkeypatch.setattr(ranking, "rises", counted)
    plan = rank(case.model, data, units=units, shortlist=3)
    assert (len(sizes), max(sizes)) == (8, 3)  # at the end fewer than three may go
    cheap = sc.score(case.model, data, "cross_entropy", units=units, criterion="taylor1")
    exact = sc.score(case.model, data, "cross_entropy", units=units)
    short = sorted((value, name, k) for name, row in cheap.items() for k, value in enumerate(row.tolist()))[:3]
    rise, name, k = min((exact[name][k].item(), name, k) for _, name, k in short)
    assert (plan.steps[0].set, plan.steps[0].index) == (name, k)
    assert plan.steps[0].predicted == pytest.approx(rise, rel=1e-10)
    full = rank(case.model, data, units=units)
    assert order(rank(case.model, data, units=units, shortlist=1000)) == order(full)


def test_units_that_may_not_go_are_not_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["two_hidden"]()
    budget = sc.Budget(remove_units=3, protect="0")
    asked: list[list[int]] = []

    def recorded(gated: Any, g: Any, chosen: Any) -> Any:
        asked.append(chosen.tolist())
        return rises(gated, g, chosen)

    monkeypatch.setattr(ranking, "rises", recorded)
    plan = rank(case.model, (case.x, case.y), budget=budget)
    first = case.sets["0"]
    assert asked[0] == list(range(first, first + case.sets["2"]))
    gone = [first + step.index for step in plan.steps]
    assert asked == [[k for k in asked[0] if k not in gone[:n]] for n in range(3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shortlist": 0}, "shortlist: expected a number of units above 0, got 0"),
        ({"shortlist": True}, "shortlist: expected a number of units above 0, got True"),
        (
            {"shortlist": 2, "ranking": "single"},
            "shortlist: is for ranking='iterative' without threshold, with criterion='oracle', or with 'obs'",
        ),
        (
            {"shortlist": 2, "criterion": "taylor1"},
            "shortlist: is for ranking='iterative' without threshold, with criterion='oracle', or with 'obs'",
        ),
        ({"shortlist": 2, "threshold": "mean"}, "ranking='iterative' without threshold"),
    ],
)
def test_a_shortlist_that_makes_no_sense(options: dict[str, Any], message: str) -> None:
    case = CASES["one_hidden"]()
    with pytest.raises(ArgumentError, match=message):
        rank(case.model, (case.x, case.y), **options)
