"""Attention: softmax(q kᵀ / √d) v."""

from __future__ import annotations

from typing import Any

from torch import fx

from secateur.structure.axis import fix, leaf, product, unify
from secateur.structure.keep_mask import KeepMask
from secateur.structure.ops.net import Axes, Net, rank_of
from secateur.structure.ops.registry import Take, resize, rule


def state_heads(net: Net, lead: Axes, others: Axes) -> None:
    """State that a product of two activations has attention's form: matrices of widths and positions for each head."""
    net.state_kind("head width", *others)
    net.state_kind("head", *lead)


def select_attention(x: fx.Node, dim: int, take: Take) -> list[Any] | None:
    """Take one position of the queries."""
    plain = len(x.args) == 3 and not any(x.kwargs.get(name) for name in ("attn_mask", "is_causal", "dropout_p"))
    return [take(x.args[0], dim), *x.args[1:]] if plain and dim == rank_of(x) - 2 else None


@rule("scaled_dot_product_attention", select=select_attention)
def attention(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State softmax(q kᵀ / √d) v: the width of q and k is consumed here, on q alone; that of v and the heads later."""
    q, k, v = (net.axes(operands[name]) for name in ("query", "key", "value"))
    heads = [q[:-2], k[:-2], v[:-2]]
    if operands["enable_gqa"] and q[-3].size != k[-3].size:
        shared = leaf(k[-3].size)
        unify(q[-3], product([shared, leaf(q[-3].size // k[-3].size)]))
        for axes in (k, v):
            unify(axes[-3], shared)
        heads = [q[:-2], [*k[:-3], q[-3]], [*v[:-3], q[-3]]]
    lead = net.broadcast(heads, "attention") if len(q) > 2 else []
    unify(q[-1], k[-1])
    unify(k[-2], v[-2])
    fix(k[-2], "attention normalises over it")
    if operands["attn_mask"] is not None:
        net.broadcast([[*lead, q[-2], k[-2]], net.axes(operands["attn_mask"])], "attention")
    net.consume(node, operands["query"], len(q) - 1)
    net.macs += [[*lead, q[-2], k[-2], q[-1]], [*lead, q[-2], k[-2], v[-1]]]
    state_heads(net, lead, [q[-1], v[-1]])
    return [*lead, q[-2], v[-1]]


@resize("scaled_dot_product_attention")
def resize_attention(net: Net, node: fx.Node, operands: dict[str, Any], left: KeepMask) -> dict[str, Any]:
    """Keep a default scale what it was: it depends on the width."""
    width = net.axes(operands["query"])[-1]
    changed = operands["scale"] is None and left.count(width) != width.size
    return {"scale": width.size**-0.5} if changed else {}
