"""Keep masks, gates and sliced copies."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from cases import CASES, Kept, random_kept
from secateur.cutting.slices import gates
from secateur.errors import ModelError, PlanError
from secateur.own_code.slices import keep_mask_of, sliced_copy
from secateur.reference import RandomNetwork


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def removed_positions(units: sc.Units, kept: Kept, name: str, dim: int) -> set[int]:
    """By the unit sets' own lists of slices."""
    return {
        position
        for unit_set in units
        for part in unit_set.slices
        if (part.tensor, part.dim) == (name, dim)
        for unit in range(unit_set.size)
        if unit not in kept[unit_set.name]
        for position in part.index[unit].tolist()
    }


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 100))
def test_every_tensor_is_the_old_one_without_the_removed_units_slices(seed: int, choice: int) -> None:
    network = RandomNetwork(seed).double()
    units = sc.find_units(network, network.sample(3))
    kept = random_kept(units, choice)
    small = sliced_copy(network, units, keep_mask_of(units, kept))
    assert [name for name, _ in tensors(small)] == [name for name, _ in tensors(network)]
    for (name, old), (_, new) in zip(tensors(network), tensors(small), strict=True):
        for dim in range(old.ndim):
            gone = removed_positions(units, kept, name, dim)
            old = old.index_select(dim, torch.tensor([i for i in range(old.shape[dim]) if i not in gone], dtype=int))
        assert torch.equal(new, old)  # bit by bit
        assert new.dtype == old.dtype


