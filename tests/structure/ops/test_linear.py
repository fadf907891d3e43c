"""A layer by a kernel of one's own, known from one registration: all that a dense layer can do, it can."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.compensation.linear_layers import find_layers
from secateur.objective.gated_loss import GatedLoss, ones
from secateur.objective.leave_one_out import split_candidates
from secateur.saliency.criterion import criteria
from secateur.structure.ops.dense import dense, dense_axes
from secateur.structure.ops.registry import rule

LIBRARY = torch.library.Library("lineartests", "DEF")
LIBRARY.define("linear(Tensor? b, Tensor w, *, Tensor x) -> Tensor")
LIBRARY.impl("linear", lambda b, w, *, x: F.linear(x, w, b), "CompositeImplicitAutograd")


@rule("lineartests::linear", derivative="contract", linear=dense("x", "w", "b"), makes="width", memory="fresh")
def linear(net: Any, node: Any, operands: Any) -> Any:
    return dense_axes(net, node, operands["x"], operands["w"], operands["b"])


class Dense(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = torch.ops.lineartests.linear(self.bias, self.weight, x=x)
        return made


class Case:
    """A network with layers of a type, and data; positions where samples are sequences."""

    def __init__(self, layer: type[nn.Linear], positions: bool) -> None:
        torch.manual_seed(0)
        end = [nn.Flatten(), layer(18, 3)] if positions else [layer(6, 3)]
        widths = (nn.Tanh(), layer(7, 6, bias=False), nn.Sigmoid())
        self.model = nn.Sequential(layer(4, 7), *widths, *end).double()
        self.x = torch.randn(8, 3, 4).double() if positions else torch.randn(8, 4).double()
        self.data = self.x, torch.tensor([0, 1, 2, 0] * 2)
        self.units = sc.find_units(self.model, self.x)


@cache
def both(positions: bool) -> tuple[Case, Case]:
    return Case(Dense, positions), Case(nn.Linear, positions)


FORMS = pytest.mark.parametrize("positions", [False, True], ids=["vectors", "sequences"])


@FORMS
def test_its_units_are_found(positions: bool) -> None:
    mine, other = (case.units for case in both(positions))
    assert [s.size for s in mine] == [7, 6]
    assert str(mine) == str(other)
    assert [[(o.tensor, o.dim) for o in s.outgoing or ()] for s in mine] == [[("2.weight", 1)], [(mine_last(mine), 1)]]


def mine_last(units: sc.Units) -> str:
    return next(name for name in units.axes if name.endswith("weight") and name[0] in "45")


@FORMS
@pytest.mark.parametrize("granularity", ["unit", "weight"])
def test_every_criterion_says_of_it_what_it_says_of_a_dense_layer(granularity: Any, positions: bool) -> None:
    for name in criteria(granularity):
        mine, other = (
            sc.score(case.model, case.data, "cross_entropy", criterion=name, granularity=granularity, max_memory="1 GB")
            for case in both(positions)
        )
        assert mine.keys() == other.keys()
        for key in mine:
            torch.testing.assert_close(mine[key], other[key], rtol=1e-10, atol=1e-14, msg=f"{name} of {key}")


@FORMS
def test_the_oracle_updates_it_for_each_unit(positions: bool) -> None:
    for case, target in zip(both(positions), (torch.ops.lineartests.linear, torch.ops.aten.linear), strict=True):
        gated = GatedLoss(case.model, case.units, case.data, "cross_entropy", max_memory="1 GB")
        g = ones(case.model, case.units)
        stacks, rest = split_candidates(gated, g, torch.arange(case.units.total))
        assert rest == []
        updated = [[layer.target for layer in stack.updates] for stack, _ in stacks]
        assert updated == [[target.default], [target.default]]


@FORMS
def test_it_is_fitted_and_cut(positions: bool) -> None:
    layers = [[layer.weight for layer in find_layers(case.units)] for case in both(positions)]
    assert layers[0] == layers[1] == ["2.weight", mine_last(both(positions)[0].units)]
    mine, other = (
        sc.shrink(
            case.model, case.data, "cross_entropy", sc.Budget(remove_units=5), units=case.units, max_memory="1 GB",
            add_bias=True, progress=False,
        ) for case in both(positions)
    )  # fmt: skip
    assert type(mine.model[0]) is Dense
    assert mine.plan.kept == other.plan.kept
    assert mine.model[2].bias is not None
    assert (mine.model[2].out_features, mine.model[2].in_features) == tuple(mine.model[2].weight.shape)
    x = both(positions)[0].x
    torch.testing.assert_close(mine.model(x), other.model(x), rtol=1e-8, atol=1e-8)
    assert mine.captured == ()
