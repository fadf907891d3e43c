"""Other operations that sum over an axis: there its units are consumed."""

from __future__ import annotations

from typing import Any

from torch import fx

from secateur.structure.axis import Axis, fix, leaf, product, unify
from secateur.structure.ops.attention import state_heads
from secateur.structure.ops.dense import factors_of
from secateur.structure.ops.linear import Operands
from secateur.structure.ops.net import Axes, Net, require_form
from secateur.structure.ops.normalisation import reduced, without
from secateur.structure.ops.registry import name_of, rule


@rule("outer", "ger")
def outer(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """Return the axes of all products of the values of two vectors."""
    return [axis for factor in factors_of(node) for axis in net.axes(factor)]


@rule("tensordot", derivative="contract")
def tensordot(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State a sum over several dimensions of both."""
    sides = [(operands["self"], operands["dims_self"]), (operands["other"], operands["dims_other"])]
    if not net.depends_on_inputs(operands["self"]):
        sides.reverse()  # an activation carries the gates, before a weight
    (left, dims), (right, others) = sides
    a, b = net.axes(left), net.axes(right)
    require_form([a[i].size for i in dims] == [b[j].size for j in others], "dimensions of one that are broadcast")
    for i, j in zip(dims, others, strict=True):
        unify(a[i], b[j])
        net.consume(node, left, i % len(a), right, j % len(b))
    rests = {left: _others(a, dims), right: _others(b, others)}
    net.macs.append([*a, *_others(b, others)])
    return [*rests[operands["self"]], *rests[operands["other"]]]


def _others(axes: Axes, dims: list[int]) -> Axes:
    return [axis for i, axis in enumerate(axes) if i not in {k % len(axes) for k in dims}]


@rule("cdist", "_cdist_forward", "_euclidean_dist")
def distances(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State (Σ |a − b|^p)^(1/p) of all pairs, to which a unit of zero in both adds nothing."""
    a, b = (net.axes(operands[name]) for name in ("x1", "x2"))
    unify(a[-1], b[-1])
    for name, axes in (("x1", a), ("x2", b)):
        net.consume(
            node, operands[name], len(axes) - 1, occurrence=int(name == "x2" and operands["x1"] is operands["x2"])
        )
    lead = net.broadcast([a[:-2], b[:-2]], "cdist") if max(len(a), len(b)) > 2 else []
    return [*lead, a[-2], b[-2]]


def einsum_has_single_terms(operands: Operands) -> bool:
    """Return whether what one operand alone has is not summed over."""
    if len(operands["tensors"]) == 1:
        return True
    inputs, arrow, result = operands["equation"].replace(" ", "").partition("->")
    kept = result if arrow else [c for c in inputs if inputs.count(c) == 1]
    left, right = (set(term) for term in inputs.split(",")[:2])
    return len(operands["tensors"]) == 2 and (left ^ right) - {"."} <= set(kept)


@rule("einsum", derivative="contract", has_single_terms=einsum_has_single_terms)
def einsum(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State that equal letters are equal axes; those that the result lacks are summed over."""
    tensors = operands["tensors"]
    inputs, _, result = operands["equation"].replace(" ", "").partition("->")
    terms = inputs.split(",")
    wide = max((len(net.axes(t)) - len(w) + 3 for t, w in zip(tensors, terms, strict=True) if "..." in w), default=0)
    dots = "".join(chr(0x2460 + i) for i in range(wide))  # a letter for each dimension that ... stands for
    terms = [
        term.replace("...", dots[len(dots) - (len(net.axes(t)) - len(term) + 3) :])
        for t, term in zip(tensors, terms, strict=True)
    ]
    if not _:
        result = dots + "".join(sorted(c for c in set("".join(terms)) - set(dots) if "".join(terms).count(c) == 1))
    by_letter: dict[str, Axis] = {}
    for tensor, term in zip(tensors, terms, strict=True):
        for letter, axis in zip(term, net.axes(tensor), strict=True):
            by_letter[letter] = (
                net.broadcast([[by_letter[letter]], [axis]], "einsum")[0] if letter in by_letter else axis
            )
    result = result.replace("...", dots)
    for letter in sorted(by_letter.keys() - set(result)):
        _consume_letter(net, node, letter, list(zip(tensors, terms, strict=True)))
    net.macs.append(list(by_letter.values()))
    if sum(map(net.is_activation, tensors)) > 1:
        shared = set(terms[0]).intersection(*terms) & set(result)
        state_heads(net, [by_letter[c] for c in shared], [axis for c, axis in by_letter.items() if c not in shared])
    return [by_letter[letter] for letter in result]


def _consume_letter(net: Net, node: fx.Node, letter: str, operands: list[tuple[fx.Node, str]]) -> None:
    """Let one operand carry the gates: an activation before a weight, never two (that would be g²)."""
    having = [(tensor, term.index(letter), i) for i, (tensor, term) in enumerate(operands) if letter in term]
    having.sort(key=lambda operand: (-net.axes(operand[0])[operand[1]].size, not net.is_activation(operand[0])))
    (tensor, dim, place), *others = having
    partner, partner_dim = others[0][:2] if len(others) == 1 and len(operands) == 2 else (None, 0)
    before = sum(operand is tensor for operand, _ in operands[:place])
    net.consume(node, tensor, dim, partner, partner_dim, occurrence=before)


ROW_BYTES = 16  # a grouped product takes rows of multiples of so many bytes alone; a fallback stands for it


def _in_groups(axis: Axis, members: int) -> None:
    """State that only whole groups of neighbours can be removed; a network of other widths has another kernel."""
    if axis.size % members == 0:
        reason = f"a grouped product takes rows of multiples of {ROW_BYTES} bytes"
        unify(axis, product([leaf(axis.size // members), leaf(members, reason)]))


@rule("transformers::grouped_mm_fallback", "_grouped_mm")
def grouped_matmul(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State a mixture of experts: rows sorted by expert, y[n, m] = Σ_k x[n, k] W[expert(n), k, m]."""
    tensors = node.all_input_nodes
    x, weight = net.axes(tensors[0]), net.axes(tensors[1])
    if len(x) != 2 or len(weight) != 3 or len(tensors) != 3:
        net.fix_all([x, weight], f"{name_of(node)} of other than rows and one matrix for each expert")
        return net.fresh_outputs(node, "of a grouped product")[0]
    unify(weight[0], net.axes(tensors[2])[0])
    unify(x[1], weight[1])
    matrices = tensors[1].meta["val"]
    for axis in (weight[1], weight[2]) if matrices.stride(2) == 1 else (weight[1],):
        _in_groups(axis, ROW_BYTES // matrices.element_size())
    net.consume(node, tensors[0], 1, tensors[1], 1)
    net.macs.append([x[0], weight[1], weight[2]])
    return [x[0], weight[2]]


@rule("sum", derivative="move")
def total(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State that a sum over units is exact without those removed."""
    axes = net.axes(operands["self"])
    dims = reduced(operands.get("dim"), len(axes))
    for i in dims:
        net.consume(node, operands["self"], i)
    return without(axes, dims, operands.get("keepdim"))


@rule("linalg_vector_norm", "norm")
def vector_norm(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State (Σ |x|^p)^(1/p), to which a unit of zero adds nothing where p > 0."""
    order = operands.get("ord", operands.get("p"))
    axes = net.axes(operands["self"])
    dims = reduced(operands.get("dim"), len(axes))
    for i in dims:
        if isinstance(order, int | float) and order > 0:
            net.consume(node, operands["self"], i)
        else:
            fix(axes[i], f"a norm of order {order} is taken over it")
    return without(axes, dims, operands.get("keepdim"))
