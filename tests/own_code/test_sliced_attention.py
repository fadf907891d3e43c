"""Attention of `torch.nn` with heads, widths of queries and keys, and widths of values removed."""

from __future__ import annotations

import copy
import functools
import io
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur
from secateur.cutting.captured_forward import captured_parts
from secateur.own_code.module_attributes import update_attributes
from secateur.own_code.sliced_attention import SlicedAttention
from secateur.own_code.slices import keep_mask_of, sliced_copy
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
    """The settings of `nn.MultiheadAttention` that say what parameters there are."""

    other_widths: bool
    bias: bool
    bias_kv: bool
    zero_attn: bool

    @property
    def widths(self) -> tuple[int, int, int]:
        """Of queries, keys and values before they are projected."""
        return (QUERY, KEY, VALUE) if self.other_widths else (QUERY, QUERY, QUERY)


@functools.cache
def attention(form: Form) -> tuple[nn.MultiheadAttention, Units, list[str]]:
    """An attention, its units, and the names of its heads, widths of queries and widths of values."""
    torch.manual_seed(0)
    _, key, value = form.widths
    model = nn.MultiheadAttention(
        QUERY, HEADS, 0, form.bias, form.bias_kv, form.zero_attn, key, value, batch_first=True
    ).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    inputs = tuple(torch.randn(4, 5, width, dtype=torch.float64) for width in form.widths)
    units = secateur.find_units(model, inputs, include="all")
    heads, values = leaves(units.axes["out_proj.weight"][1])
    rows = leaves(units.axes["q_proj_weight" if form.other_widths else "in_proj_weight"][0])
    queries = next(axis for axis in rows if axis not in (heads, values))
    names = {unit_set.axis: unit_set.name for unit_set in units}
    return model, units, [names[axis] for axis in (heads, queries, values)]


forms = st.builds(Form, st.booleans(), st.booleans(), st.booleans(), st.booleans())
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


class Used(NamedTuple):
    """The way an attention is called."""

    batched: bool
    batch_first: bool
    dropout: float
    training: bool
    padding: str | None
    mask: str | None
    for_each_head: bool
    for_heads_left: bool
    causal: bool
    need_weights: bool
    average: bool


uses = st.builds(
    Used, st.booleans(), st.booleans(), st.sampled_from([0.0, 1.0]), st.booleans(), masks, masks, *[st.booleans()] * 5
)


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@settings(max_examples=100)
@given(forms, some_left, uses, st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)), st.integers(0, 99))
def test_it_computes_what_the_zeroed_original_does(
    form: Form, left: tuple[tuple[int, ...], ...], use: Used, sizes: tuple[int, int, int], seed: int
) -> None:
    model, units, names = attention(form)
    kept = dict(zip(names, left, strict=True))
    original, small = zeroed(model, units, kept), sliced(model, units, kept)
    assert isinstance(small, SlicedAttention) == (left != (tuple(range(HEADS)), *[tuple(range(WIDTH))] * 2))
    for module in (original, small):
        module.batch_first, module.dropout = use.batch_first, use.dropout
        module.train(use.training)
    torch.manual_seed(seed)
    samples, length, keys = sizes if use.batched else (1, *sizes[1:])
    inputs = [
        torch.randn(samples, n, w, dtype=torch.float64) for n, w in zip((length, keys, keys), form.widths, strict=True)
    ]
    inputs = [x[0] if not use.batched else x if use.batch_first else x.transpose(0, 1) for x in inputs]
    mask = a_mask(use.mask, (samples * HEADS, length, keys) if use.for_each_head else (length, keys))
    own_mask = mask
    if mask is not None and use.for_each_head and use.for_heads_left:
        own_mask = mask.reshape(samples, HEADS, length, keys)[:, left[0]].flatten(0, 1)
    padding = a_mask(use.padding, (samples, keys) if use.batched else (keys,))
    options: dict[str, Any] = {"key_padding_mask": padding, "need_weights": use.need_weights}
    options["is_causal"] = use.causal and mask is not None  # which are then taken instead of the mask, or with it
    expected, weights = original(*inputs, attn_mask=mask, average_attn_weights=False, **options)
    got, own_weights = small(*inputs, attn_mask=own_mask, average_attn_weights=use.average, **options)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    assert (own_weights is not None) == use.need_weights
    if use.need_weights:
        weights = weights[..., left[0], :, :]
        torch.testing.assert_close(own_weights, weights.mean(-3) if use.average else weights, rtol=0, atol=1e-9)


PLAIN = Form(other_widths=False, bias=True, bias_kv=False, zero_attn=False)


