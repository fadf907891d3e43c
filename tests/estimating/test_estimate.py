"""What a job takes, before it starts; also covers secateur.estimating.job_work."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.estimating.estimate import Estimate, Phase, Speeds
from secateur.estimating.job_work import EXPORT
from secateur.planning.ranking_choice import Work


def network(width=8, inputs=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))


def data(samples=20, inputs=3):
    return torch.randn(samples, inputs), torch.randint(2, (samples,))


def estimate(width=8, samples=20, budget=None, **options):
    budget = budget or sc.Budget(remove_fraction=0.5)
    return sc.estimate(network(width), data(samples), "cross_entropy", budget, **options)


def work(made):
    return {phase.name: phase.multiplications for phase in made.phases}


def test_multiplications_are_divided_by_their_own_speeds():
    speeds = Speeds(passes=100, products=10, solves=2, operations=5)
    assert speeds.seconds(Work("", passes=200, products=20, solves=6, operations=5)) == 2 + 2 + 3 + 1
    assert Work("", passes=200, products=20, solves=6, operations=5).multiplications == 226


MADE = Estimate(
    "layerwise", "it is large", (Phase("learning", 3_000, 1.5, 2_000), Phase("fitting", 70_000, 70.5, 1_000_000))
)


def test_an_estimate_adds_up_in_time_and_takes_the_most_memory():
    assert (MADE.seconds, MADE.peak_bytes) == (72, 1_000_000)
    assert str(MADE).splitlines() == [
        "about 1 min 12 s, 1.0 MB beside model and data; layerwise: it is large",
        "phase     multiplications  seconds  memory",
        "learning          3.0e+03      1.5  2.0 kB",
        "fitting           7.0e+04     70.5  1.0 MB",
        "together          7.3e+04     72.0  1.0 MB",
    ]
    assert Estimate("single", None, MADE.phases).summary == "about 1 min 12 s, 1.0 MB beside model and data; single"


def test_an_estimate_as_plain_data():
    assert json.loads(json.dumps(MADE.to_json())) == {
        "seconds": 72, "peak_bytes": 1_000_000, "ranking": "layerwise", "reason": "it is large",
        "phases": [
            {"name": "learning", "multiplications": 3_000, "seconds": 1.5, "bytes": 2_000},
            {"name": "fitting", "multiplications": 70_000, "seconds": 70.5, "bytes": 1_000_000},
        ],
    }  # fmt: skip


def test_the_ranking_is_the_one_that_shrink_takes():
    small, large = estimate(), estimate(ranking="layerwise")
    plan = sc.shrink(network(), data(), "cross_entropy", sc.Budget(remove_fraction=0.5), progress=False).plan
    assert (small.ranking, small.reason) == (plan.made_by.ranking, plan.reason) == ("iterative", plan.reason)
    assert (large.ranking, large.reason) == ("layerwise", None)
    assert large.seconds > 0


def test_the_phases_are_those_of_the_job():
    names = {"capturing the model", "measuring", "cutting and proving"}
    assert work(estimate(ranking="layerwise")).keys() == names | {
        "learning moments", "ordering removals", "measuring the orders", "fitting layers"
    }  # fmt: skip
    assert work(estimate(ranking="single", criterion="taylor1", compensate=False)).keys() == names | {
        "scoring by taylor1", "measuring along the order"
    }  # fmt: skip
    assert work(estimate(ranking="iterative", criterion="oracle", compensate=False)).keys() == names | {
        "ranking by oracle"
    }


def test_passes_are_counted_by_samples_and_multiplications_of_the_network():
    few, many = (work(estimate(samples=n, ranking="layerwise")) for n in (20, 200))
    macs = 3 * 8 + 8 * 8 + 8 * 2
    assert (few["measuring"], many["measuring"]) == (2 * 20 * macs, 2 * 200 * macs)
    moments = 20 * (8 * 8 + 2 * 8 * 8)  # rows by columns, of the first layer, and of the last for each of its outputs
    assert few["learning moments"] == 3 * 20 * macs + moments + 20 * (8 * 8 + 2 * 2)
    assert many["learning moments"] == 10 * few["learning moments"]


def test_removal_orders_are_counted_by_the_cube_of_a_layers_inputs_and_by_the_units_that_may_go():
    def orders(**options):
        return work(estimate(ranking="layerwise", **options))["ordering removals"]

    inverse, struck, slow = 8**3 // 2, 7 * 8**2 // 3, 8 * 7 * 4  # of 8 inputs 7 go, one vector after the other
    first, last = inverse + struck + slow * (128 + 4) + 8 * 8**2, inverse + struck + slow * (128 + 1) + 8 * 2**2
    assert orders() == first + 2 * last
    assert orders(budget=sc.Budget(remove_fraction=0.5, protect="2")) < orders()
    assert orders(budget=sc.Budget(remove_fraction=0.5, protect=("0", "2"))) == 0


def test_a_budget_of_quality_takes_several_fits():
    by_size = work(estimate(ranking="layerwise", samples=25, validation=data()))
    quality = sc.Budget(max_loss_increase=0.1)
    by_quality = work(estimate(ranking="layerwise", samples=25, validation=data(), budget=quality))
    assert by_quality["fitting layers"] == (4 + 3) * by_size["fitting layers"]  # 4 to halve 14 removals


def test_what_is_held_is_counted():
    held = {phase.name: phase.bytes for phase in estimate(width=64, samples=20, ranking="layerwise").phases}
    moments, solves = 2 * 8 * 64**2 * (1 + 2), 3 * 8 * 64**2 * 2  # of a first layer, and of a last one with two outputs
    assert held["ordering removals"] == EXPORT + moments + solves
    assert held["measuring"] == EXPORT + 20 * 4 * 2 * 64


def test_nothing_is_estimated_of_what_cannot_be_shrunk():
    with pytest.raises(sc.SecateurError, match=r"^budget: expected secateur.Budget\(...\), got 3$"):
        sc.estimate(network(), data(), "cross_entropy", 3)
    with pytest.raises(sc.SecateurError, match=r"^swaps: is for ranking='quadratic', not 'iterative'$"):
        sc.estimate(network(), 3, "cross_entropy", sc.Budget(remove_units=1), swaps=True)


def test_without_data_nothing_is_fitted():
    model = network()
    options = {"units": sc.find_units(model, data()[0]), "criterion": "magnitude", "ranking": "single"}
    made = sc.estimate(model, None, None, sc.Budget(remove_fraction=0.5), **options)
    assert "fitting layers" not in work(made)
    assert work(made)["measuring"] == 0
