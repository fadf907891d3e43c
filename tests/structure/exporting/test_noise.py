"""Noise drawn in forward: steady where networks are compared, drawn afresh in what is cut."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.structure.capture import call_model, capture
from secateur.structure.exporting.noise import SteadyNoise
from secateur.structure.graph_run import compile_graph, run
from secateur.structure.inputs import as_call

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1] * 3)


class Noisy(nn.Module):
    """Two hidden layers with noise on the second."""

    def __init__(self, noise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.noise(self.second(self.first(x).relu())))


def noisy(name: str) -> Noisy:
    torch.manual_seed(0)
    return Noisy(NOISES[name])


NOISES: dict[str, Callable[[Tensor], Tensor]] = {
    "randn_like": lambda h: h + torch.randn_like(h) * h.sigmoid(),
    "rand_like": lambda h: h.tanh() * torch.rand_like(h),
    "rand": lambda h: h.tanh() * (torch.rand(h.shape[0], h.shape[1]) < 0.9),
    "randn": lambda h: h.tanh() + torch.randn(h.shape[0], 1),
    "dropout": lambda h: F.dropout(h.relu(), 0.3, training=True),
    "alpha_dropout": lambda h: F.alpha_dropout(h, 0.2, training=True),
    "bernoulli": lambda h: h * torch.bernoulli(h.sigmoid()),
    "normal": lambda h: torch.normal(h, h.exp()),
    "normal_": lambda h: h + torch.empty_like(h).normal_(),
    "uniform_": lambda h: h + torch.empty_like(h).uniform_(-1, 3),
    "rrelu": lambda h: F.rrelu(h, training=True),
    "randperm": lambda h: h.tanh() + torch.randperm(4)[0],
}


@pytest.mark.parametrize("name", NOISES)
def test_a_network_that_draws_noise_is_cut_and_draws_afresh(name: str) -> None:
    model = noisy(name)
    result = sc.shrink(
        model, (X, Y), "cross_entropy", sc.Budget(remove_fraction=0.5, scope="set"), criterion="magnitude",
        progress=False, compensate=False,
    )  # fmt: skip
    small = result.model
    assert [small.first.out_features, small.second.out_features] == [4, 4]
    zeros = noisy(name)
    with torch.no_grad():
        for layer, after in (("first", zeros.second), ("second", zeros.last)):
            kept = list(result.plan.kept[layer])
            mask = torch.zeros(8).index_fill_(0, torch.tensor(kept), 1)
            after.weight.mul_(mask)
        torch.testing.assert_close(call_model(small, as_call(X)), call_model(zeros, as_call(X)))
        assert not all(torch.equal(small(X), small(X)) for _ in range(20))
    assert result.max_difference < 1e-6


@pytest.mark.parametrize("criterion", ["oracle", "taylor1", "taylor2", "hessian", "ggn"])
def test_saliency_is_for_one_draw(criterion: str) -> None:
    model = noisy("dropout")
    units = sc.find_units(model, X)
    scores = [sc.score(model, (X, Y), "cross_entropy", units=units, criterion=criterion) for _ in range(2)]
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=0)
    assert scores[0]["second"].abs().max() > 0


def test_units_say_that_noise_is_steady() -> None:
    note = "The model draws noise: losses and proofs are for one fixed draw, the cut network draws afresh."
    assert sc.find_units(noisy("rand"), X).notes == [note]
    assert sc.find_units(Noisy(lambda h: F.dropout(h, 0.3, training=False)), X).notes == []


def test_noise_is_steady_by_graph_and_by_code() -> None:
    model = noisy("normal")
    captured = capture(model, as_call(X))
    torch.testing.assert_close(run(captured, model, as_call(X)), call_model(model, as_call(X)))
    drawn = [node for node in captured.graph.nodes if "normal" in str(node.target)]
    assert len(drawn) == 1  # the graph itself is as it was captured
    assert compile_graph(captured.graph)


def test_every_unit_gets_the_same_number() -> None:
    with SteadyNoise():
        drawn = torch.randperm(9), torch.empty(3).uniform_(2, 6), torch.empty(3).normal_(1, 2), torch.rand(2)
        assert torch.equal(torch.randperm(9), drawn[0])
    torch.testing.assert_close(drawn[1], torch.full((3,), 5.0))
    torch.testing.assert_close(drawn[2], torch.full((3,), 1 + 2 * 0.6745))
    torch.testing.assert_close(drawn[3], torch.full((2,), 0.75))
    with SteadyNoise():
        F.dropout(torch.ones(3), 0.5, training=True)
