"""Operations that sum over an axis: there its units are consumed."""

from __future__ import annotations

from typing import Any

from torch import fx

from secateur.structure.axis import Axis, fix, leaf, product, unify
from secateur.structure.keep_mask import KeepMask
from secateur.structure.rules.net import Axes, Net
from secateur.structure.rules.normalisation import reduced, without
from secateur.structure.rules.registry import name_of, require_form, resize, rule


@rule("linear", derivative="contract")
def linear(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """Dense: y[..., o] = Σ_i x[..., i] W[o, i] + b[o]."""
    x, weight = net.axes(given["input"]), net.axes(given["weight"])
    unify(x[-1], weight[-1])
    out = [*x[:-1], *weight[:-1]]
    if given["bias"] is not None:
        net.broadcast([out, net.axes(given["bias"])], "linear")
    net.consume(node, given["input"], len(x) - 1, given["weight"], len(weight) - 1)
    net.macs.append([*out, x[-1]])
    return out


@rule("bilinear")
def bilinear(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """y[..., o] = Σ_ij a[..., i] W[o, i, j] b[..., j] + c[o]; either input carries its own gates."""
    weight = net.axes(given["weight"])
    first, second = net.axes(given["input1"]), net.axes(given["input2"])
    lead = net.broadcast([first[:-1], second[:-1]], "bilinear") if len(first) > 1 else []
    for name, axes, dim in (("input1", first, 1), ("input2", second, 2)):
        unify(axes[-1], weight[dim])
        again = name == "input2" and given["input1"] is given["input2"]
        net.consume(node, given[name], len(axes) - 1, given["weight"], dim, occurrence=int(again))
    if given["bias"] is not None:
        unify(weight[0], net.axes(given["bias"])[0])
    net.macs.append([*lead, *weight])
    return [*lead, weight[0]]


@rule("matmul", "mm", "bmm", "mv", "dot", "vdot", derivative="contract")
def matmul(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """Products: y[..., n, m] = Σ_k a[..., n, k] b[..., k, m], leading dimensions broadcast, vectors without n or m."""
    return _matmul(net, node, *_factors(node))


def _factors(node: fx.Node) -> list[fx.Node]:
    """Both operands, also where they are the same one."""
    return node.all_input_nodes if len(node.all_input_nodes) == 2 else node.all_input_nodes * 2


@rule("outer", "ger")
def outer(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """All products of the values of two vectors."""
    return [axis for factor in _factors(node) for axis in net.axes(factor)]


@rule("addmm", derivative="contract")
def addmm(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """Biased: y = bias + a b."""
    out = _matmul(net, node, given["mat1"], given["mat2"])
    return net.broadcast([out, net.axes(given["self"])], "addmm")


@rule("baddbmm", derivative="contract")
def baddbmm(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """The same for a stack of matrices."""
    out = _matmul(net, node, given["batch1"], given["batch2"])
    return net.broadcast([out, net.axes(given["self"])], "baddbmm")


def _matmul(net: Net, node: fx.Node, left: fx.Node, right: fx.Node) -> Axes:
    a, b = net.axes(left), net.axes(right)
    inner = max(len(b) - 2, 0)
    unify(a[-1], b[inner])
    lead = net.broadcast([a[:-2], b[:-2]], "matmul") if max(len(a), len(b)) > 2 else []
    out = [*lead, *(a[-2:-1] if len(a) > 1 else []), *(b[-1:] if len(b) > 1 else [])]
    net.macs.append([*out, a[-1]])
    if net.depends_on_inputs(left) and net.depends_on_inputs(right):
        _attention(net, lead, [a[-1], *out[len(lead) :]])
    if net.depends_on_inputs(left) or not net.depends_on_inputs(right):
        net.consume(node, left, len(a) - 1, right, inner)
    else:
        net.consume(node, right, inner, left, len(a) - 1, occurrence=int(left is right))
    return out


def _attention(net: Net, lead: Axes, others: Axes) -> None:
    """A product of two activations has the form of attention: matrices of widths and positions, one for each head."""
    net.state_kind("head width", *others)
    net.state_kind("head", *lead)


@rule("tensordot", derivative="contract")
def tensordot(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """A sum over several dimensions of both."""
    sides = [(given["self"], given["dims_self"]), (given["other"], given["dims_other"])]
    if not net.depends_on_inputs(given["self"]):
        sides.reverse()  # an activation carries the gates, before a weight
    (left, dims), (right, others) = sides
    a, b = net.axes(left), net.axes(right)
    require_form([a[i].size for i in dims] == [b[j].size for j in others], "dimensions of one that are broadcast")
    for i, j in zip(dims, others, strict=True):
        unify(a[i], b[j])
        net.consume(node, left, i % len(a), right, j % len(b))
    rests = {left: _others(a, dims), right: _others(b, others)}
    net.macs.append([*a, *_others(b, others)])
    return [*rests[given["self"]], *rests[given["other"]]]


def _others(axes: Axes, dims: list[int]) -> Axes:
    return [axis for i, axis in enumerate(axes) if i not in {k % len(axes) for k in dims}]


@rule("cdist", "_cdist_forward", "_euclidean_dist")
def distances(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """(Σ |a − b|^p)^(1/p) of all pairs, to which a unit of zero in both adds nothing."""
    a, b = (net.axes(given[name]) for name in ("x1", "x2"))
    unify(a[-1], b[-1])
    for name, axes in (("x1", a), ("x2", b)):
        net.consume(node, given[name], len(axes) - 1, occurrence=int(name == "x2" and given["x1"] is given["x2"]))
    lead = net.broadcast([a[:-2], b[:-2]], "cdist") if max(len(a), len(b)) > 2 else []
    return [*lead, a[-2], b[-2]]


@rule("einsum", derivative="contract")
def einsum(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """Equal letters are equal axes; those that the result lacks are summed over."""
    tensors = given["tensors"]
    inputs, _, result = given["equation"].replace(" ", "").partition("->")
    terms = inputs.split(",")
    wide = max((len(net.axes(t)) - len(w) + 3 for t, w in zip(tensors, terms, strict=True) if "..." in w), default=0)
    dots = "".join(chr(0x2460 + i) for i in range(wide))  # a letter for each dimension that ... stands for
    terms = [
        term.replace("...", dots[len(dots) - (len(net.axes(t)) - len(term) + 3) :])
        for t, term in zip(tensors, terms, strict=True)
    ]
    if not _:
        result = dots + "".join(sorted(c for c in set("".join(terms)) - set(dots) if "".join(terms).count(c) == 1))
    found: dict[str, Axis] = {}
    for tensor, term in zip(tensors, terms, strict=True):
        for letter, axis in zip(term, net.axes(tensor), strict=True):
            found[letter] = net.broadcast([[found[letter]], [axis]], "einsum")[0] if letter in found else axis
    result = result.replace("...", dots)
    for letter in sorted(found.keys() - set(result)):
        _consume_letter(net, node, letter, list(zip(tensors, terms, strict=True)))
    net.macs.append(list(found.values()))
    if sum(map(net.depends_on_inputs, tensors)) > 1:
        shared = set(terms[0]).intersection(*terms) & set(result)
        _attention(net, [found[c] for c in shared], [axis for c, axis in found.items() if c not in shared])
    return [found[letter] for letter in result]


def _consume_letter(net: Net, node: fx.Node, letter: str, operands: list[tuple[fx.Node, str]]) -> None:
    """One operand carries the gates: an activation before a weight, never two (that would be g²)."""
    having = [(tensor, term.index(letter), i) for i, (tensor, term) in enumerate(operands) if letter in term]
    having.sort(key=lambda one: (-net.axes(one[0])[one[1]].size, not net.depends_on_inputs(one[0])))
    (tensor, dim, place), *others = having
    partner, partner_dim = others[0][:2] if len(others) == 1 and len(operands) == 2 else (None, 0)
    before = sum(other is tensor for other, _ in operands[:place])
    net.consume(node, tensor, dim, partner, partner_dim, occurrence=before)


@rule("scaled_dot_product_attention")
def attention(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """softmax(q kᵀ / √d) v: the width of q and k is consumed here, on q alone; that of v and the heads later."""
    q, k, v = (net.axes(given[name]) for name in ("query", "key", "value"))
    heads = [q[:-2], k[:-2], v[:-2]]
    if given["enable_gqa"] and q[-3].size != k[-3].size:
        shared = leaf(k[-3].size)
        unify(q[-3], product([shared, leaf(q[-3].size // k[-3].size)]))
        for axes in (k, v):
            unify(axes[-3], shared)
        heads = [q[:-2], [*k[:-3], q[-3]], [*v[:-3], q[-3]]]
    lead = net.broadcast(heads, "attention") if len(q) > 2 else []
    unify(q[-1], k[-1])
    unify(k[-2], v[-2])
    fix(k[-2], "attention normalises over it")
    if given["attn_mask"] is not None:
        net.broadcast([[*lead, q[-2], k[-2]], net.axes(given["attn_mask"])], "attention")
    net.consume(node, given["query"], len(q) - 1)
    net.macs += [[*lead, q[-2], k[-2], q[-1]], [*lead, q[-2], k[-2], v[-1]]]
    _attention(net, lead, [q[-1], v[-1]])
    return [*lead, q[-2], v[-1]]


@resize("scaled_dot_product_attention")
def resize_attention(net: Net, node: fx.Node, given: dict[str, Any], left: KeepMask) -> dict[str, Any]:
    """A scale given by default depends on the width: it stays what it was."""
    width = net.axes(given["query"])[-1]
    changed = given["scale"] is None and left.count(width) != width.size
    return {"scale": width.size**-0.5} if changed else {}


@rule("conv1d", "conv2d", "conv3d", derivative="contract")
def convolution(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """y[n, o] = Σ_i W[o, i] * x[n, i] + b[o] within each of G groups: channels are groups × members."""
    weight = net.axes(given["weight"])
    return _convolve(net, node, given, [weight[0], weight[1]])


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", derivative="contract")
def transposed_convolution(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """The same with the weight as [i, o]: groups × inputs, outputs of one group."""
    weight = net.axes(given["weight"])
    outputs = leaf(net.shape(node)[len(net.shape(node)) - len(weight) + 1])
    return _convolve(net, node, given, [outputs, weight[0]])


def _convolve(net: Net, node: fx.Node, given: dict[str, Any], channels: Axes) -> Axes:
    """The axes of outputs and inputs as the weight has them; one of them, of one group or of all, by its size."""
    x, weight = net.axes(given["input"]), net.axes(given["weight"])
    if not isinstance(given["groups"], int):
        reason = "convolved in as many groups as there are samples"
        net.fix_all([x, weight], reason)
        return net.fresh_outputs(node, reason)[0]
    at = len(x) - len(weight) + 1  # without a batch dimension it is the first
    inside, outside = _groups(net, node, x[at], channels, weight, given["groups"])
    if given["bias"] is not None:
        unify(outside, net.axes(given["bias"])[0])
    net.fix_all([weight[2:]], "a kernel position")
    net.fix_all([x[at + 1 :]], "a position")
    partner_dim = 1 if channels[1] is weight[1] else 0
    if inside[-1].size > 1 or given["groups"] == 1:
        net.consume(node, given["input"], at, given["weight"], partner_dim, product(inside))
    out = [*x[:at], outside, *net.fresh_outputs(node, "a position")[0][at + 1 :]]
    net.macs.append([*out, *weight[1:]] if channels[0] is weight[0] else [*x, *weight[1:]])
    return out


def _groups(net: Net, node: fx.Node, x: Axis, channels: Axes, weight: Axes, groups: int) -> tuple[Axes, Axis]:
    """What is summed over, groups with a leaf of their own, and the axis of the outputs."""
    outputs, inputs = channels
    if groups == 1:
        unify(x, inputs)
        if outputs is not weight[0]:
            unify(outputs, weight[1])
        return [inputs], outputs
    group, members = leaf(groups), leaf(x.size // groups)
    made = leaf(outputs.size // groups)
    unify(x, product([group, members]))
    unify(outputs, product([group, made]))
    unify(inputs, members if inputs is weight[1] else x)
    if outputs is not weight[0]:
        unify(weight[1], made)
    net.groups[node] = group
    return [leaf(groups), members], outputs


@resize("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def resize_convolution(net: Net, node: fx.Node, given: dict[str, Any], left: KeepMask) -> dict[str, Any]:
    """The number of groups."""
    return {"groups": left.count(net.groups[node])} if node in net.groups else {}


@rule("transformers::grouped_mm_fallback", "_grouped_mm")
def grouped_matmul(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """Mixture of experts: rows sorted by expert, y[n, m] = Σ_k x[n, k] W[expert(n), k, m]."""
    tensors = node.all_input_nodes
    x, weight = net.axes(tensors[0]), net.axes(tensors[1])
    if len(x) != 2 or len(weight) != 3:
        net.fix_all([x, weight], f"{name_of(node)} of other than rows and one matrix for each expert")
        return net.fresh_outputs(node, "of a grouped product")[0]
    fix(weight[0], "experts are chosen by index")
    unify(x[1], weight[1])
    net.consume(node, tensors[0], 1, tensors[1], 1)
    net.macs.append([x[0], weight[1], weight[2]])
    return [x[0], weight[2]]


@rule("sum", derivative="move")
def total(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """A sum over units is exact without those removed."""
    axes = net.axes(given["self"])
    dims = reduced(given.get("dim"), len(axes))
    for i in dims:
        net.consume(node, given["self"], i)
    return without(axes, dims, given.get("keepdim"))


@rule("linalg_vector_norm", "norm")
def vector_norm(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """(Σ |x|^p)^(1/p), to which a unit of zero adds nothing where p > 0."""
    order = given.get("ord", given.get("p"))
    axes = net.axes(given["self"])
    dims = reduced(given.get("dim"), len(axes))
    for i in dims:
        if isinstance(order, int | float) and order > 0:
            net.consume(node, given["self"], i)
        else:
            fix(axes[i], f"a norm of order {order} is taken over it")
    return without(axes, dims, given.get("keepdim"))
