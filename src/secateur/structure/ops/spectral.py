"""Fourier transforms and complex numbers: what is transformed stays as it is, everything else passes through."""

from __future__ import annotations

from typing import Any

from torch import fx

from secateur.structure.axis import fix, leaf
from secateur.structure.ops.net import Axes, Net, require_form
from secateur.structure.ops.normalisation import reduced
from secateur.structure.ops.pointwise import pointwise
from secateur.structure.ops.registry import name_of, rule

PARTS = "a real and an imaginary part"


@rule("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft")
@rule("fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2", "fft_hfft2", "fft_ihfft2")
@rule("fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn", "fft_hfftn", "fft_ihfftn")
@rule("_fft_r2c", "_fft_c2r", "_fft_c2c", "fft_fftshift", "fft_ifftshift")
def transform(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State that each result depends on all positions along the dimensions that are transformed."""
    axes, fresh = net.axes(operands["self"]), net.fresh_outputs(node, f"{name_of(node)} mixes it")[0]
    dims = operands.get("dim")
    if dims is None and operands.get("s") is not None:
        dims = range(len(axes))[-len(operands["s"]) :]
    for i in reduced(None if dims is None else dims if isinstance(dims, int) else list(dims), len(axes)):
        fix(axes[i], f"{name_of(node)} mixes it")
        axes[i] = axes[i] if axes[i].size == fresh[i].size else fresh[i]
    return axes


@rule("view_as_complex", "view_as_complex_copy")
def view_as_complex(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State that the last dimension holds the parts of each number."""
    *axes, parts = net.axes(operands["self"])
    fix(parts, PARTS)
    return axes


@rule("view_as_real", "view_as_real_copy")
def view_as_real(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """Return a last dimension more, of the parts of each number."""
    return [*net.axes(operands["self"]), leaf(2, PARTS)]


rule("real", "imag", "complex", "polar", "conj", "_conj", "resolve_conj", "resolve_neg", "_neg_view")(pointwise)
rule("_conj_physical", "real_copy", "imag_copy", "_conj_copy")(pointwise)


@rule("cosine_similarity")
def cosine_similarity(net: Net, node: fx.Node, operands: dict[str, Any]) -> Axes:
    """State Σ a b / (‖a‖ ‖b‖), to which a unit adds nothing where it is zero in both: both carry its gates."""
    tensors = [operands["x1"], operands["x2"]]
    each = [net.axes(tensor) for tensor in tensors]
    out = net.broadcast(each, "cosine_similarity")
    require_form(bool(out), "scalars")
    dim = operands["dim"] % len(out)
    for i, (tensor, axes) in enumerate(zip(tensors, each, strict=True)):
        own = dim - len(out) + len(axes)
        require_form(own >= 0 and axes[own].size == out[dim].size, "a vector of another length")
        net.consume(node, tensor, own, occurrence=i * (tensors[0] is tensors[1]))
    net.macs.append(list(out))
    return [axis for i, axis in enumerate(out) if i != dim]
