"""Attention of `torch.nn` with fewer heads, or with heads of other widths, than its own forward can compute with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.structure.keep_mask import KeepMask
from secateur.structure.ops.net import Axes


class SlicedAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with any number of heads, of any width of queries and keys, and any width of values.

    A sliced module becomes one: parameters keep their names, the widths are those of their shapes.

    Attributes:
        num_heads: The number of heads that are left.
        kept_heads: Their positions among the heads that there were, for masks that hold all of them.
        heads_before: The number of heads that there were.
        scale: The factor of the products of queries and keys: what it was before heads lost width.
    """

    kept_heads: tuple[int, ...]
    heads_before: int
    scale: float

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Return what `nn.MultiheadAttention` does: the outputs, and the weights where they are asked for.

        Raises:
            RuntimeError: `is_causal`, a hint about the mask, is given without one; or a mask has another shape.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal says that attn_mask is causal: give the mask, too")
        batched = query.dim() == 3
        q, k, v = self._heads_of([self._batch_first(x) for x in (query, key, value)])
        causal = is_causal and key_padding_mask is None and not need_weights
        padding = key_padding_mask if key_padding_mask is None or batched else key_padding_mask[None]
        mask = None if causal else self._mask(q, self._batch_first(key).shape[1], attn_mask, padding)
        values, weights = self._attended(q, k, v, mask, causal, need_weights)
        output = F.linear(values.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _batch_first(self, x: Tensor) -> Tensor:
        """Return inputs, of one sample or of several, as [N, length, width]."""
        return x[None] if x.dim() == 2 else x if self.batch_first else x.transpose(0, 1)

    def _heads_of(self, inputs: list[Tensor]) -> list[Tensor]:
        """Return queries, keys and values [N, heads, length, width]."""
        weights, biases = self.projections()
        projected = [F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True)]
        if self.bias_k is not None and self.bias_v is not None:
            for i, bias in enumerate((self.bias_k, self.bias_v), 1):
                projected[i] = torch.cat([projected[i], bias.repeat(projected[i].shape[0], 1, 1)], 1)
        n = self.num_heads
        heads = [torch.unflatten(x, -1, (n, x.shape[-1] // n)).transpose(1, 2) for x in projected]
        return [heads[0], *(F.pad(x, (0, 0, 0, 1)) for x in heads[1:])] if self.add_zero_attn else heads

    def projections(self) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
        """Return the weights and the biases that make queries, keys and values."""
        weights: Sequence[Tensor] = [
            w for w in (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight) if w is not None
        ]
        if not weights:
            values = self.out_proj.weight.shape[1]
            queries = (self.in_proj_weight.shape[0] - values) // 2
            weights = torch.split(self.in_proj_weight, [queries, queries, values])
        bias = cast("Tensor | None", self.in_proj_bias)
        biases = [None] * 3 if bias is None else torch.split(bias, [weight.shape[0] for weight in weights])
        return weights, biases

    def _mask(self, q: Tensor, keys: int, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
        """Return what is added to the products of queries and keys [1 or N, 1 or heads, L, S]; None for nothing.

        Raises:
            RuntimeError: A mask has another shape.
        """
        masks = [] if attn_mask is None else [_added(self._for_each_head(attn_mask, q, keys), q)]
        if key_padding_mask is not None:
            if tuple(key_padding_mask.shape) != (q.shape[0], keys):
                raise RuntimeError(f"key_padding_mask: got {tuple(key_padding_mask.shape)}, not {(q.shape[0], keys)}")
            masks.append(_added(key_padding_mask[:, None, None], q))
        more = (self.bias_k is not None) + self.add_zero_attn
        return F.pad(sum(masks[1:], masks[0]), (0, more)) if masks else None

    def _for_each_head(self, mask: Tensor, q: Tensor, keys: int) -> Tensor:
        """Return a mask [L, S] or [N · heads, L, S] as [1 or N, 1 or heads, L, S].

        Raises:
            RuntimeError: It has another shape.
        """
        samples, heads, length, _ = q.shape
        if tuple(mask.shape) == (length, keys):
            return mask[None, None]
        if tuple(mask.shape) == (samples * heads, length, keys):
            return mask.reshape(samples, heads, length, keys)
        if tuple(mask.shape) == (samples * self.heads_before, length, keys):
            return mask.reshape(samples, self.heads_before, length, keys)[:, list(self.kept_heads)]
        possible = f"{(length, keys)} or {(samples * heads, length, keys)}"
        raise RuntimeError(f"attn_mask: got {tuple(mask.shape)}, not {possible}")

    def _attended(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        if not need_weights:
            dropout = self.dropout if self.training else 0.0
            return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=self.scale), None
        products = q * self.scale @ k.transpose(-2, -1)
        weights = F.dropout((products if mask is None else products + mask).softmax(-1), self.dropout, self.training)
        return weights @ v, weights


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask as what is added: -inf where a mask of bools is True."""
    return mask if mask.is_floating_point() else torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)


def slice_attention(module: nn.MultiheadAttention, axes: Mapping[str, Axes], keep_mask: KeepMask, path: str) -> None:
    """Make a sliced module of `torch.nn` compute with the heads and the widths that are left.

    Args:
        module: The module, its parameters sliced; those that override its forward stay as they are.
        axes: The axes of the network's parameters.
        keep_mask: The units that stay.
        path: The module's path in the network.
    """
    own = [axis for name, _ in module.named_parameters(path) for axis in axes.get(name, ())]
    sliced = any(keep_mask.count(axis) != axis.size for axis in own)
    if not sliced or type(module).forward not in (nn.MultiheadAttention.forward, SlicedAttention.forward):
        return
    left = _rows_left(module, axes, keep_mask, path)
    heads = left[0].any(1)
    if all(torch.equal(rows, heads[:, None] & rows.any(0)) for rows in left):  # all heads have the same widths
        _become_sliced(module, heads.nonzero()[:, 0].tolist())


def _rows_left(module: nn.MultiheadAttention, axes: Mapping[str, Axes], keep_mask: KeepMask, path: str) -> list[Tensor]:
    """Return which rows of queries, keys and values are left [heads, width]."""
    prefix = f"{path}." if path else ""
    rows = [axes.get(f"{prefix}{name}_proj_weight") for name in "qkv"]
    masks = [keep_mask.mask(row) for row, _ in filter(None, rows)]
    if not masks:
        values = axes[f"{prefix}out_proj.weight"][1].size
        whole = keep_mask.mask(axes[f"{prefix}in_proj_weight"][0])
        masks = list(torch.split(whole, [(len(whole) - values) // 2] * 2 + [values]))
    return [mask.reshape(module.num_heads, -1) for mask in masks]


def _become_sliced(module: nn.MultiheadAttention, heads: list[int]) -> None:
    """Let a module whose parameters are sliced compute by them.

    Args:
        module: The module, with the numbers that it had before.
        heads: The heads left, of these.
    """
    sliced = cast("SlicedAttention", module)
    if not isinstance(module, SlicedAttention):
        module.__class__ = SlicedAttention
        sliced.scale, sliced.heads_before = module.head_dim**-0.5, module.num_heads
        sliced.kept_heads = tuple(range(module.num_heads))
    sliced.kept_heads = tuple(sliced.kept_heads[head] for head in heads)
    sliced.num_heads = len(heads)
    sliced._qkv_same_embed_dim = False  # else layers of `torch.nn` call a kernel that knows no other widths
    weights, _ = sliced.projections()
    sliced.embed_dim, sliced.kdim, sliced.vdim = (weight.shape[1] for weight in weights)
    sliced.head_dim = weights[0].shape[0] // len(heads)
