"""Axes against a plain evaluation of the expression they were made from."""

import math
import operator
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.structure.axis import (
    BATCH,
    Axis,
    cat,
    count,
    expand,
    find,
    fix,
    is_fixed,
    leaf,
    leaves,
    mark_sliced,
    product,
    unify,
)
from secateur.structure.keep_mask import KeepMask, Part

# An expression: a leaf, or ("cat" | "product", expressions). Leaves may occur twice.
Expression = Axis | tuple[str, list["Expression"]]

ONE = torch.ones(1, dtype=torch.float64)
patient = settings(deadline=None)  # the first call is slow
SIZES = st.sampled_from([1, 2, 3, 4, 6, 8, 12, 24])


@st.composite
def expressions(draw: st.DrawFn, size: int, pool: list[Axis], depth: int = 3) -> Expression:
    """Any expression of this size, over new leaves and those in the pool."""
    divisors = [d for d in range(2, size) if size % d == 0]
    kinds = ["leaf"] + (["cat"] if depth and size > 1 else []) + (["product"] if depth and divisors else [])
    kind = draw(st.sampled_from(kinds))
    if kind == "cat":
        first = draw(st.integers(1, size - 1))
        sizes = [first, size - first]
    elif kind == "product":
        first = draw(st.sampled_from(divisors))
        sizes = [first, size // first]
    else:
        known = [axis for axis in pool if axis.size == size]
        if known and draw(st.booleans()):
            return draw(st.sampled_from(known))
        pool.append(leaf(size))
        return pool[-1]
    return kind, [draw(expressions(n, pool, depth - 1)) for n in sizes]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Expression, Expression]:
    """Two expressions of the same size that may share leaves."""
    size = draw(SIZES)
    pool: list[Axis] = []
    return draw(expressions(size, pool)), draw(expressions(size, pool))


def build(expression: Expression) -> Axis:
    if isinstance(expression, Axis):
        return expression
    kind, parts = expression
    return {"cat": cat, "product": product}[kind]([build(part) for part in parts])


def evaluate(expression: Expression, values: dict[Axis, Tensor]) -> Tensor:
    """One value per position from the original leaves alone, whatever the axis made of them."""
    if isinstance(expression, Axis):
        return expand(expression, values, ONE)
    kind, parts = expression
    pieces = [evaluate(part, values) for part in parts]
    return torch.cat(pieces) if kind == "cat" else torch.stack([a * b for a in pieces[0] for b in pieces[1]])


def originals(expression: Expression) -> list[Axis]:
    return [expression] if isinstance(expression, Axis) else [x for part in expression[1] for x in originals(part)]


def free(*axes: Axis) -> list[Axis]:
    """The leaves below that can lose a unit: not fixed, and more than one."""
    return [one for one in dict.fromkeys(x for axis in axes for x in leaves(axis)) if not one.reason and one.size > 1]


