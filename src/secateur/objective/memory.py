"""The memory that may be used, and the memory that values take."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any

import psutil
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from secateur.errors import ArgumentError
from secateur.objective.data import CHUNK
from secateur.structure.capture import UNKNOWN, Captured, sizes
from secateur.text import parse_bytes

AT_ONCE = 2**27  # bytes of the values of samples that are run at a time, at most; more makes nothing faster


def memory_cap(max_memory: int | str | None, device: torch.device) -> int:
    """Return the number of bytes asked for; None stands for a quarter of what is free on the device.

    Raises:
        ArgumentError: The size is none above zero.

    >>> memory_cap("1.5 GB", torch.device("cpu"))
    1500000000
    """
    if max_memory is None:
        return free_memory(device) // 4
    size = parse_bytes(max_memory, "max_memory")
    if size < 1:
        raise ArgumentError(f"max_memory: expected a size above 0, got {max_memory!r}")
    return size


def free_memory(device: torch.device) -> int:
    """Return how many bytes are free on the device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def samples_at_once(captured: Captured, memory: int) -> int:
    """Return how many samples of a dataset given whole are run at a time: their values fit into an eighth."""
    if captured.spec.fixed is not None:
        return CHUNK
    return max(1, min(CHUNK, min(memory // 8, AT_ONCE) // max(1, bytes_of(captured.graph.nodes))))


def bytes_of(nodes: Iterable[fx.Node]) -> int:
    """Return what the values of these calls take together for one sample; what no sample has part in counts once."""
    return sum(
        math.prod(size // UNKNOWN if size and size % UNKNOWN == 0 else size for size in sizes(value, 1))
        * value.element_size()
        for node in nodes
        if node.op == "call_function"
        for value in tree_leaves(node.meta.get("val"))
        if isinstance(value, Tensor)
    )


def bytes_alive(graph: fx.Graph, stops: Collection[fx.Node]) -> int:
    """Return what the values take for one sample that are needed at or after one of these calls, at the worst."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    until = {node: max((order[user] for user in node.users), default=-1) for node in graph.nodes}
    return max(
        (bytes_of(node for node, last in until.items() if order[node] <= order[stop] <= last) for stop in stops),
        default=0,
    )


def bytes_held(values: Iterable[Any], anyway: Iterable[Tensor]) -> int:
    """Return what the storages of these values take beside those of tensors that are there anyway."""
    known = {tensor.untyped_storage().data_ptr() for tensor in anyway}
    storages = {value.untyped_storage() for value in values if isinstance(value, Tensor)}
    return sum({s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in known}.values())
