"""Attention of `torch.nn` with heads, widths of queries and keys, and widths of values removed."""

from __future__ import annotations

import copy
import functools
import io
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur
from secateur.cutting.captured_forward import captured_parts
from secateur.own_code.module_attributes import update_attributes
from secateur.own_code.slices import keep_mask_of, sliced_copy
from secateur.own_code.sliced_attention import SlicedAttention
from secateur.structure.axis import leaves
from secateur.structure.keep_mask import KeepMask
from secateur.structure.units import Units

HEADS, WIDTH = 3, 4
QUERY, KEY, VALUE = 12, 8, 10


def zeroed(model: nn.Module, units: Units, kept: dict[str, tuple[int, ...]]) -> nn.Module:
    """The original with zeros in place of all weights that go: right where zeros stay zeros."""
    model, left = copy.deepcopy(model), keep_mask_of(units, kept)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for dim, axis in enumerate(units.axes[name]):
                shape = [-1 if d == dim else 1 for d in range(parameter.ndim)]
                parameter.mul_(left.mask(axis).reshape(shape))
    return model


def sliced(model: nn.Module, units: Units, kept: dict[str, tuple[int, ...]]) -> nn.Module:
    left: KeepMask = keep_mask_of(units, kept)
    small = sliced_copy(model, units, left)
    update_attributes(small, units.net, units.axes, left)
    return small


class Form(NamedTuple):
    """The settings of `nn.MultiheadAttention`."""

    other_widths: bool
    bias: bool
    bias_kv: bool
    zero_attn: bool
    batch_first: bool
    dropout: float


@functools.cache
def attention(form: Form) -> tuple[nn.MultiheadAttention, Units, list[str]]:
    """An attention, its units, and the names of its heads, widths of queries and widths of values."""
    torch.manual_seed(0)
    key, value = (KEY, VALUE) if form.other_widths else (QUERY, QUERY)
    model = nn.MultiheadAttention(
        QUERY, HEADS, form.dropout, form.bias, form.bias_kv, form.zero_attn, key, value, form.batch_first
    ).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    first = (4, 5) if form.batch_first else (5, 4)
    inputs = tuple(torch.randn(*first, width, dtype=torch.float64) for width in (QUERY, key, value))
    units = secateur.find_units(model.eval(), inputs, include="all")
    names = {unit_set.axis: unit_set.name for unit_set in units}
    heads, values = leaves(units.axes["out_proj.weight"][1])
    (queries,) = names.keys() - {heads, values, *leaves(units.axes["out_proj.weight"][0])} & {
        *leaves(units.axes[("q_proj_weight" if form.other_widths else "in_proj_weight")][0])
    }
    return model, units, [names[axis] for axis in (heads, queries, values)]


forms = st.builds(
    Form, st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.sampled_from([0.0, 1.0])
)
some_left = st.tuples(
    *(st.sets(st.integers(0, size - 1), min_size=1).map(sorted).map(tuple) for size in (HEADS, WIDTH, WIDTH))
)
masks = st.sampled_from([None, "bool", "float"])


def a_mask(kind: str | None, shape: tuple[int, ...]) -> Tensor | None:
    """A mask that leaves the first key."""
    if kind is None:
        return None
    mask = torch.rand(shape) < 0.5
    mask[..., 0] = False
    return mask if kind == "bool" else torch.randn(shape, dtype=torch.float64).masked_fill(mask, -torch.inf)


class Given(NamedTuple):
    """What a call is given beside queries, keys and values."""

    padding: str | None
    mask: str | None
    for_each_head: bool
    heads_left_alone: bool
    need_weights: bool
    average: bool
    causal: bool


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@settings(max_examples=300, phases=[Phase.generate])
@given(
    form=forms, left=some_left, more=st.builds(Given, masks, masks, *[st.booleans()] * 5), batched=st.booleans(),
    training=st.booleans(), sizes=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_it_computes_what_the_zeroed_original_does(
    form: Form, left: tuple[tuple[int, ...], ...], more: Given, batched: bool, training: bool,
    sizes: tuple[int, int, int], seed: int,
) -> None:  # fmt: skip
    model, units, names = attention(form)
    kept = dict(zip(names, left, strict=True))
    original, small = (make(model, units, kept).train(training) for make in (zeroed, sliced))
    torch.manual_seed(seed)
    samples, length, keys = sizes if batched else (1, *sizes[1:])
    widths = (QUERY, KEY, VALUE) if form.other_widths else (QUERY, QUERY, QUERY)
    inputs = [torch.randn(samples, n, w, dtype=torch.float64) for n, w in zip((length, keys, keys), widths, strict=True)]
    inputs = [x[0] if not batched else x if form.batch_first else x.transpose(0, 1) for x in inputs]
    lead = (samples * HEADS,) if more.for_each_head else ()
    mask = a_mask(more.mask, (*lead, length, keys))
    if more.causal and mask is not None:
        mask = mask & False | torch.ones(length, keys, dtype=torch.bool).triu(1) if more.mask == "bool" else mask
    small_mask = mask
    if mask is not None and more.for_each_head and more.heads_left_alone:
        small_mask = mask.reshape(samples, HEADS, length, keys)[:, left[0]].flatten(0, 1)
    padding = a_mask(more.padding, (samples, keys) if batched else (keys,))
    options: dict[str, Any] = {"key_padding_mask": padding, "need_weights": more.need_weights}
    options["is_causal"] = more.causal and mask is not None
    expected, weights = original(*inputs, attn_mask=mask, average_attn_weights=False, **options)
    got, own_weights = small(*inputs, attn_mask=small_mask, average_attn_weights=more.average, **options)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    assert (own_weights is None) == (weights is None)
    if weights is not None:
        weights = weights[..., left[0], :, :] if batched else weights[list(left[0])]
        torch.testing.assert_close(own_weights, weights.mean(-3) if more.average else weights, rtol=0, atol=1e-9)