def some_values(axes: list[Axis], seed: int = 0) -> dict[Axis, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {axis: torch.rand(axis.size, generator=generator, dtype=torch.float64) + 0.5 for axis in axes}


@st.composite
def masks_of(draw: st.DrawFn, axes: list[Axis]) -> dict[Axis, Tensor]:
    """Some units of each leaf kept."""
    kept = {axis: draw(st.lists(st.booleans(), min_size=axis.size, max_size=axis.size)) for axis in axes}
    return {axis: torch.tensor(flags) for axis, flags in kept.items()}


@given(st.data())
@patient
def test_an_axis_has_one_value_per_position_of_its_expression(data: st.DataObject) -> None:
    expression = data.draw(expressions(data.draw(SIZES), []))
    axis = build(expression)
    values = some_values(free(axis))
    torch.testing.assert_close(expand(axis, values, ONE), evaluate(expression, values), rtol=0, atol=1e-15)


@given(pairs())
@patient
def test_after_unify_both_sides_are_the_same_for_any_values_of_the_leaves(pair: tuple[Expression, Expression]) -> None:
    a, b = pair
    unify(build(a), build(b))
    values = some_values(free(*originals(a), *originals(b)))
    torch.testing.assert_close(evaluate(a, values), evaluate(b, values), rtol=0, atol=1e-14)


@given(pairs())
@patient
def test_a_removed_unit_is_removed_from_both_sides(pair: tuple[Expression, Expression]) -> None:
    a, b = pair
    unify(build(a), build(b))
    for axis in free(*originals(a), *originals(b)):
        for k in range(axis.size):
            gone = {axis: torch.ones(axis.size, dtype=torch.float64).index_fill(0, torch.tensor(k), 0)}
            assert evaluate(a, gone).equal(evaluate(b, gone))


@given(pairs())
@patient
def test_refinement_preserves_every_size(pair: tuple[Expression, Expression]) -> None:
    handles = [build(pair[0]), build(pair[1]), *originals(pair[0]), *originals(pair[1])]
    sizes = [axis.size for axis in handles]
    unify(handles[0], handles[1])
    assert [find(axis).size for axis in handles] == sizes
    assert [count(axis, {}) for axis in handles] == sizes
    assert [len(expand(axis, {}, ONE)) for axis in handles] == sizes


@given(st.data())
@patient
def test_count_is_the_number_of_positions_a_mask_keeps(data: st.DataObject) -> None:
    a, b = map(build, data.draw(pairs()))
    unify(a, b)
    masks = data.draw(masks_of(free(a, b)))
    kept = {axis: int(mask.sum()) for axis, mask in masks.items()}
    for axis in (a, b):
        mask = expand(axis, masks, torch.ones(1, dtype=torch.bool))
        assert mask.dtype == torch.bool
        assert int(mask.sum()) == count(axis, kept)


@given(pairs())
@patient
def test_unify_is_idempotent(pair: tuple[Expression, Expression]) -> None:
    a, b = map(build, pair)
    unify(a, b)
    handles = [a, b, *originals(pair[0]), *originals(pair[1])]

    def known() -> list[tuple[list[Axis], set[str | None]]]:  # what is fixed may be split further
        return [([x for x in leaves(axis) if not x.reason], {x.reason for x in leaves(axis)}) for axis in handles]

    before = known()
    unify(a, b)
    unify(b, a)
    assert known() == before


segments = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@given(st.data())
@patient
def test_two_cats_are_split_at_the_boundaries_of_both(data: st.DataObject) -> None:
    left = data.draw(segments)
    inner = data.draw(st.sets(st.integers(1, sum(left) - 1), max_size=3)) if sum(left) > 1 else set()
    right = [b - a for a, b in pairwise([0, *sorted(inner), sum(left)])]
    a, b = cat([leaf(n) for n in left]), cat([leaf(n) for n in right])
    unify(a, b)
    boundaries = sorted({*accumulate(left), *accumulate(right)})
    assert [one.size for one in leaves(a)] == [b - a for a, b in pairwise([0, *boundaries])]
    assert leaves(a) == leaves(b)
    assert not any(one.reason for one in leaves(a))


factors = st.lists(st.integers(2, 6), min_size=1, max_size=3)


@given(factors, factors)
@patient
def test_two_products_align_where_their_strides_divide_one_another(left: list[int], right: list[int]) -> None:
    right = [*right, math.prod(left)]
    left = [math.prod(right[:-1]), *left]  # the same number of positions
    a, b = product([leaf(n) for n in left]), product([leaf(n) for n in right])
    unify(a, b)
    strides = sorted({*accumulate(reversed(left), operator.mul), *accumulate(reversed(right), operator.mul)} | {1})
    aligned = all(large % small == 0 for small, large in pairwise(strides))
    assert (not any(one.reason for one in leaves(a) + leaves(b))) == aligned
    if aligned:
        assert [one.size for one in leaves(a)] == [large // small for small, large in pairwise(strides)][::-1]
        assert leaves(a) == leaves(b)


def test_a_product_is_refined_by_the_greatest_common_divisor() -> None:
    a, b = product([leaf(2), leaf(12)]), product([leaf(6), leaf(4)])
    unify(a, b)
    assert repr(a) == repr(b) == "(2 × 3 × 4)"


def test_a_leaf_takes_the_structure_of_what_it_meets() -> None:
    inner, flat = leaf(3), leaf(8)
    unify(flat, cat([product([leaf(2), inner]), leaf(2)]))
    assert repr(flat) == "((2 × 3) + 2)"
    assert inner in leaves(flat)


def test_the_segments_of_a_cat_are_whole_groups_of_a_product() -> None:
    outer, inner, short, long = leaf(3), leaf(4), leaf(4), leaf(8)
    unify(product([outer, inner]), cat([short, long]))
    assert repr(outer) == "(1 + 2)"
    assert repr(long) == "(2 × 4)"
    assert leaves(short) == leaves(inner)
    assert leaves(long) == [leaves(outer)[1], *leaves(inner)]


def test_a_factor_of_a_cat_is_a_factor_of_each_of_its_segments() -> None:
    outer, left, right = leaf(2), leaf(4), leaf(8)
    other, inner = leaf(6), leaf(4)
    unify(product([outer, cat([left, right])]), product([other, inner]))
    assert repr(left) == "4"
    assert repr(right) == "(2 × 4)"
    assert leaves(left) == leaves(inner) == [leaves(right)[1]]
    assert repr(other) == "(2 × (1 + 2))"


def test_a_factor_may_be_several_factors_of_a_segment() -> None:
    first, second, third, inner = leaf(2), leaf(3), leaf(2), leaf(6)
    segment = product([first, second, third])
    unify(product([leaf(2), cat([segment, leaf(6)])]), product([leaf(6), inner]))
    assert repr(inner) == "(3 × 2)"
    assert leaves(segment) == [first, *leaves(inner)]


def test_an_axis_beside_itself_ties_both_halves_of_what_it_meets() -> None:
    x, flat = leaf(3), leaf(6)
    unify(flat, cat([x, x]))
    assert leaves(flat) == [x, x]
    left, right = leaf(2), leaf(4)
    unify(flat, cat([left, right]))
    assert repr(x) == "(2 + 1)"
    assert leaves(right) == [leaves(x)[1], *leaves(x)]


def test_unify_is_transitive() -> None:
    a, b, c = leaf(12), cat([leaf(4), leaf(8)]), product([leaf(3), leaf(4)])
    unify(a, b)
    unify(c, a)
    assert leaves(a) == leaves(b) == leaves(c)


MISALIGNED = {
    "no common factor": (["product", 2, 3], ["product", 3, 2], "(2 × 3) and (3 × 2)"),
    "a segment that is no multiple": (["product", 2, ["cat", 3, 5]], ["product", 4, 4], "(2 × (3 + 5)) and (4 × 4)"),
    "a segment of other groups": (
        ["product", 2, ["cat", ["product", 3, 4], 6]], ["product", 6, 6], "(2 × ((3 × 4) + 6)) and (6 × 6)",
    ),
}  # fmt: skip


def written(form: int | list) -> Axis:
    """["cat", 3, 3] as an axis of new leaves."""
    return leaf(form) if isinstance(form, int) else {"cat": cat, "product": product}[form[0]](map_written(form[1:]))


def map_written(forms: list) -> list[Axis]:
    return [written(form) for form in forms]


@pytest.mark.parametrize(("left", "right", "both"), MISALIGNED.values(), ids=list(MISALIGNED))
def test_misaligned_axes_are_fixed_and_the_reason_names_both(left: list, right: list, both: str) -> None:
    a, b = written(left), written(right)
    unify(a, b)
    assert leaves(a)
    assert {one.reason for one in leaves(a) + leaves(b)} == {f"{both} should be the same axis and cannot be aligned"}


def test_what_is_aligned_inside_a_misalignment_stays_free() -> None:
    outer_a, inner_a, outer_b, inner_b = leaf(6), leaf(4), leaf(4), leaf(6)
    unify(product([outer_a, inner_a]), product([outer_b, inner_b]))
    common = leaves(inner_a)[-1]
    assert common is leaves(inner_b)[-1]
    assert (common.size, common.reason) == (2, None)
    reason = "(3 × 2) and (2 × 3) should be the same axis and cannot be aligned"
    assert [(one.size, one.reason) for one in leaves(outer_a)] == [(2, None), (3, reason)]
    assert [(one.size, one.reason) for one in leaves(outer_b)] == [(2, None), (2, reason)]
    assert leaves(outer_a)[0] is leaves(outer_b)[0]


def test_groups_without_a_common_factor_go_in_blocks_of_their_common_multiple() -> None:
    pairs, triples = leaf(6), leaf(4)
    a, b = product([pairs, leaf(2)]), product([triples, leaf(3)])
    unify(a, b)
    blocks = leaves(pairs)[0]
    assert (blocks.size, blocks.reason) == (2, None)
    kept = {blocks: torch.tensor([False, True])}
    assert expand(a, kept, ONE.bool()).tolist() == expand(b, kept, ONE.bool()).tolist() == [False] * 6 + [True] * 6
    assert all(one.reason for one in leaves(a) if one is not blocks)


def test_a_boundary_inside_a_group_keeps_that_group_alone_as_a_whole() -> None:
    groups, members, first, second = leaf(5), leaf(3), leaf(7), leaf(8)
    unify(cat([first, second]), product([groups, members]))
    assert [(one.size, one.reason) for one in leaves(groups)] == [
        (2, None), (1, "a boundary lies inside this group"), (2, None)
    ]  # fmt: skip
    assert [(one.size, one.reason) for one in leaves(members)] == [(1, None), (2, None)]
    before, _, after = leaves(groups)
    one, two = leaves(members)
    assert leaves(first) == [before, one, two, one]
    assert leaves(second) == [two, after, one, two]
    assert count(product([groups, members]), {before: 1, after: 1, two: 1}) == 3 * 2
    assert (count(first, {before: 1, two: 1}), count(second, {before: 1, two: 1})) == (3, 5)


@pytest.mark.parametrize("n", [1, 14])
def test_a_boundary_may_lie_inside_the_first_group_or_the_last(n: int) -> None:
    groups = leaf(5)
    unify(cat([leaf(n), leaf(15 - n)]), product([groups, leaf(3)]))
    sizes = [(one.size, one.reason is None) for one in leaves(groups)]
    assert sizes == ([(1, False), (4, True)] if n == 1 else [(4, True), (1, False)])


@pytest.mark.parametrize("other", [6, ["cat", 2, 4], ["product", 2, 3], ["cat", ["product", 2, 2], 2]], ids=str)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_fixed_reason_survives_linking_splitting_and_factoring(other: int | list, swapped: bool) -> None:
    a, b = leaf(6, "why"), written(other)
    unify(*((b, a) if swapped else (a, b)))
    assert {one.reason for one in leaves(a) + leaves(b)} == {"why"}


@pytest.mark.parametrize(
    ("make", "reasons", "other", "expected"),
    [
        (cat, {4: "why", 5: None}, [2, 7], [(2, "why"), (2, "why"), (5, None)]),
        (product, {2: None, 6: "why"}, [4, 3], [(2, None), (2, "why"), (3, "why")]),
    ],
    ids=["split", "factored"],
)
def test_a_reason_goes_with_the_pieces_of_its_leaf_and_no_others(make, reasons, other, expected) -> None:
    axis, met = make([leaf(size, why) for size, why in reasons.items()]), make(map_written(other))
    unify(axis, met)
    assert [(one.size, one.reason) for one in leaves(axis)] == expected
    assert leaves(axis) == leaves(met)


def test_the_first_reason_stays() -> None:
    axis = cat([leaf(2, "first"), leaf(3)])
    fix(axis, "second")
    fix(axis, "third")
    assert [one.reason for one in leaves(axis)] == ["first", "second"]


@pytest.mark.parametrize("other", [6, ["cat", 2, 4], ["product", 2, 3], ["cat", ["product", 2, 2], 2]], ids=str)
@pytest.mark.parametrize("swapped", [False, True])
def test_what_is_sliced_stays_so_and_is_not_fixed(other: int | list, swapped: bool) -> None:
    a, b = leaf(6), written(other)
    mark_sliced(a, "why")
    unify(*((b, a) if swapped else (a, b)))
    mark_sliced(b, "another")
    assert {(one.sliced, one.reason) for one in leaves(a) + leaves(b)} == {("why", None)}
    assert not is_fixed(a)


def test_a_leaf_can_be_sliced_and_fixed() -> None:
    axis, other = leaf(4), leaf(4, "fixed")
    mark_sliced(axis, "sliced")
    unify(axis, other)
    assert [(one.sliced, one.reason) for one in leaves(axis)] == [("sliced", "fixed")]
    assert is_fixed(axis)


@given(st.data())
@patient
def test_what_is_left_is_what_the_masks_keep(data: st.DataObject) -> None:
    axis = build(data.draw(expressions(data.draw(SIZES), [])))
    left = KeepMask(data.draw(masks_of(free(axis)[::2])))  # the others are whole
    kept = [bool(value) for value in expand(axis, {one: mask.double() for one, mask in left.masks.items()}, ONE)]
    assert left.mask(axis).tolist() == kept
    assert left.indices(axis).tolist() == [i for i, here in enumerate(kept) if here]
    assert left.count(axis) == left.size(axis, axis.size) == sum(kept)
    assert [left.before(axis, i) for i in range(axis.size + 1)] == [0, *accumulate(map(int, kept))]


def test_a_size_that_depends_on_the_inputs_is_a_part_of_what_it_was() -> None:
    units, batch = leaf(4), leaf(BATCH)
    left = KeepMask({units: torch.tensor([True, False, True, True])})
    asked = object()  # no number
    assert left.size(product([batch, units]), asked) == Part(asked, 3, 4)
    assert left.size(batch, asked) is asked
    assert left.size(units, 4) == 3


@pytest.mark.parametrize("lead", [(5,), (2, 3)])
@given(pair=pairs())
@settings(max_examples=30, deadline=None)
def test_expand_takes_leading_dimensions(lead: tuple[int, ...], pair: tuple[Expression, Expression]) -> None:
    axis, _ = map(build, pair)
    given_leaves = free(axis)[::2]  # the others are ones
    rows = [some_values(given_leaves, seed) for seed in range(math.prod(lead))]
    values = {one: torch.stack([row[one] for row in rows]).reshape(*lead, -1) for one in given_leaves}
    expected = torch.stack([expand(axis, row, ONE) for row in rows]).reshape(*lead, -1)
    got = expand(axis, values, ONE)
    assert got.shape == (*(lead if given_leaves else ()), axis.size)
    torch.testing.assert_close(got.expand(*lead, -1), expected, rtol=0, atol=0)


def test_expand_takes_the_dtype_of_its_last_argument() -> None:
    assert expand(cat([leaf(2), leaf(3)]), {}, torch.ones(1, dtype=torch.float16)).dtype == torch.float16


def test_size_one_and_size_zero_vanish() -> None:
    x = leaf(3)
    assert product([leaf(1), x, leaf(1)]) is x
    assert cat([leaf(0), x]) is x
    assert product([leaf(1), leaf(1)]).size == 1


@pytest.mark.parametrize("other", [4, ["cat", 1, 3], ["product", 2, 2]], ids=str)
def test_axes_of_different_sizes_are_never_the_same(other: int | list) -> None:
    with pytest.raises(AssertionError, match=r"^a rule unified axes of sizes 3 and 4$"):
        unify(leaf(3), written(other))