def test_slices_of_a_known_network_are_these() -> None:
    case = CASES["branches"]()
    units = sc.find_units(case.model, case.x)
    small = sliced_copy(case.model, units, keep_mask_of(units, {"left": (1, 4), "right": (0, 2, 3)}))
    old, new = dict(tensors(case.model)), dict(tensors(small))
    left, right = torch.tensor([1, 4]), torch.tensor([0, 2, 3])
    consumed = torch.tensor([1, 4, 6, 8, 9, 11, 14])  # left, right, left again
    wanted = {
        "left.weight": old["left.weight"][left],
        "left.bias": old["left.bias"][left],
        "right.weight": old["right.weight"][right],
        "right.bias": old["right.bias"][right],
        "back.weight": old["back.weight"][left][:, right],
        "back.bias": old["back.bias"][left],
        "shared.weight": old["shared.weight"][left][:, left],
        "shared.bias": old["shared.bias"][left],
        "last.weight": old["last.weight"][:, consumed],
        "last.bias": old["last.bias"],
    }
    assert new.keys() == wanted.keys()
    assert all(torch.equal(new[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("name", CASES)
def test_the_copy_shares_no_storage_and_views_nothing(name: str) -> None:
    case = CASES[name]()
    units = sc.find_units(case.model, case.x)
    for kept in (random_kept(units, 0), {}):
        small = sliced_copy(case.model, units, keep_mask_of(units, kept))
        old = {tensor.untyped_storage().data_ptr() for _, tensor in tensors(case.model)}
        for _, tensor in tensors(small):
            assert tensor.untyped_storage().data_ptr() not in old
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            assert tensor.is_contiguous()


def test_sets_left_out_of_a_plan_keep_all() -> None:
    case = CASES["two_hidden"]()
    units = sc.find_units(case.model, case.x)
    small = sliced_copy(case.model, units, keep_mask_of(units, {"2": (3, 0)}))
    assert torch.equal(small[0].weight, case.model[0].weight)  # type: ignore[index]
    assert torch.equal(small[2].weight, case.model[2].weight[[0, 3]])  # type: ignore[index]
    assert torch.equal(small[4].weight, case.model[4].weight[:, [0, 3]])  # type: ignore[index]


def test_gates_are_one_for_what_is_kept() -> None:
    case = CASES["two_hidden"]()
    g = gates(case.model, sc.find_units(case.model, case.x), {"2": (0, 3)})
    assert g.tolist() == [1, 1, 1, 1, 1, 1, 1, 0, 0, 1]
    assert g.dtype == torch.float64


def test_keep_masks_are_by_axis_and_only_of_the_sets_named() -> None:
    case = CASES["two_hidden"]()
    units = sc.find_units(case.model, case.x)
    keep_mask = keep_mask_of(units, {"2": (3, 0)})
    assert {axis: mask.tolist() for axis, mask in keep_mask.masks.items()} == {
        units["2"].axis: [True, False, False, True]
    }
    assert [keep_mask.count(s.axis) for s in units] == [6, 2]
    assert [keep_mask.indices(s.axis).tolist() for s in units] == [[0, 1, 2, 3, 4, 5], [0, 3]]


def test_the_keep_mask_of_an_axis_that_holds_units_many_times() -> None:
    case = CASES["flattened_units"]()
    units = sc.find_units(case.model, case.x)
    consumed = units.axes["3.weight"][1]
    keep_mask = keep_mask_of(units, {"0": (0, 3)})
    assert keep_mask.count(consumed) == 6
    assert keep_mask.indices(consumed).tolist() == [0, 3, 4, 7, 8, 11]
    assert [keep_mask.before(consumed, i) for i in (0, 1, 4, 7, 12)] == [0, 1, 2, 3, 6]


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        ({"1": (0,)}, "the plan keeps units of '1'; the model's unit sets are: 0, 2"),
        ({"0": (0,), "fc": (0,)}, "the plan keeps units of 'fc'; the model's unit sets are: 0, 2"),
        ({"0": ()}, "the plan keeps [] of '0', which has units 0 to 5"),
        ({"0": (0, 6)}, "the plan keeps [0, 6] of '0', which has units 0 to 5"),
        ({"2": (-1, 2)}, "the plan keeps [-1, 2] of '2', which has units 0 to 3"),
    ],
)
def test_a_plan_of_another_model_is_refused(kept: Kept, text: str) -> None:
    case = CASES["two_hidden"]()
    units = sc.find_units(case.model, case.x)
    for refused in (keep_mask_of, partial(gates, case.model)):
        with pytest.raises(PlanError) as caught:
            refused(units, kept)
        assert str(caught.value) == text


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    case = CASES["two_hidden"]()

    class Handle:
        def __deepcopy__(self, memo: object) -> None:
            raise TypeError("cannot copy a handle")

    units = sc.find_units(case.model, case.x)
    case.model.handle = Handle()  # type: ignore[assignment]
    with pytest.raises(ModelError) as caught:
        sliced_copy(case.model, units, keep_mask_of(units, {"0": (0,)}))
    assert str(caught.value) == "Sequential cannot be copied (TypeError: cannot copy a handle)"


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=["last", "first"])
@pytest.mark.parametrize("fitted", [True, False])
def test_the_memory_format_stays(memory_format: torch.memory_format, fitted: bool) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 3), nn.Flatten()]
    model, x = nn.Sequential(*layers).to(memory_format=memory_format), torch.randn(4, 3, 5, 5)
    plan = sc.Plan.from_kept({"0": [0, 2, 3], "2": [1, 4]}, x)
    small = sc.cut(model, plan, compensate=(x, None) if fitted else None)
    for weight in (small[i].weight for i in (0, 2, 4)):
        assert weight.stride() == torch.empty(weight.shape).to(memory_format=memory_format).stride()
    assert small[:5](x).is_contiguous(memory_format=memory_format)


def test_volumes_stay_channels_last() -> None:
    model = nn.Sequential(nn.Conv3d(2, 6, 2), nn.ReLU(), nn.Conv3d(6, 3, 2), nn.Flatten())
    x = torch.randn(2, 2, 3, 3, 3)
    small = sc.cut(model.to(memory_format=torch.channels_last_3d), sc.Plan.from_kept({"0": [0, 2, 3]}, x))
    assert [w.is_contiguous(memory_format=torch.channels_last_3d) for w in (small[0].weight, small[2].weight)] == [
        True
    ] * 2
