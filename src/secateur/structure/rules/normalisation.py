"""Normalisation by statistics that are stored, and so independent of the other units."""

from __future__ import annotations

from typing import Any

from torch import fx

from secateur.structure.axis import unify
from secateur.structure.rules.net import Axes, Net
from secateur.structure.rules.registry import rule


@rule("batch_norm", derivative="pointwise")
def batch_norm(net: Net, node: fx.Node, given: dict[str, Any]) -> Axes:
    """Each channel (dimension 1) with its own four numbers; statistics of the batch itself mix samples."""
    return _batch_norm(net, given)


def _batch_norm(net: Net, given: dict[str, Any]) -> Axes:
    axes = net.axes(given["input"])
    for name in ("weight", "bias", "running_mean", "running_var"):
        if given[name] is not None:
            unify(axes[1], net.axes(given[name])[0])
    if given.get("training"):
        net.fix_all([axes], "batch_norm takes its statistics from the batch")
    return axes


@rule("_native_batch_norm_legit_no_training", derivative="pointwise")
def functional_batch_norm(net: Net, node: fx.Node, given: dict[str, Any]) -> list[Axes]:
    """The same in a functional graph, with two more outputs that are empty in eval mode."""
    return [_batch_norm(net, given), *net.fresh_outputs(node)[1:]]
