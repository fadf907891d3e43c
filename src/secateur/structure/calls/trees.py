"""Nested values: lists, tuples, dicts, dataclasses and mappings, at any depth, and the leaves that they hold.

PyTorch looks into containers that are registered with it. Dataclasses and mappings that are not are packed into nodes
of our own, so that all are walked through in one way; nothing is registered for the user's classes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch.utils._pytree import (
    SUPPORTED_NODES,
    GetAttrKey,
    MappingKey,
    register_pytree_node,
    tree_flatten_with_path,
    tree_map,
    tree_map_with_path,
)
from torch.utils._pytree import keystr as path_of

from secateur.errors import ArgumentError


@dataclass(frozen=True)
class Packed:
    """A dataclass or a mapping that PyTorch does not know: its type, and its entries by field or key."""

    kind: type
    entries: dict[Any, Any]


def _keyed(packed: Packed) -> tuple[list[tuple[Any, Any]], Any]:
    key = GetAttrKey if is_dataclass(packed.kind) else MappingKey
    pairs: list[tuple[Any, Any]] = [(key(name), value) for name, value in packed.entries.items()]
    return pairs, (packed.kind, tuple(packed.entries))


register_pytree_node(
    Packed,
    lambda packed: (list(packed.entries.values()), (packed.kind, tuple(packed.entries))),
    lambda values, context: Packed(context[0], dict(zip(context[1], values, strict=True))),
    serialized_type_name="secateur.structure.calls.trees.Packed",
    flatten_with_keys_fn=_keyed,
)


def pack(tree: Any) -> Any:
    """Return nested values with every dataclass and mapping that PyTorch does not know as a `Packed`."""
    return tree_map(_pack_leaf, tree)


def _pack_leaf(leaf: Any) -> Any:
    if isinstance(leaf, Mapping):
        return Packed(type(leaf), {key: pack(value) for key, value in leaf.items()})
    if is_dataclass(leaf) and not isinstance(leaf, type):
        return Packed(type(leaf), {f.name: pack(getattr(leaf, f.name)) for f in fields(leaf) if f.init})
    return leaf


def unpack(tree: Any) -> Any:
    """Return nested values as they were before `pack`."""
    return tree_map(_unpack_leaf, tree, is_leaf=lambda node: isinstance(node, Packed))


def _unpack_leaf(leaf: Any) -> Any:
    if not isinstance(leaf, Packed):
        return leaf
    return _make(leaf.kind, {name: unpack(value) for name, value in leaf.entries.items()})


def _make(kind: type, entries: dict[Any, Any]) -> Any:
    """Return an object of this class with these entries.

    Raises:
        ArgumentError: It cannot be made so.
    """
    try:
        return kind(**entries) if is_dataclass(kind) or hasattr(kind, "_fields") else kind(entries)
    except Exception as error:
        raise ArgumentError(
            f"inputs: a {kind.__name__} cannot be made from its entries ({type(error).__name__}: {error})"
        ) from error


def leaves_of(tree: Any) -> dict[str, Any]:
    """Return the leaves of packed values by the path to each: "[0]['x'].scale"."""
    return {path_of(path): leaf for path, leaf in tree_flatten_with_path(tree)[0]}


def map_leaves(change: Callable[[str, Any], Any], tree: Any) -> Any:
    """Return packed values with `change(path, leaf)` in place of each leaf."""
    return tree_map_with_path(lambda path, leaf: change(path_of(path), leaf), tree)


def tree_to_json(tree: Any, plain: Callable[[Any], Any]) -> Any:
    """Return packed values as plain data, with `plain(leaf)` for each leaf."""
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [tree_to_json(value, plain) for value in tree]}
    kind, entries = _entries(tree)
    if kind is None:
        return plain(tree)
    pairs = [[key, tree_to_json(value, plain)] for key, value in entries.items()]
    if issubclass(kind, dict) and kind.__module__ in ("builtins", "collections"):
        return {"dict": pairs}
    return {"object": f"{kind.__module__}:{kind.__qualname__}", "entries": pairs}


def _entries(tree: Any) -> tuple[type | None, Mapping[Any, Any]]:
    """Return the class and the entries of an object that holds values by name; None where it holds none."""
    if isinstance(tree, Packed):
        return tree.kind, tree.entries
    if isinstance(tree, Mapping):
        return type(tree), tree
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree), tree._asdict()  # type: ignore[attr-defined]
    if type(tree) in SUPPORTED_NODES and is_dataclass(tree):
        return type(tree), {f.name: getattr(tree, f.name) for f in fields(tree)}
    return None, {}


def tree_from_json(data: Mapping[str, Any], parse: Callable[[Any], Any]) -> Any:
    """Return the packed values that `tree_to_json` wrote, with `parse(data)` for each leaf.

    Raises:
        ArgumentError: They hold an object of a class that is not known in this process.
    """
    if "list" in data:
        return [tree_from_json(value, parse) for value in data["list"]]
    if "tuple" in data:
        return tuple(tree_from_json(value, parse) for value in data["tuple"])
    if "dict" in data:
        return {key: tree_from_json(value, parse) for key, value in data["dict"]}
    if "object" not in data:
        return parse(data)
    entries = {key: tree_from_json(value, parse) for key, value in data["entries"]}
    kind = _find_class(data["object"])
    return _make(kind, entries) if kind in SUPPORTED_NODES or hasattr(kind, "_fields") else Packed(kind, entries)


def _find_class(name: str) -> type:
    """Return a class that holds values by name: nothing is imported, since a file must not run code.

    Raises:
        ArgumentError: There is no such class in the modules that were imported.
    """
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    holds = isinstance(found, type) and (is_dataclass(found) or issubclass(found, Mapping) or hasattr(found, "_fields"))
    if not holds:
        raise ArgumentError(f"inputs: they hold a {name}; import {module} before they are read")
    kind: type = found
    return kind