def cut_attention() -> tuple[nn.Module, nn.Module]:
    """An attention with one head of three, two of four widths of queries and one of values; the zeroed original."""
    model, units, names = attention(PLAIN)
    kept = dict(zip(names, [(0, 2), (1, 3), (1, 2, 3)], strict=True))
    return sliced(model, units, kept), zeroed(model, units, kept)


def test_it_says_its_sizes() -> None:
    small, _ = cut_attention()
    assert isinstance(small, SlicedAttention)
    assert (small.num_heads, small.kept_heads, small.heads_before, small.head_dim) == (2, (0, 2), 3, 2)
    assert (small.embed_dim, small.kdim, small.vdim) == (12, 12, 12)
    shapes = {name: tuple(parameter.shape) for name, parameter in small.named_parameters()}
    assert shapes == {
        "in_proj_weight": (4 + 4 + 6, 12), "in_proj_bias": (14,), "out_proj.weight": (12, 6), "out_proj.bias": (12,),
    }  # fmt: skip


def test_what_the_original_refuses_it_refuses() -> None:
    small, _ = cut_attention()
    x = torch.zeros(2, 5, 12, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="is_causal says that attn_mask is causal: give the mask, too"):
        small(x, x, x, is_causal=True)
    with pytest.raises(RuntimeError, match=r"attn_mask: got \(8, 5, 5\), not \(5, 5\) or \(4, 5, 5\)"):
        small(x, x, x, attn_mask=torch.zeros(8, 5, 5, dtype=torch.bool))
    with pytest.raises(RuntimeError, match=r"key_padding_mask: got \(5, 2\), not \(2, 5\)"):
        small(x, x, x, key_padding_mask=torch.zeros(5, 2, dtype=torch.bool))


@pytest.mark.parametrize("weights", [False, True])
def test_it_computes_in_lower_dtypes_and_under_autocast(weights: bool) -> None:
    small, original = cut_attention()
    x = torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 4
    expected = original(x, x, x, need_weights=False)[0].detach()
    for dtype in (torch.float16, torch.bfloat16):
        half, y = copy.deepcopy(small).to(dtype), x.to(dtype)
        got = half(y, y, y, torch.zeros(2, 5, dtype=torch.bool), need_weights=weights)[0]
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=0.05 * expected.abs().max().item())
    single, y = copy.deepcopy(small).float(), x.float()
    with torch.autocast("cpu", torch.bfloat16):
        got = single(y, y, y, torch.zeros(2, 5, dtype=torch.bool), need_weights=weights)[0]
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=0.05 * expected.abs().max().item())


def test_it_is_copied_written_read_exported_and_trained() -> None:
    small, original = cut_attention()
    x = torch.randn(3, 7, 12, dtype=torch.float64)
    expected = original(x, x, x)[0].detach()
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    read = torch.load(file, weights_only=False)
    copied = copy.deepcopy(small)
    nn.init.zeros_(copied.in_proj_weight)
    copied.load_state_dict(small.state_dict())
    length = torch.export.Dim("length", min=2)
    exported = torch.export.export(small, (x, x, x), dynamic_shapes=({1: length},) * 3).module()
    for module in (read, copied, exported):
        torch.testing.assert_close(module(x, x, x)[0], expected, rtol=0, atol=1e-9)
    shorter = x[:, :4]
    torch.testing.assert_close(exported(shorter, shorter, shorter)[0], original(shorter, shorter, shorter)[0].detach())
    small.train()(x, x, x)[0].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in small.parameters())


def test_its_own_units_are_heads_and_both_widths_and_it_is_cut_again() -> None:
    small, _ = cut_attention()
    inputs = tuple(torch.randn(4, 5, 12, dtype=torch.float64) for _ in range(3))
    units = secateur.find_units(small, inputs, include="all")
    assert sorted((unit_set.kind, unit_set.size) for unit_set in units) == [
        ("head", 2), ("head width", 2), ("head width", 3),
    ]  # fmt: skip
    kept = {unit_set.name: (unit_set.size - 1,) for unit_set in units}
    again = secateur.cut(small, secateur.Plan.from_kept(kept, inputs))
    assert isinstance(again, SlicedAttention)
    assert (again.num_heads, again.kept_heads, again.heads_before) == (1, (2,), 3)
    assert not captured_parts(again)
    mask = torch.rand(4 * 3, 6, 5) < 0.3  # for all heads that there were
    mask[..., 0] = False
    call = torch.randn(4, 6, 12, dtype=torch.float64), *inputs[1:]
    expected, weights = zeroed(small, units, kept)(*call, attn_mask=mask, average_attn_weights=False)
    got, own_weights = again(*call, attn_mask=mask)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(own_weights, weights[:, 1], rtol=0, atol=1e-9)


