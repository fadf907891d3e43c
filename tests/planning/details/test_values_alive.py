"""The memory that values take, against what a run of the graph really holds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import secateur as sc
from cases import CASES
from random_networks import RandomArchitecture
from secateur.artifacts.header import network_sizes
from secateur.planning.plan import Plan
from secateur.reference import RandomNetwork
from secateur.structure.graph_run import bind


class Held(fx.Interpreter):
    """A run that adds up, after each call, the storages that are needed at it or later, but for the weights."""

    def __init__(self, graph: fx.Graph, weights: set[str]) -> None:
        super().__init__(fx.GraphModule(nn.Module(), graph), garbage_collect_values=False)
        self.graph, self.weights = graph, weights
        nodes = list(graph.nodes)
        self.order = {node: n for n, node in enumerate(nodes)}
        self.last = {node: max([n, *(self.order[user] for user in node.users)]) for n, node in enumerate(nodes)}
        self.worst = 0

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        self.env[n] = value
        storages: dict[int, int] = {}
        for node, held in self.env.items():
            if self.last[node] >= self.order[n] and node.name not in self.weights:
                for tensor in held if isinstance(held, tuple | list) else [held]:
                    if isinstance(tensor, Tensor):
                        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        self.worst = max(self.worst, sum(storages.values()))
        return value


def held(model: nn.Module, x: Tensor, samples: int = 1) -> int:
    """The bytes that a run of the model's graph holds at the worst."""
    captured = sc.find_units(model, x, include="all").captured
    run = Held(captured.graph, set(captured.weights))
    with torch.no_grad():
        run.run(*bind(captured, model, ((x[:samples].clone(),), {})))
    return run.worst


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_it_is_what_a_run_holds(seed: int) -> None:
    network = RandomNetwork(seed).double()
    x = network.sample(3)
    assert sc.measure(network, x).ram * 2 == held(network, x, 2)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_where_views_of_attention_have_to_be_copies_a_run_holds_more(seed: int) -> None:
    network = RandomArchitecture(seed).eval()
    x = network.sample(3)
    assert 0.6 * held(network, x, 2) <= sc.measure(network, x).ram * 2 <= held(network, x, 2)


@pytest.mark.parametrize("name", [name for name in CASES if name != "one_unit"])
def test_what_a_plan_leaves_is_what_the_cut_network_holds(name: str) -> None:
    case = CASES[name]()
    units = sc.find_units(case.model, case.x)
    sizes = network_sizes(case.model, units, Plan((), inputs=units.captured.spec))
    kept = {s.name: tuple(range(-(-s.size // 2))) for s in units}
    small = sc.cut(case.model, Plan.from_kept(kept, case.x))
    assert sizes.costs(kept).ram == sc.measure(small, case.x).ram


def test_a_budget_of_memory_is_kept_and_used_up_to_one_unit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
                          nn.Flatten(), nn.Linear(8 * 36, 3)).eval()  # fmt: skip
    data = torch.randn(12, 1, 6, 6), torch.arange(12) % 3
    whole = sc.measure(model, data[0]).ram
    assert whole == 4 * 36 * 16
    for ranking in ("iterative", "layerwise"):
        budget = sc.Budget(ram=f"{4 * 36 * 9} B")
        result = sc.shrink(model, data, "cross_entropy", budget, ranking=ranking, progress=False)
        assert (result.before.ram, result.after.ram) == (whole, 4 * 36 * 9 // 2 // 144 * 2 * 144)
        assert sc.measure(result.model, data[0]).ram == result.after.ram
        assert result.plan.states[-2].ram > 4 * 36 * 9
    with pytest.raises(sc.SecateurError, match=r"cannot be met: at most 14 of 16 .*, 288 bytes of activations$"):
        sc.shrink(model, data, "cross_entropy", sc.Budget(ram=200), progress=False)
