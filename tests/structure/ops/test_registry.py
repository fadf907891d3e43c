"""Rules for operations of any namespace: found by their full names, and shown as what fails where they do."""

# ruff: noqa: ARG005 - all rules have one signature

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cases import gated_units
from installed import install, run_with
from secateur import Plan, Units, cut, find_units
from secateur.errors import ArgumentError, ModelError, VerificationError
from secateur.structure.axis import unify
from secateur.structure.keep_mask import KeepMask
from secateur.structure.ops.net import NotCoveredError
from secateur.structure.ops.registry import resize, rule
from secateur.structure.sliced_graph import slice_graph

LIBRARY = torch.library.Library("rulestests", "DEF")  # lives as long as this module
HERE = re.escape(__file__)


def operation(name: str, *tags: torch.Tag) -> Callable[[Tensor], Tensor]:
    """A new operation that doubles its input."""
    LIBRARY.define(f"{name}(Tensor x) -> Tensor", tags=tags)
    LIBRARY.impl(name, lambda x: 2 * x, "CompositeImplicitAutograd")
    made: Callable[[Tensor], Tensor] = getattr(torch.ops.rulestests, name)
    return made


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def units_with(function: Callable[[Tensor], Tensor]) -> Units:
    """Those of four neurons that an operation is done to."""
    return gated_units(nn.Sequential(nn.Linear(3, 4), Applied(function), nn.Linear(4, 2)), torch.ones(2, 3))


def reasons(units: Units) -> set[str]:
    return {one.reason for one in units.fixed} - {"a model input", "a model output"}


def test_a_name_is_that_of_its_namespace() -> None:
    softmax = operation("softmax")
    assert reasons(units_with(softmax)) == {"no rule for rulestests::softmax"}
    assert reasons(units_with(lambda x: x.softmax(-1))) == {
        "softmax normalises over it; include='all' removes it as sliced"
    }


def test_an_operation_tagged_as_pointwise_needs_no_rule() -> None:
    assert [s.size for s in units_with(operation("tagged", torch.Tag.pointwise))] == [4]


def test_a_rule_of_ones_own_is_found() -> None:
    doubled = operation("doubled")

    @rule("rulestests::doubled")
    def same(net: Any, node: Any, operands: Any) -> Any:
        return net.axes(operands["x"])

    assert [s.size for s in units_with(doubled)] == [4]


@pytest.mark.parametrize("name", ["linear", "aten::linear"])
def test_a_second_rule_for_an_operation_is_refused(name: str) -> None:
    with pytest.raises(
        ArgumentError, match=rf"^rule: aten::linear has one, .*\.linear \(line .*; .* of {HERE}\) cannot"
    ):
        rule(name)(lambda net, node, operands: [])
    with pytest.raises(ArgumentError, match=r"^resize: aten::view has one, .*\.resize_shape \(line "):
        resize("view")(lambda net, node, operands, left: {})
    assert [s.size for s in units_with(torch.tanh)] == [4]


def test_a_form_that_a_rule_says_it_does_not_cover_is_fixed_and_listed() -> None:
    partly = operation("partly")

    @rule("rulestests::partly")
    def refuses(net: Any, node: Any, operands: Any) -> Any:
        raise NotCoveredError("matrices")

    assert reasons(units_with(partly)) == {"the rule for rulestests::partly does not cover matrices"}


def test_axes_of_another_size_than_the_output_has_are_not_covered() -> None:
    turned = operation("turned")

    @rule("rulestests::turned")
    def turns(net: Any, node: Any, operands: Any) -> Any:
        return net.axes(operands["x"])[::-1]

    assert reasons(units_with(turned)) == {"the rule for rulestests::turned does not cover this form of it"}


