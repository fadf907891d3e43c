"""Unit sets of small networks.

Covers also secateur.structure.unit_set and secateur.structure.infer.
"""

import sys
from collections import Counter
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from cases import CASES, Case
from secateur import Plan, Units, cut, find_units, score
from secateur.errors import ArgumentError, ModelError
from secateur.reference import RandomNetwork
from secateur.structure.axis import Axis
from secateur.structure.capture import capture
from secateur.structure.infer import infer
from secateur.structure.inputs import as_call
from secateur.structure.units import UnitSet, require_units

SETS = [(name, unit_set) for name in CASES for unit_set in CASES[name]().sets]


@cache
def found(name: str) -> tuple[Case, Units]:
    """A case and its units, found once for all tests."""
    made = CASES[name]()
    return made, find_units(made.model, made.x)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def removed(model: nn.Module, unit_set: UnitSet, unit: int) -> dict[str, Tensor]:
    """For each tensor which of its elements go with a unit: the union of its slices."""
    gone = {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in tensors(model).items()}
    for part in unit_set.slices:
        gone[part.tensor].index_fill_(part.dim, part.index[unit], True)
    return gone


@pytest.mark.parametrize("name", CASES)
def test_the_unit_sets_are_those_of_the_table(name: str) -> None:
    case, units = found(name)
    assert {s.name: s.size for s in units} == case.sets
    assert len(units) == len(case.sets)
    assert units.total == sum(case.sets.values())
    assert {(s.kind, s.removal) for s in units} == {("neuron", "gated")}
    assert units.places == [(s.name, k) for s in units for k in range(s.size)]


def test_the_unit_sets_are_in_the_order_of_computation() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.second, self.first = nn.Linear(4, 2), nn.Linear(5, 4), nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.second(self.first(x)))

    assert [s.name for s in find_units(Backwards(), torch.zeros(2, 3))] == ["first", "second"]


@pytest.mark.parametrize(("name", "unit_set"), SETS)
def test_the_cost_of_a_unit_is_what_its_slices_hold(name: str, unit_set: str) -> None:
    case, units = found(name)
    unit_set = units[unit_set]
    parameters = dict(case.model.named_parameters())
    for unit in range(unit_set.size):
        gone = removed(case.model, unit_set, unit)
        assert sum(int(gone[tensor].sum()) for tensor in parameters) == unit_set.params_per_unit
        assert sum(int(mask.sum()) * 8 for mask in gone.values()) == unit_set.bytes_per_unit


@pytest.mark.parametrize(("name", "unit_set"), [(n, s) for n, s in SETS if CASES[n]().sets[s] > 1])
def test_the_cost_of_a_unit_is_what_a_cut_frees(name: str, unit_set: str) -> None:
    case, units = found(name)
    unit_set = units[unit_set]
    small = cut(case.model, Plan.from_kept({unit_set.name: range(1, unit_set.size)}, case.x))
    before, after = [tensors(model) for model in (case.model, small)]
    freed = {name: before[name].numel() - after[name].numel() for name in before}
    assert sum(freed[name] for name, _ in case.model.named_parameters()) == unit_set.params_per_unit > 0
    assert sum(freed[name] * before[name].element_size() for name in before) == unit_set.bytes_per_unit > 0
    assert {name: tuple(t.shape) for name, t in after.items() if name in units.axes} == units.shapes(
        {unit_set.name: unit_set.size - 1}
    )
    assert units.params({unit_set.name: unit_set.size - 1}) == sum(p.numel() for p in small.parameters())
    assert units.bytes({unit_set.name: unit_set.size - 1}) == sum(t.nbytes for t in after.values())


