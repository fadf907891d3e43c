"""Each family of operations between two dense layers: what can still be removed, and why the rest cannot.

Covers the rules of axes and sizes in secateur.structure.ops.attention, secateur.structure.ops.contraction,
secateur.structure.ops.creation, secateur.structure.ops.dense, secateur.structure.ops.indexing,
secateur.structure.ops.movement, secateur.structure.ops.net, secateur.structure.ops.normalisation,
secateur.structure.ops.pointwise, secateur.structure.ops.recurrent, secateur.structure.ops.spatial and
secateur.structure.ops.spectral.
"""

# ruff: noqa: ARG005 - all functions of the table have one signature

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from cases import gated_units
from rounding import assert_close_ulps
from secateur import Plan, Units, find_units, score
from secateur.cutting.cut import cut_units
from secateur.reference import gated_weights, leave_one_out
from secateur.structure.inputs import as_call


class Between(nn.Module):
    """A dense layer 4 → 6, anything, a dense layer → 2."""

    def __init__(self, function: Callable[..., Tensor], consumed: int, parts: dict[str, Callable[[], Any]]) -> None:
        super().__init__()
        self.first, self.function, self.last = nn.Linear(4, 6), function, nn.Linear(consumed, 2)
        for name, make in parts.items():
            setattr(self, name, make())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self, x, self.first(x)))


@dataclass(frozen=True)
class Example:
    """A function of (model, x, h) with the parts it uses; `positions` are there in x where not 0."""

    function: Callable[..., Tensor]
    sets: dict[str, int]
    fixed: dict[str, str] = field(default_factory=dict)
    parts: dict[str, Callable[[], Any]] = field(default_factory=dict)
    consumed: int = 6
    positions: int = 0

    def build(self) -> tuple[Between, Tensor]:
        torch.manual_seed(0)
        shape = (5, self.positions, 4) if self.positions else (5, 4)
        return Between(self.function, self.consumed, self.parts).double().eval(), torch.randn(shape).double()


@cache
def found(name: str) -> tuple[Between, Tensor, Units]:
    """The example's model, inputs and units, found once for all tests."""
    model, x = EXAMPLES[name].build()
    return model, x, gated_units(model, x)


def weight(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.randn(shape))


