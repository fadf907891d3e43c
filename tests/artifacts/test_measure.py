"""Sizes of networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from cases import CASES
from secateur.artifacts.safetensors import save
from secateur.reference import RandomNetwork

# By hand, layer by layer: multiplications for one sample, and the values alive at the same time at most.
BY_HAND = {
    "one_hidden": (5 * 7 + 7 * 3, 7 + 7),  # a sigmoid's input and its output
    "two_hidden": (5 * 6 + 6 * 4 + 4 * 3, 6 + 6),
    "one_unit": (5 * 1 + 1 * 3, 5 + 1),
    "normalised": (4 * 6 + 6 * 5 + 5 * 2, 6 + 6),
    "flattened": (6 * 4 + 4 * 2, 6 + 4),  # flattening the input is free
    "flattened_units": (3 * 2 * 4 + 12 * 2, 12 + 12),
    "functional": (5 * 6 + 6 * 4 + 4 * 3, 6 + 6),
    "tied": (5 * 4 + 4 * 5, 4 + 5),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_sizes_of_a_chain_are_those_counted_by_hand(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    sizes = sc.measure(case.model, case.x)
    macs, alive = BY_HAND[name]
    params = sum(p.numel() for p in case.model.parameters())
    assert (sizes.params, sizes.macs, sizes.ram) == (params, macs, 8 * alive)
    assert (sizes.loss, sizes.accuracy) == (None, None)


def test_multiplications_of_branches_and_of_a_layer_used_twice_are_counted() -> None:
    case = CASES["branches"]()
    macs = 5 * 6 + 5 * 4 + 4 * 6 + 2 * 6 * 6 + 16 * 3
    assert sc.measure(case.model, case.x).macs == macs


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    everything = sc.Plan.from_kept({s: range(size) for s, size in case.sets.items()}, case.x)
    path = tmp_path / "all.safetensors"
    save(case.model, everything, path)
    assert sc.measure(case.model, case.x).bytes == path.stat().st_size


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6))
def test_parameters_and_multiplications_of_random_networks_are_counted(seed: int) -> None:
    network = RandomNetwork(seed).double()
    x = network.sample(3)
    counted = 0

    def count(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal counted
        counted += out[0].numel() * given[0].shape[-1]

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Linear)]
    network(x[:1])
    for hook in hooks:
        hook.remove()
    sizes = sc.measure(network, x)
    assert (sizes.params, sizes.macs) == (sum(p.numel() for p in network.parameters()), counted)


def test_the_number_of_samples_and_the_mode_do_not_matter() -> None:
    case = CASES["normalised"]()
    wanted = sc.measure(case.model, case.x)
    assert sc.measure(case.model.train(), case.x[:1]) == wanted
    assert sc.measure(case.model, case.x.repeat(50, 1)) == wanted
    assert case.model.training


def test_half_the_precision_is_half_the_memory() -> None:
    case = CASES["two_hidden"]()
    double, single = sc.measure(case.model, case.x), sc.measure(case.model.float(), case.x.float())
    assert single.ram * 2 == double.ram
    assert (single.params, single.macs) == (double.params, double.macs)


def test_tied_parameters_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    sizes = sc.measure(model, torch.zeros(2, 4))
    assert sizes.params == 16 + 4 + 4 + 10
    assert sizes.macs == 16 + 16 + 8
    assert sizes.ram == 4 * (4 + 4)


def test_sizes_read_as_one_line() -> None:
    case = CASES["two_hidden"]()
    sizes = sc.measure(case.model, case.x)
    assert str(sizes) == f"79 parameters, {sizes.bytes / 1000:.1f} kB on disk, 66 MACs, 96 B of activations"


def test_a_network_without_units_is_measured_too() -> None:
    sizes = sc.measure(nn.Linear(3, 2), torch.zeros(2, 3))
    assert (sizes.params, sizes.macs, sizes.ram) == (8, 6, 4 * (3 + 2))


def test_a_cut_network_costs_what_its_plan_says() -> None:
    case = CASES["branches"]()
    plan = sc.rank(case.model, (case.x, case.y), "cross_entropy", criterion="taylor1", progress=False)
    for n in (0, 3, len(plan.steps)):
        small = sc.measure(sc.cut(case.model, plan.prefix(n)), case.x)
        assert (small.params, small.macs) == (plan.states[n].params, plan.states[n].macs)