@pytest.mark.parametrize("name", CASES)
def test_every_index_belongs_to_one_unit_or_to_none(name: str) -> None:
    case, units = found(name)
    owners = {(tensor, dim): [] for tensor, axes in units.axes.items() for dim in range(len(axes))}
    for unit_set in units:
        for part in unit_set.slices:
            assert part.index.shape[0] == unit_set.size
            owners[part.tensor, part.dim] += part.index.flatten().tolist()
    nothing = torch.zeros(units.total)
    for (tensor, dim), indices in owners.items():
        assert len(set(indices)) == len(indices)
        stays = units.expand(units.axes[tensor][dim], nothing).nonzero()[:, 0].tolist()
        assert sorted(indices + stays) == list(range(tensors(case.model)[tensor].shape[dim]))


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("tied", "one_unit")])
def test_a_factor_of_zero_on_the_outgoing_slices_is_a_removal(name: str) -> None:
    case, units = found(name)
    kept = {s.name: range(0, s.size, 2) for s in units}
    values = tensors(case.model)
    for unit_set in units:
        for part in unit_set.outgoing:
            gone = part.index[1::2].flatten()
            values[part.tensor] = values[part.tensor].index_fill(part.dim, gone, 0)
    expected = functional_call(case.model, values, (case.x,))
    small = cut(case.model, Plan.from_kept(kept, case.x))
    torch.testing.assert_close(small(case.x), expected, rtol=1e-12, atol=1e-12)


def test_an_unknown_name_lists_those_there_are() -> None:
    _, units = found("branches")
    with pytest.raises(ArgumentError, match=r"^unknown unit set 'fc1'; one of: left, right$"):
        units["fc1"]
    assert units["right"].size == 4


@pytest.mark.parametrize("name", CASES)
def test_the_table_shows_every_set_and_every_reason(name: str) -> None:
    _, units = found(name)
    text = str(units)
    assert repr(units) == text
    lines = [line.split() for line in text.splitlines()]
    assert f"{len(units)} unit sets, {units.total} units" in text
    assert f"{len(units.fixed)} axes are fixed" in text
    for s in units:
        cost = [str(s.params_per_unit), str(s.bytes_per_unit), "B", str(s.macs_per_unit)]
        assert [s.name, "neuron", str(s.size), *cost, *", ".join(s.consumed_by).split(), "gated"] in lines
    assert units.fixed
    for fixed in units.fixed:
        assert [fixed.name, str(fixed.size), *fixed.reason.split()] in lines


def test_the_table_of_a_known_network_is_this() -> None:
    _, units = found("branches")
    assert str(units) == (
        "2 unit sets, 10 units\n"
        "unit set  kind    size  params/unit  bytes/unit  MACs/unit  consumers     removal\n"
        "left      neuron     6           29       232 B         37  shared, last  gated\n"
        "right     neuron     4           15       120 B         14  back, last    gated\n"
        "\n"
        "2 axes are fixed\n"
        "fixed           size  why\n"
        "last.weight[0]     3  a model output\n"
        "left.weight[1]     5  a model input"
    )