def dense(inputs: int, outputs: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(inputs, outputs)


def norm(size: int) -> Callable[[], nn.Module]:
    return lambda: nn.BatchNorm1d(size)


def both(reason: str) -> dict[str, str]:
    return {"first.weight[0]": reason, "last.weight[1]": reason}


def made(reason: str) -> dict[str, str]:
    return {"first.weight[0]": reason}


def sliced(reason: str) -> dict[str, str]:
    return {"first": f"{reason}; include='all' removes it as sliced"}


def write(y: Tensor, place: Any, value: Any) -> Tensor:
    """Write into a copy of a tensor, in place."""
    y = y.clone()
    y[place] = value
    return y


def chosen(y: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Write values where a mask is true, in place."""
    return write(y, mask, values[mask])


def segments(canvas: Tensor, *parts: Tensor) -> Tensor:
    """Fill a canvas with tensors one after the other, in place."""
    start = 0
    for part in parts:
        canvas[:, start : start + part.shape[1]] = part
        start += part.shape[1]
    return canvas


def interleaved(canvas: Tensor, *parts: Tensor) -> Tensor:
    """Fill a canvas with the columns of tensors in turn, in place."""
    for i, part in enumerate(parts):
        canvas[:, i :: len(parts)] = part
    return canvas


FREE = {"first": 6}
SEAM = {"last.weight[1][0]": "a boundary lies inside this group", "last.weight[1][1]": "it is one group alone"}
POSITIONS = {"last.weight[1]": "a model input"}
IN_FORWARD = "a tensor made in forward, not a parameter or buffer"

EXAMPLES = {
    # each value alone
    "activation": Example(lambda m, x, h: torch.tanh(h), FREE),
    "arithmetic": Example(lambda m, x, h: (1 - 2 * h) / (1 + h.abs()) ** 2, FREE),
    "a vector for each unit": Example(
        lambda m, x, h: h * m.scale + m.shift, FREE, {}, {"scale": weight(6), "shift": weight(6)}
    ),
    "a scalar": Example(lambda m, x, h: h * m.scale, FREE, {}, {"scale": weight()}),
    "where": Example(lambda m, x, h: torch.where(h > m.least, h, 0.1 * h), FREE, {}, {"least": weight(6)}),
    "another dtype": Example(lambda m, x, h: h.to(torch.float32).double(), FREE),
    "a residual add": Example(lambda m, x, h: h + m.back(torch.tanh(h)), FREE, {}, {"back": dense(6, 6)}),
    "one number for all units": Example(
        lambda m, x, h: h * m.one, FREE, {"one[0]": "mul broadcasts it"}, {"one": weight(1)}
    ),
    "a row for all samples": Example(
        lambda m, x, h: h + m.row, FREE, {"row[0]": "add broadcasts it"}, {"row": weight(1, 6)}
    ),
    "a layer of width one": Example(
        lambda m, x, h: h + m.narrow(x), FREE, {"narrow.weight[0]": "add broadcasts it"}, {"narrow": dense(4, 1)}
    ),
    "dropout": Example(lambda m, x, h: m.drop(h), FREE, {}, {"drop": lambda: nn.Dropout(0.5)}),
    # normalisation
    "batch_norm": Example(lambda m, x, h: m.norm(h), FREE, {}, {"norm": norm(6)}),
    "batch_norm without weights": Example(
        lambda m, x, h: m.norm(h), FREE, {}, {"norm": lambda: nn.BatchNorm1d(6, affine=False)}
    ),
    "batch_norm over positions": Example(
        lambda m, x, h: m.norm(h).sum(1), FREE, {"norm.weight[0]": "a model input"}, {"norm": norm(3)}, positions=3
    ),
    "statistics of the batch": Example(
        lambda m, x, h: F.batch_norm(h, None, None, training=True), {},
        made("batch_norm takes its statistics from the batch"),
    ),
    "softmax": Example(lambda m, x, h: h.softmax(-1), {}, sliced("softmax normalises over it")),
    "log_softmax": Example(lambda m, x, h: h.log_softmax(1), {}, sliced("log_softmax normalises over it")),
    "softmax over positions": Example(lambda m, x, h: h.softmax(1).sum(1), FREE, positions=3),
    "softmax over a factor": Example(
        lambda m, x, h: h.view(-1, 2, 3).softmax(1).flatten(1), {"first[1]": 3},
        {"first[0]": "softmax normalises over it; include='all' removes it as sliced"},
    ),
    # sums
    "sum": Example(lambda m, x, h: h * h.sum(-1, keepdim=True), FREE),
    "sum of everything": Example(lambda m, x, h: h + h.sum(), FREE),
    "sum over positions": Example(lambda m, x, h: h.sum(1), FREE, positions=3),
    "a norm": Example(lambda m, x, h: h / h.norm(dim=-1, keepdim=True), FREE),
    "the largest of all": Example(
        lambda m, x, h: h / torch.linalg.vector_norm(h, float("inf"), -1, keepdim=True), FREE
    ),
    "a number of nonzeros": Example(
        lambda m, x, h: h * h.norm(0, -1, keepdim=True), {}, made("a norm of order 0 is taken over it")
    ),
    "einsum": Example(
        lambda m, x, h: torch.einsum("ni,io->no", h, m.w), {"first": 6, "w": 5}, {}, {"w": weight(6, 5)}, 5
    ),
    "einsum with dots and without a result": Example(
        lambda m, x, h: torch.einsum("...i,io", h, m.w).sum(1), {"first": 6, "w": 5}, {}, {"w": weight(6, 5)}, 5,
        positions=3,
    ),
    "bilinear": Example(
        lambda m, x, h: m.both(h, torch.tanh(h)), {"first": 6, "both": 5}, {}, {"both": lambda: nn.Bilinear(6, 6, 5)}, 5
    ),
    # statistics over units
    "mean": Example(lambda m, x, h: h - h.mean(-1, keepdim=True), {}, sliced("a mean is taken over it")),
    "mean of everything": Example(lambda m, x, h: h - h.mean(), {}, sliced("a mean is taken over it")),
    "mean over positions": Example(lambda m, x, h: h.mean(1), FREE, positions=3),
    "variance": Example(
        lambda m, x, h: h / (1 + h.var(-1, unbiased=False, keepdim=True)), {}, sliced("var is taken over it")
    ),
    "maximum": Example(lambda m, x, h: h - h.amax(-1, keepdim=True), {}, sliced("amax is taken over it")),
    "maximum with its place": Example(
        lambda m, x, h: h - h.max(-1, keepdim=True).values, {}, sliced("max is taken over it")
    ),
    "the place of the maximum": Example(
        lambda m, x, h: h * h.max(-1, keepdim=True).indices, {}, made("mul counts along it")
    ),
    "the larger of two": Example(lambda m, x, h: torch.max(h, -2 * h), FREE),
    "layer_norm": Example(
        lambda m, x, h: m.norm(h), {}, sliced("layer_norm averages over it"), {"norm": lambda: nn.LayerNorm(6)}
    ),
    "rms_norm": Example(
        lambda m, x, h: m.norm(h), {}, sliced("rms_norm averages over it"), {"norm": lambda: nn.RMSNorm(6)}
    ),
    "a group norm over the seam of a cat": Example(
        lambda m, x, h: m.norm(torch.cat([m.other(x), h], 1)), {"other": 2},
        {f"first[{i}]": sliced("group_norm averages over it")["first"] for i in (0, 1)} | SEAM,
        {"other": dense(4, 10), "norm": lambda: nn.GroupNorm(4, 16)}, 16,
    ),
    "group norms over parts and over both": Example(
        lambda m, x, h: m.norm(torch.cat([m.inner(m.other(x)), h], 1)), {"other": 2},
        sliced("group_norm averages over it") | SEAM,
        {"other": dense(4, 10), "inner": lambda: nn.GroupNorm(5, 10), "norm": lambda: nn.GroupNorm(4, 16)}, 16,
    ),
    "all": Example(lambda m, x, h: h * (h > -0.3).all(-1, keepdim=True), {}, sliced("all is taken over it")),
    # some positions or units
    "cumsum": Example(lambda m, x, h: h.cumsum(-1), {}, sliced("cumsum goes along it")),
    "cumsum over positions": Example(lambda m, x, h: h.cumsum(1).sum(1), FREE, positions=3),
    "sort, which has two outputs": Example(lambda m, x, h: h.sort(-1).values, {}, both("sort orders it")),
    "sort of positions": Example(lambda m, x, h: h.sort(1).values[:, -1], FREE, positions=3),
    "flip": Example(lambda m, x, h: h.flip(-1), {}, made("flip reorders it")),
    "one unit": Example(lambda m, x, h: h * h[:, 2, None], {}, made("one position is selected")),
    "every unit alone": Example(
        lambda m, x, h: torch.stack(h.unbind(-1), -1), {},
        {"first.weight[0]": "it is unbound", "last.weight[1]": "it counts stacked tensors"},
    ),
    "units by index": Example(
        lambda m, x, h: h * h[:, m.place], {}, made("it is indexed"), {"place": lambda: nn.Buffer(torch.arange(6))}
    ),
    "every second unit": Example(
        lambda m, x, h: h[:, ::2], {"first": 3}, made("slice takes one of each group"), consumed=3
    ),
    "every second unit, counted from the end": Example(
        lambda m, x, h: h[:, -5::2], {"first": 3}, made("slice takes one of each group"), consumed=3
    ),
    "some units before others": Example(
        lambda m, x, h: torch.cat([h[:, 4:], torch.tanh(h[:, :4])], 1), {"first[0]": 4, "first[1]": 2}
    ),
    "halves": Example(lambda m, x, h: torch.mul(*h.chunk(2, -1)), {"first": 3}, consumed=3),
    "a gated half": Example(lambda m, x, h: F.glu(h), {"first": 3}, made("the halves of glu"), consumed=3),
    "parts in another order": Example(
        lambda m, x, h: torch.cat(h.split([2, 4], -1)[::-1], -1), {"first[0]": 2, "first[1]": 4}
    ),
    "units before constants": Example(
        lambda m, x, h: F.pad(torch.tanh(h), (0, 2), value=1.0), {"first": 6, "last.weight[1]": 2}, consumed=8
    ),
    "twice": Example(
        lambda m, x, h: h.repeat(1, 2) * m.other(x), {"first": 6, "other": 2}, {}, {"other": dense(4, 12)}, 12
    ),
    "scores with a mask of minus infinity": Example(
        lambda m, x, h: ((h @ h.mT + m.mask).softmax(-1) @ torch.tanh(h)).sum(1), FREE, {"mask[1]": "a model input"},
        {"mask": lambda: nn.Buffer(torch.full((3, 3), -torch.inf).triu(1))}, positions=3,
    ),
    "scores filled with minus infinity": Example(
        lambda m, x, h: (write(h @ h.mT, (slice(None), slice(1), slice(2, 3)), -torch.inf).softmax(-1) @ h).sum(1),
        FREE, positions=3,
    ),
    # frequencies and complex numbers
    "a spectrum of positions": Example(
        lambda m, x, h: torch.fft.irfft(torch.fft.rfft(h, dim=1) * m.scale, n=4, dim=1).sum(1), FREE, {},
        {"scale": weight(6)}, positions=4,
    ),
    "a spectrum of two dimensions": Example(
        lambda m, x, h: torch.fft.ifft2(torch.fft.fft2(h.unsqueeze(2), dim=(1, 2)), dim=(1, 2)).abs().sum((1, 2)), FREE,
        positions=4,
    ),
    "a spectrum of units": Example(
        lambda m, x, h: torch.fft.rfft(h).abs(), {},
        made("fft_rfft mixes it") | {"last.weight[1]": "fft_rfft mixes it"}, consumed=4,
    ),
    "a spectrum of all dimensions but two": Example(
        lambda m, x, h: torch.fft.fftn(h, s=(4, 6)).real.sum(1), {}, made("fft_fftn mixes it"), positions=4
    ),
    "turned as complex numbers": Example(
        lambda m, x, h: torch.view_as_real(
            torch.view_as_complex(h.unflatten(-1, (3, 2))) * torch.polar(torch.ones(3).double(), m.turn)
        ).flatten(-2), {"first": 3}, both("a real and an imaginary part"), {"turn": weight(3)},
    ),
    "a complex number for each unit": Example(
        lambda m, x, h: (torch.complex(h, m.other(x)).conj() ** 2).imag, FREE, {}, {"other": dense(4, 6)}
    ),
    "cosine similarity": Example(
        lambda m, x, h: h * F.cosine_similarity(h, m.other(x), -1)[:, None], FREE, {}, {"other": dense(4, 6)}
    ),
    "cosine similarity with itself and with prototypes": Example(
        lambda m, x, h: F.cosine_similarity(h[:, None], m.rows, -1) * F.cosine_similarity(h, h)[:, None],
        {"first": 6, "rows": 3}, {}, {"rows": weight(3, 6)}, 3,
    ),
    # written over in place
    "a segment written over": Example(
        lambda m, x, h: write(h, (slice(None), slice(1, 3)), h[:, 4:] ** 2),
        {"first[0]": 1, "first[1]": 2, "first[2]": 1},
    ),
    "every second unit written over": Example(
        lambda m, x, h: write(h, (slice(None), slice(0, None, 2)), m.other(x)), {"first": 3},
        made("slice_scatter writes over one of each group"), {"other": dense(4, 3)},
    ),
    "some units out of step written over": Example(
        lambda m, x, h: write(h, (slice(None), slice(0, 5, 4)), 0.0), {}, made("slice takes some of it")
    ),
    "a position written over": Example(lambda m, x, h: write(h, (slice(None), 1), 2.0).sum(1), FREE, positions=3),
    "a unit written over": Example(
        lambda m, x, h: write(h, (slice(None), 1), 2.0), {}, made("one position is selected")
    ),
    "zeros written where a mask is true": Example(lambda m, x, h: write(h, h < 0.1, 0.0), FREE),
    "values written where a mask is true": Example(
        lambda m, x, h: chosen(h, torch.tanh(m.other(x)), h < 0.1), FREE, {}, {"other": dense(4, 6)}
    ),
    "a vector written at masked positions": Example(
        lambda m, x, h: write(h, x[..., 0] < 0.1, m.token).sum(1), FREE, {}, {"token": weight(6)}, positions=3
    ),
    "a canvas like others, filled by segments": Example(
        lambda m, x, h: segments(torch.empty_like(h), h[:, 4:], torch.tanh(h[:, :4])), {"first[0]": 4, "first[1]": 2}
    ),
    "a canvas of zeros, filled in turn": Example(
        lambda m, x, h: interleaved(h.new_zeros(len(h), 12), h, m.other(x)), FREE,
        {"last.weight[1]": "slice_scatter writes over one of each group"}, {"other": dense(4, 6)}, 12,
    ),
    # no rule
    "no rule": Example(lambda m, x, h: h.renorm(2, 0, 1.0), {}, both("no rule for renorm")),
    "no rule for two outputs": Example(
        lambda m, x, h: torch.linalg.qr(h).Q.sum(1), {}, both("no rule for linalg_qr"), consumed=3, positions=3
    ),
    "no rule beside a branch": Example(
        lambda m, x, h: h + m.other(x).renorm(2, 0, 1.0), {},
        made("no rule for renorm") | {"other.weight[0]": "no rule for renorm"},
        {"other": dense(4, 6)},
    ),
    "a tensor made in forward": Example(
        lambda m, x, h: h * torch.tensor([1.0, 2, 3, 4, 5, 6], dtype=torch.float64), {}, made(IN_FORWARD)
    ),
    # products
    "matrix": Example(lambda m, x, h: torch.tanh(h @ m.w), {"first": 6, "w": 6}, {}, {"w": weight(6, 6)}),
    "a transposed matrix": Example(lambda m, x, h: h @ m.w.t(), {"first": 6, "w": 5}, {}, {"w": weight(5, 6)}, 5),
    "numpy's transpose": Example(lambda m, x, h: h @ m.w.T, {"first": 6, "w": 5}, {}, {"w": weight(5, 6)}, 5),
    "a matrix for each position": Example(
        lambda m, x, h: torch.bmm(h.transpose(0, 1), m.w).sum(0), {"first": 6, "w": 5}, {"w[0]": "a model input"},
        {"w": weight(3, 6, 5)}, 5, positions=3,
    ),
    "a vector": Example(lambda m, x, h: h * (h @ m.v)[:, None], FREE, {}, {"v": weight(6)}),
    "a vector from the left": Example(
        lambda m, x, h: h + m.v @ m.w, {"first": 6, "v[0]": 5}, {}, {"v": weight(5), "w": weight(5, 6)}
    ),
    "a matrix from the left": Example(
        lambda m, x, h: torch.matmul(m.w, h.transpose(1, 2)).sum(-1), {"first": 6, "w": 5}, {}, {"w": weight(5, 6)}, 5,
        positions=3,
    ),
    "a vector on the left of units": Example(
        lambda m, x, h: h * (m.v @ h.t()).unsqueeze(-1), FREE, {}, {"v": weight(6)}
    ),
    "functional weights": Example(
        lambda m, x, h: F.linear(torch.tanh(h), m.w, m.b), {"first": 6, "w": 5}, {},
        {"w": weight(5, 6), "b": weight(5)}, 5,
    ),
    "addmm": Example(
        lambda m, x, h: torch.addmm(m.b, h, m.w), {"first": 6, "b": 5}, {}, {"w": weight(6, 5), "b": weight(5)}, 5
    ),
    "addmm with one bias for all": Example(
        lambda m, x, h: torch.addmm(m.b, h, m.w), {"first": 6, "w": 5}, {"b[0]": "addmm broadcasts it"},
        {"w": weight(6, 5), "b": weight(1)}, 5,
    ),
    "linear with one bias for all": Example(
        lambda m, x, h: F.linear(h, m.w, m.b), {"first": 6, "w": 5}, {"b[0]": "linear broadcasts it"},
        {"w": weight(5, 6), "b": weight(1)}, 5,
    ),
    "units against units": Example(lambda m, x, h: (h @ h.t()) @ h, FREE),
    "a product of weights": Example(
        lambda m, x, h: h @ (m.up @ m.down), {"first": 6, "up[1]": 3, "down[1]": 6}, {},
        {"up": weight(6, 3), "down": weight(3, 6)},
    ),
    # moved
    "flattened positions": Example(lambda m, x, h: h.flatten(1), FREE, POSITIONS, consumed=18, positions=3),
    "positions last": Example(
        lambda m, x, h: h.transpose(1, 2).reshape(h.shape[0], -1), FREE, POSITIONS, consumed=18, positions=3
    ),
    "permute": Example(
        lambda m, x, h: h.permute(2, 0, 1).permute(1, 0, 2).flatten(1), FREE, POSITIONS, consumed=18, positions=3
    ),
    "two factors": Example(lambda m, x, h: h.view(-1, 2, 3).flatten(1), {"first[0]": 2, "first[1]": 3}),
    "two factors exchanged": Example(
        lambda m, x, h: h.unflatten(1, (2, 3)).transpose(-1, -2).reshape(-1, 6), {"first[0]": 2, "first[1]": 3}
    ),
    "squeeze and unsqueeze": Example(lambda m, x, h: h.unsqueeze(1).unsqueeze(-1).squeeze(3).squeeze(1), FREE),
    "squeeze every dimension": Example(lambda m, x, h: h.reshape(h.shape[0], 1, -1, 1).squeeze(), FREE),
    "batch and positions in one dimension": Example(
        lambda m, x, h: torch.tanh(h.flatten(0, 1)).view(h.shape[0], 3, -1).sum(1), FREE, positions=3
    ),
    "contiguous": Example(lambda m, x, h: h.t().contiguous().t().clone().detach(), FREE),
    # one after the other
    "cat": Example(
        lambda m, x, h: torch.cat([h, m.other(x)], -1), {"first": 6, "other": 3}, {}, {"other": dense(4, 3)}, 9
    ),
    "cat with itself": Example(lambda m, x, h: torch.cat([h, torch.tanh(h)], 1), FREE, consumed=12),
    "cat with the inputs": Example(lambda m, x, h: torch.cat([x, h], 1), FREE, consumed=10),
    "cat of positions": Example(lambda m, x, h: torch.cat([h, 2 * h], 1).sum(1), FREE, positions=3),
    "cat of other positions": Example(
        lambda m, x, h: torch.cat([h, m.other(x)], 1).sum(1), FREE, {}, {"other": dense(4, 6)}, positions=3
    ),
    "cat splits what it is added to": Example(
        lambda m, x, h: h + torch.cat([m.left(x), m.right(x)], -1), {"first[0]": 2, "first[1]": 4}, {},
        {"left": dense(4, 2), "right": dense(4, 4)},
    ),
    "cats with other boundaries": Example(
        lambda m, x, h: h * torch.cat([m.a(x), m.b(x)], -1) * torch.cat([m.b(x), m.a(x)], -1), {"first": 2}, {},
        {"a": dense(4, 2), "b": dense(4, 4)},
    ),
    "a boundary inside a group": Example(
        lambda m, x, h: torch.cat([m.a(x), m.b(x)], -1) + torch.tanh(h.view(-1, 3, 2)).flatten(1),
        {"first[0]": 2, "first[1]": 1, "first[2]": 1}, made("a boundary lies inside this group"),
        {"a": dense(4, 5), "b": dense(4, 1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_can_be_removed_and_why_the_rest_cannot(name: str) -> None:
    *_, units = found(name)
    assert {s.name: s.size for s in units} == EXAMPLES[name].sets
    ends = {"first.weight[1]": "a model input", "last.weight[0]": "a model output"}
    assert {f.name: f.reason for f in units.fixed} == ends | EXAMPLES[name].fixed


WITH_UNITS = [name for name, example in EXAMPLES.items() if example.sets]
WITHOUT_OUTGOING = {
    "sum", "sum of everything", "a norm", "the largest of all", "units against units", "a product of weights",
    "scores with a mask of minus infinity", "scores filled with minus infinity",
    "cosine similarity", "cosine similarity with itself and with prototypes",
}  # fmt: skip
WRITTEN_SIZES = {"two factors", "two factors exchanged", "softmax over a factor"}  # in forward: not cut as they are


@pytest.mark.parametrize("name", WITH_UNITS)
def test_outgoing_weights_are_known_where_only_weights_consume(name: str) -> None:
    *_, units = found(name)
    assert all(s.outgoing for s in units) == (name not in WITHOUT_OUTGOING)


@pytest.mark.parametrize("name", [name for name in WITH_UNITS if name not in WITHOUT_OUTGOING])
def test_a_gate_of_zero_is_a_factor_of_zero_on_the_outgoing_weights(name: str) -> None:
    model, x, units = found(name)
    y = torch.randn(len(x), 2, generator=torch.Generator().manual_seed(1)).double()
    rises = score(model, (x, y), "squared_error", units=units)
    expected = leave_one_out(model, units, (x,), y, half_squares)
    assert expected.abs().min() > 0
    torch.testing.assert_close(torch.cat(list(rises.values())), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in WITH_UNITS if name not in WRITTEN_SIZES])
def test_a_removed_unit_is_a_gate_of_zero(name: str) -> None:
    model, x, units = found(name)
    plan = Plan.from_kept({s.name: range(0, s.size, 2) for s in units}, x)
    small, difference = cut_units(model, units, plan, as_call(x))
    assert difference < 1e-9
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    if name not in WITHOUT_OUTGOING:
        torch.testing.assert_close(small(x), gated_by_weights(model, units, x), rtol=1e-10, atol=1e-10)


def half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum(1).mean()


def gated_by_weights(model: nn.Module, units: Units, x: Tensor) -> Tensor:
    """The outputs with every second unit's outgoing weights at zero."""
    gates = torch.cat([(torch.arange(s.size) % 2 == 0).double() for s in units])
    return functional_call(model, gated_weights(model, units, gates), (x,))


def rows(name: str, unit_set: str) -> dict[tuple[str, int], list[list[int]]]:
    *_, units = found(name)
    return {(s.tensor, s.dim): s.index.tolist() for s in units[unit_set].slices}


def test_a_unit_that_is_there_twice_has_a_slice_at_both_places() -> None:
    assert rows("cat with itself", "first")["last.weight", 1] == [[k, k + 6] for k in range(6)]


def test_a_unit_at_several_positions_has_a_slice_at_each() -> None:
    assert rows("flattened positions", "first")["last.weight", 1] == [[k, k + 6, k + 12] for k in range(6)]
    assert rows("positions last", "first")["last.weight", 1] == [[3 * k, 3 * k + 1, 3 * k + 2] for k in range(6)]


def test_the_segments_of_a_cat_split_the_layer_that_is_added() -> None:
    name = "cat splits what it is added to"
    assert rows(name, "first[0]") == {
        ("first.weight", 0): [[0], [1]], ("first.bias", 0): [[0], [1]], ("last.weight", 1): [[0], [1]],
        ("left.weight", 0): [[0], [1]], ("left.bias", 0): [[0], [1]],
    }  # fmt: skip
    assert rows(name, "first[1]") == {
        ("first.weight", 0): [[2], [3], [4], [5]], ("first.bias", 0): [[2], [3], [4], [5]],
        ("last.weight", 1): [[2], [3], [4], [5]], ("right.weight", 0): [[0], [1], [2], [3]],
        ("right.bias", 0): [[0], [1], [2], [3]],
    }  # fmt: skip


def test_the_factors_of_a_layer_are_rows_and_columns_of_its_units() -> None:
    assert rows("two factors", "first[0]")["last.weight", 1] == [[0, 1, 2], [3, 4, 5]]
    assert rows("two factors", "first[1]")["last.weight", 1] == [[0, 3], [1, 4], [2, 5]]
    assert rows("two factors exchanged", "first[0]")["first.weight", 0] == [[0, 1, 2], [3, 4, 5]]
    assert rows("two factors exchanged", "first[0]")["last.weight", 1] == [[0, 2, 4], [1, 3, 5]]


def test_batch_norm_has_four_numbers_for_each_unit() -> None:
    names = ["norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]
    assert {(name, 0) for name in names} <= set(rows("batch_norm", "first"))


WITHOUT_GATES = [name for name, example in EXAMPLES.items() if not example.sets]
SLICED = [name for name in WITHOUT_GATES if any("include='all'" in why for why in EXAMPLES[name].fixed.values())]


@pytest.mark.parametrize("name", SLICED)
def test_what_a_statistic_is_taken_over_is_removed_as_sliced(name: str) -> None:
    model, x, _ = found(name)
    units, keep = find_units(model, x, "all"), [1, 2, 5]
    assert [(s.name, s.size, s.removal) for s in units] == [("first", 6, "sliced")]
    assert {f.reason for f in units.fixed} == {"a model input", "a model output"}
    small, difference = cut_units(model, units, Plan.from_kept({"first": keep}, x), as_call(x))
    assert difference < 1e-12
    kept = deepcopy(model)
    kept.first.weight.data, kept.first.bias.data = model.first.weight[keep], model.first.bias[keep]
    kept.last.weight.data = model.last.weight[:, keep]
    if hasattr(kept, "norm"):
        kept.norm = type(kept.norm)(3).double()
    torch.testing.assert_close(small(x), kept(x), rtol=1e-12, atol=1e-12)
    gated = functional_call(model, gated_weights(model, units, torch.tensor([0, 1, 1, 0, 0, 1]).double()), (x,))
    assert (small(x) - gated).abs().max() > 1e-3


def test_units_that_a_slice_leaves_out_are_free() -> None:
    torch.manual_seed(0)
    model, x = Between(lambda m, x, h: h[:, 1:4], 3, {}).double(), torch.randn(5, 4).double()
    units = gated_units(model, x)
    assert {s.name: (s.size, len(s.consumers)) for s in units} == {
        "first[0]": (1, 0), "first[1]": (3, 1), "first[2]": (2, 0),
    }  # fmt: skip
    rises = score(model, (x, torch.randn(5, 2).double()), "squared_error", units=units)
    assert rises["first[2]"].tolist() == [0, 0]
    assert rises["first[1]"].abs().min() > 0
    small, _ = cut_units(model, units, Plan.from_kept({"first[2]": [0]}, x), as_call(x))
    assert_close_ulps(small(x), model(x))
    assert len(small.first.weight) == 5


ACTIVATIONS = [
    "CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid", "Mish",
    "PReLU", "RReLU", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softshrink", "Softsign", "Tanh",
    "Tanhshrink", "Identity", "Dropout",
]  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_leaves_the_units_free(name: str) -> None:
    model = nn.Sequential(nn.Linear(4, 6), getattr(nn, name)(), nn.Linear(6, 2)).eval()
    assert {s.name: s.size for s in find_units(model, torch.randn(3, 4))} == {"0": 6}