def test_axes_of_different_sizes_are_not_one() -> None:
    odd = operation("odd")

    @rule("rulestests::odd")
    def joins(net: Any, node: Any, given: Any) -> Any:
        unify(*net.axes(given["x"]))
        return net.axes(given["x"])

    assert reasons(units_with(odd)) == {"the rule for rulestests::odd does not cover axes of different sizes as one"}


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (lambda net, node, operands: net.axes(operands["input"]), "KeyError: 'input'"),
        (lambda net, node, operands: None, "TypeError: 'NoneType' object is not iterable"),
        (lambda net, node, operands: [1, 2], "AttributeError: 'int' object has no attribute 'size'"),
    ],
    ids=["raises", "nothing", "no axes"],
)
def test_an_error_in_a_rule_is_shown_as_its_own(wrong: Any, what: str, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.id.replace(" ", "_")
    broken = operation(name)
    rule(f"rulestests::{name}")(wrong)
    message = rf"^the rule for rulestests::{name} failed at {name} \({re.escape(what)}\); it is .* of {HERE}\)$"
    with pytest.raises(ModelError, match=message) as caught:
        units_with(broken)
    assert type(caught.value.__cause__).__name__ == what.partition(":")[0]


def test_an_error_in_what_adapts_sizes_is_shown_as_its_own() -> None:
    adapted = operation("adapted")
    rule("rulestests::adapted")(lambda net, node, operands: net.axes(operands["x"]))

    @resize("rulestests::adapted")
    def fails(net: Any, node: Any, operands: Any, left: KeepMask) -> dict[str, Any]:
        return operands["size"]

    units = units_with(adapted)
    left = KeepMask({units["0"].axis: torch.tensor([True, False, True, True])})
    with pytest.raises(ModelError, match=r"^the rule for rulestests::adapted failed at adapted \(KeyError: 'size'\); "):
        slice_graph(units.captured, units.net, left)


def test_a_wrong_rule_makes_no_wrong_network() -> None:
    LIBRARY.define("sharpened(Tensor x) -> Tensor")
    LIBRARY.impl("sharpened", lambda x: x.softmax(-1), "CompositeImplicitAutograd")
    rule("rulestests::sharpened")(lambda net, node, operands: net.axes(operands["x"]))
    model = nn.Sequential(nn.Linear(3, 4), Applied(torch.ops.rulestests.sharpened), nn.Linear(4, 2))
    assert [s.size for s in find_units(model, torch.ones(2, 3))] == [4]
    with pytest.raises(VerificationError, match="the cut network differs from the gated one"):
        cut(model, Plan.from_kept({"0": [0, 2]}, torch.ones(2, 3)))


COVERED: dict[str, Callable[..., Tensor]] = {
    "softmax of a scalar": lambda h: h * h.sum().softmax(0),
    "sort of a scalar": lambda h: h * h.sum().sort(0).values,
    "cumsum of a scalar": lambda h: h * h.sum().cumsum(0),
    "no values, repeated": lambda h: torch.cat([h, h[:, :0].repeat(1, 2)], 1),
}
FORMS: dict[str, Callable[..., Tensor]] = {
    "atleast_2d does not cover several tensors at once": lambda h: torch.atleast_2d(h, 2 * h)[0],
    "take_along_dim does not cover a tensor taken as one row": lambda h: h.take_along_dim((h > 0).long()).view(h.shape),
    "view does not cover this form of it": lambda h: h * h.view(torch.int16).sum(1, True),
    "pad does not cover amounts that depend on the inputs":
        lambda h: nn.functional.pad(h, (0, 0, 0, h.shape[0]))[: h.shape[0]],
    "repeat_interleave does not cover repeats alone":
        lambda h: h + torch.repeat_interleave((h > 0).long().sum(0)).sum(),
}  # fmt: skip


@pytest.mark.parametrize("name", COVERED)
def test_scalars_and_nothing_do_not_hinder(name: str) -> None:
    assert [s.size for s in units_with(COVERED[name])] == [4]


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_no_rule_covers_are_listed(name: str) -> None:
    units = units_with(FORMS[name])
    assert len(units) == 0
    assert f"the rule for {name}" in reasons(units)


BROKEN = """
from secateur.structure.ops.registry import rule
rule("linear")(print)
"""
ASK = """
import torch, secateur
print(len(secateur.find_units(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)), torch.ones(2, 3))))
"""


def test_a_package_whose_rules_are_broken_is_named_and_takes_no_other_down(tmp_path: Path) -> None:
    install(tmp_path, "broken", {"broken": BROKEN}, {"secateur.rules": {"theirs": "broken"}})
    done = run_with(tmp_path, "-c", ASK)
    assert (done.returncode, done.stdout) == (0, "1\n")
    named = (
        "RuntimeWarning: entry point 'theirs' of broken, group 'secateur.rules', failed (ArgumentError: rule: aten::lin"
    )
    assert named in done.stderr