class Fan(nn.Module):
    """One layer consumed by many."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.first, self.many = nn.Linear(4, 3), nn.ModuleList(nn.Linear(3, 2) for _ in range(n))

    def forward(self, x: Tensor) -> list[Tensor]:
        h = torch.tanh(self.first(x))
        return [layer(h) for layer in self.many]


def test_many_consumers_and_many_fixed_axes_are_counted() -> None:
    units = find_units(Fan(25), torch.zeros(2, 4))
    assert units["first"].consumed_by == [f"many.{i}" for i in range(25)]
    assert str(units) == (
        "1 unit sets, 3 units\n"
        "unit set  kind    size  params/unit  bytes/unit  MACs/unit  consumers                   removal\n"
        "first     neuron     3           55       220 B         54  many.0, many.1 and 23 more  gated\n"
        "\n"
        "26 axes are fixed\n"
        "fixed              and more  why\n"
        "many.24.weight[0]        24  a model output\n"
        "first.weight[1]              a model input"
    )


def test_inputs_and_outputs_are_fixed() -> None:
    _, units = found("one_hidden")
    assert [tuple(f) for f in units.fixed] == [
        ("2.weight[0]", 3, "a model output"),
        ("0.weight[1]", 5, "a model input"),
    ]


@pytest.mark.parametrize("name", CASES)
def test_macs_are_half_of_what_pytorch_counts_as_operations(name: str) -> None:
    case, units = found(name)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        case.model(case.x)
    assert counter.get_total_flops() == 2 * len(case.x) * units.macs({}) > 0


@pytest.mark.parametrize("name", [name for name in CASES if max(CASES[name]().sets.values()) > 1])
def test_macs_of_what_is_left_are_those_of_the_cut_network(name: str) -> None:
    case, units = found(name)
    kept = {s.name: -(-s.size // 2) for s in units}
    small = cut(case.model, Plan.from_kept({set_name: range(n) for set_name, n in kept.items()}, case.x))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        small(case.x)
    assert counter.get_total_flops() == 2 * len(case.x) * units.macs(kept)


@pytest.mark.parametrize(("name", "unit_set"), SETS)
def test_macs_of_a_unit_are_those_that_go_with_it(name: str, unit_set: str) -> None:
    _, units = found(name)
    size = units[unit_set].size
    assert units[unit_set].macs_per_unit == units.macs({}) - units.macs({unit_set: size - 1}) > 0


def test_macs_of_known_networks() -> None:
    _, units = found("branches")
    left, right = units["left"], units["right"]
    assert units.net.macs  # a product of sizes for each layer called
    assert len(units.net.macs) == len(["left", "right", "back", "shared", "shared", "last"])
    assert units.macs({}) == 5 * 6 + 5 * 4 + 4 * 6 + 2 * 6 * 6 + 16 * 3
    assert units.macs({"left": 2, "right": 3}) == 5 * 2 + 5 * 3 + 3 * 2 + 2 * 2 * 2 + (2 + 3 + 2) * 3
    assert (left.macs_per_unit, right.macs_per_unit) == (5 + 4 + 2 * (6 + 5) + 2 * 3, 5 + 6 + 3)
    _, units = found("flattened_units")
    assert units.macs({}) == 3 * 2 * 4 + 12 * 2
    assert units["0"].macs_per_unit == 3 * 2 + 3 * 2


def test_macs_behind_an_operation_without_a_rule_are_of_one_sample() -> None:
    class Summed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x).renorm(2, 0, 1.0))

    units = find_units(Summed(nn.Linear(4, 6), nn.Linear(6, 2)), torch.zeros(3, 4))
    assert units.macs({}) == 4 * 6 + 6 * 2


@pytest.mark.parametrize("name", CASES)
def test_collect_is_the_transpose_of_expand(name: str) -> None:
    _, units = found(name)
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(units.total, generator=generator, dtype=torch.float64)
    for axis in {axis: None for axes in units.axes.values() for axis in axes}:
        v = torch.randn(axis.size, generator=generator, dtype=torch.float64)
        linear = units.expand(axis, u) - units.expand(axis, torch.zeros_like(u))  # fixed positions are 1 in both
        torch.testing.assert_close(units.collect(axis, v) @ u, v @ linear, rtol=1e-12, atol=1e-12)


def test_expand_repeats_and_collect_sums_the_values_of_a_unit() -> None:
    _, units = found("flattened_units")
    axis: Axis = units.axes["3.weight"][1]
    assert units.expand(axis, torch.tensor([1.0, 2, 3, 4])).tolist() == [1, 2, 3, 4] * 3
    assert units.collect(axis, torch.arange(12.0)).tolist() == [0 + 4 + 8, 1 + 5 + 9, 2 + 6 + 10, 3 + 7 + 11]


def test_split_is_by_set() -> None:
    _, units = found("two_hidden")
    pieces = units.split(torch.arange(20).reshape(2, 10))
    assert {name: piece.tolist() for name, piece in pieces.items()} == {
        "0": [[0, 1, 2, 3, 4, 5], [10, 11, 12, 13, 14, 15]],
        "2": [[6, 7, 8, 9], [16, 17, 18, 19]],
    }


@pytest.mark.parametrize("name", CASES)
def test_the_shapes_of_the_whole_are_those_of_the_model(name: str) -> None:
    case, units = found(name)
    expected = {n: tuple(t.shape) for n, t in tensors(case.model).items() if n in units.axes}
    assert units.shapes({}) == expected
    assert {n for n, t in tensors(case.model).items() if t.ndim} <= set(expected)
    assert units.params({}) == sum(p.numel() for p in case.model.parameters())
    assert units.bytes({}) == sum(t.nbytes for t in tensors(case.model).values())


def test_shapes_of_what_is_left() -> None:
    _, units = found("normalised")
    assert units.shapes({"0": 2, "4": 3}) == {
        "0.weight": (2, 4), "0.bias": (2,), "1.weight": (2,), "1.bias": (2,), "1.running_mean": (2,),
        "1.running_var": (2,), "1.num_batches_tracked": (),
        "4.weight": (3, 2), "4.bias": (3,), "6.weight": (2, 3), "6.bias": (2,),
    }  # fmt: skip


seeds = st.integers(0, 2**32 - 1)


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_the_units_of_a_random_network_are_those_it_was_built_with(seed: int) -> None:
    network = RandomNetwork(seed).double()
    units = find_units(network, network.sample(3))
    assert {s.name: s.size for s in units} == network.sets
    sizes = {name: tensor.element_size() for name, tensor in tensors(network).items()}
    for unit_set in units:
        gone = removed(network, unit_set, 0)
        assert sum(int(gone[name].sum()) for name, _ in network.named_parameters()) == unit_set.params_per_unit
        assert sum(int(mask.sum()) * sizes[name] for name, mask in gone.items()) == unit_set.bytes_per_unit


@pytest.mark.parametrize("seed", range(4))
def test_the_units_are_the_same_every_time(seed: int) -> None:
    network = RandomNetwork(seed).double()
    one, other = (find_units(network, network.sample(n, seed=n)) for n in (1, 5))
    assert str(one) == str(other)
    for a, b in zip(one, other, strict=True):
        assert [(x.tensor, x.dim, x.index.tolist()) for x in a.slices] == [
            (x.tensor, x.dim, x.index.tolist()) for x in b.slices
        ]


class Parts(nn.Module):
    """Dense layers 4 → 6 and 6 → 2, what a test adds, and what it does with them."""

    def __init__(self, **added: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
        for name, module in added.items():
            self.add_module(name, module)
        self.double()


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()


def test_a_shared_layer_ties_what_goes_in_and_what_comes_out() -> None:
    class Shared(Parts):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.middle(torch.tanh(self.first(x))))
            return self.last(torch.tanh(self.middle(h)))

    units = find_units(Shared(middle=nn.Linear(6, 6)), X)
    assert {s.name: s.size for s in units} == {"first": 6}
    assert units["first"].params_per_unit == 4 + 1 + (6 + 5) + 1 + 2  # the corner of the square weight once
    assert len(units["first"].consumers) == 3


def test_tied_weights_are_one_tensor() -> None:
    class Tied(Parts):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(x)) * torch.sigmoid(self.again(x)))

    model = Tied(again=nn.Linear(4, 6))
    model.again.weight = model.first.weight
    units = find_units(model, X)
    assert {s.name: s.size for s in units} == {"first": 6}
    assert {f.name: f.reason for f in units.fixed} == {
        "last.weight[0]": "a model output",
        "first.weight[1]": "a model input",
    }
    assert {s.tensor for s in units["first"].slices} == {"first.weight", "first.bias", "again.bias", "last.weight"}
    assert units["first"].params_per_unit == 4 + 1 + 1 + 2
    assert units.params({}) == sum(p.numel() for p in model.parameters())
    small = cut(model, Plan.from_kept({"first": [0, 5]}, X))
    assert small.again.weight is small.first.weight
    assert small.again.weight.shape == (2, 4)


def test_a_weight_that_makes_and_consumes_units_has_no_outgoing_slices() -> None:
    _, units = found("tied")
    assert units["encode"].outgoing is None
    assert {(s.tensor, s.dim) for s in units["encode"].slices} == {("encode.weight", 0), ("encode.bias", 0)}
    assert units["encode"].params_per_unit == 5 + 1


def test_a_parameter_that_forward_does_not_use_has_no_units() -> None:
    class Unused(Parts):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(x)))

    units = find_units(Unused(middle=nn.Linear(6, 6)), X)
    assert {s.name: s.size for s in units} == {"first": 6}
    assert {"middle.weight[0]", "middle.weight[1]", "middle.bias[0]"} <= {f.name for f in units.fixed}


def test_a_buffer_that_is_no_parameter_costs_bytes_alone() -> None:
    class Scaled(Parts):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x) * self.scale)

    model = Scaled()
    model.register_buffer("scale", torch.randn(6).double())
    unit_set = find_units(model, X)["first"]
    assert (unit_set.params_per_unit, unit_set.bytes_per_unit) == (4 + 1 + 2, 8 * (4 + 1 + 2 + 1))


class Narrow(nn.Module):
    """One unit whose dimension a view drops."""

    def __init__(self, squeezed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.squeezed, self.narrow, self.last = squeezed, nn.Linear(4, 1), nn.Linear(3, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.narrow(x))
        return self.last(h.squeeze(-1) if self.squeezed else h.flatten(1))


@pytest.mark.parametrize("squeezed", [False, True])
def test_a_width_of_one_is_gated_or_fixed_but_never_without_effect(squeezed: bool) -> None:
    model, x, y = Narrow(squeezed), torch.randn(5, 3, 4).double(), torch.randn(5, 2).double()
    units = find_units(model, x)
    if "narrow" in [s.name for s in units]:
        rise = score(model, (x, y), "squared_error", units=units)["narrow"].item()
        without, with_it = model.last.bias.expand(5, 2), model(x)
        expected = 0.5 * ((without - y).square().sum(1).mean() - (with_it - y).square().sum(1).mean())
        assert rise == pytest.approx(expected.item(), rel=1e-12)
    else:
        assert ("narrow.weight[0]", 1) in [(f.name, f.size) for f in units.fixed]


def test_finding_axes_takes_work_in_proportion_to_the_number_of_blocks() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.first, self.last = nn.LayerNorm(4), nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.last(torch.relu(self.first(self.norm(x))))

    def calls(blocks: int) -> int:
        """How many Python functions are called."""
        events = Counter[str]()
        model = nn.Sequential(nn.Linear(4, 4), *(Block() for _ in range(blocks)), nn.Linear(4, 2))
        captured = capture(model, as_call(torch.ones(2, 4)))
        sys.setprofile(lambda _, event, __: events.update([event]))
        infer(captured)
        sys.setprofile(None)
        return events["call"]

    few, more, many = map(calls, (10, 20, 40))
    assert many - more <= 2.1 * (more - few)


def test_a_model_without_units_says_why() -> None:
    with pytest.raises(ModelError) as error:
        require_units(find_units(nn.Linear(3, 2), torch.zeros(2, 3)))
    assert str(error.value) == (
        "the model has no removable units: weight[0] (2): a model output; weight[1] (3): a model input"
    )


def test_a_model_without_parameters_has_no_units() -> None:
    units = find_units(nn.ReLU(), torch.zeros(2, 3))
    assert len(units) == units.total == units.params({}) == units.macs({}) == 0
    with pytest.raises(ModelError, match=r"^the model has no removable units: it has no parameters$"):
        require_units(units)


def test_a_weight_that_a_parametrisation_computes_can_be_made_constant() -> None:
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6))
    model, x = nn.Sequential(nn.Sequential(layer), nn.ReLU(), nn.Linear(6, 2)), torch.randn(3, 4)
    reasons = {fixed.name: fixed.reason for fixed in find_units(model, x).fixed}
    remove = "torch.nn.utils.parametrize.remove_parametrizations(model.0.0, 'weight') makes them constant"
    assert reasons["0.0"] == f"weights are computed by vdot over it ({remove}); include='all' removes it as sliced"
    nn.utils.parametrize.remove_parametrizations(layer, "weight")
    assert [(unit_set.name, unit_set.removal) for unit_set in find_units(model, x)] == [("0.0", "gated")]