class Inherited(nn.MultiheadAttention):
    """Attention as PyTorch computes it."""


class Overridden(nn.MultiheadAttention):
    """Attention that computes something else."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output, weights = super().forward(*args, **kwargs)
        return output.tanh(), weights


@pytest.mark.parametrize("kind", [Inherited, Overridden])
def test_a_forward_of_its_own_stays(kind: type[nn.MultiheadAttention]) -> None:
    model = kind(12, 3, batch_first=True).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    units = secateur.find_units(model, (x, x + 1, x + 2), include="all")
    kept = {unit_set.name: tuple(range(unit_set.size - 1)) for unit_set in units}
    small = secateur.cut(model, secateur.Plan.from_kept(kept, (x, x + 1, x + 2)))
    assert isinstance(small, SlicedAttention) == (kind is Inherited)
    torch.testing.assert_close(small(x, x, x)[0], zeroed(model, units, kept)(x, x, x)[0], rtol=0, atol=1e-9)


# ------------------------------------------------------------ Transformers


def transformer(decoder: bool) -> nn.Module:
    torch.manual_seed(0)
    if decoder:
        return nn.Transformer(12, 4, 1, 1, 16, batch_first=True, activation="gelu").double().eval()
    layer = nn.TransformerEncoderLayer(12, 4, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2).double().eval()


def fewer(units: Units) -> dict[str, tuple[int, ...]]:
    """Units of which two of each set are gone: an even number of heads, for which PyTorch has kernels, is left."""
    return {unit_set.name: tuple(range(1, unit_set.size - 1)) for unit_set in units}


@pytest.mark.parametrize("decoder", [False, True])
def test_a_transformer_runs_by_its_own_code_at_every_length(decoder: bool) -> None:
    model = transformer(decoder)
    lengths = (5, 4) if decoder else (5,)
    inputs = tuple(torch.randn(3, n, 12, dtype=torch.float64) for n in lengths)
    units = secateur.find_units(model, inputs)
    assert {unit_set.kind for unit_set in units} == {"head", "head width", "feed-forward width"}
    kept = fewer(units)
    small = secateur.cut(model, secateur.Plan.from_kept(kept, inputs))
    assert not captured_parts(small)
    original = zeroed(model, units, kept)
    for n in (1, 9):
        other = tuple(torch.randn(2, n + i, 12, dtype=torch.float64) for i in range(len(lengths)))
        with torch.no_grad():
            torch.testing.assert_close(small(*other), original(*other), rtol=0, atol=1e-9)
        torch.testing.assert_close(small.train(False)(*other), original(*other), rtol=0, atol=1e-9)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_padding_is_ignored_without_gradients_and_with_them() -> None:
    model, x = transformer(decoder=False), torch.randn(3, 5, 12, dtype=torch.float64)
    units = secateur.find_units(model, x)
    kept = fewer(units)
    small = secateur.cut(model, secateur.Plan.from_kept(kept, x))
    original = zeroed(model, units, kept)
    padding = torch.arange(5) >= torch.tensor([[5], [3], [2]])
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            got, expected = (network(x, src_key_padding_mask=padding)[~padding] for network in (small, original))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_units_are_found_with_padding() -> None:
    model, x = transformer(decoder=False), torch.randn(3, 5, 12, dtype=torch.float64)
    call = {"src": x, "src_key_padding_mask": torch.arange(5) >= torch.tensor([[5], [3], [2]])}
    units = secateur.find_units(model, call)
    assert len(units) == 6
    small = secateur.cut(model, secateur.Plan.from_kept(fewer(units), call))
    assert not captured_parts(small)


def test_a_shrunk_transformer_is_written_and_loaded(tmp_path: Path) -> None:
    model = nn.Sequential(transformer(decoder=False), nn.Flatten(), nn.Linear(60, 3)).double()
    x, labels = torch.randn(16, 5, 12, dtype=torch.float64), torch.arange(16) % 3
    budget = secateur.Budget(remove_fraction=0.4, scope="set")
    result = secateur.shrink(model, (x, labels), "cross_entropy", budget=budget, criterion="magnitude")
    assert any(isinstance(module, SlicedAttention) for module in result.model.modules())
    assert not captured_parts(result.model)
    result.save(tmp_path / "small.safetensors")
    loaded = secateur.load(tmp_path / "small.safetensors", copy.deepcopy(model))
    assert [type(m) for m in loaded.modules()] == [type(m) for m in result.model.modules()]
    torch.testing.assert_close(loaded(x), result.model(x), rtol=0, atol=1e-12)
