import dataclasses
import json
from collections import OrderedDict, UserDict
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._pytree import SUPPORTED_NODES

from secateur.errors import ArgumentError
from secateur.structure.calls.trees import leaves_of, map_leaves, pack, tree_from_json, tree_to_json, unpack


@dataclasses.dataclass
class Sample:
    image: Any
    more: Any = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    boxes: Any
    doubled: Any = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "doubled", 2 * self.boxes if isinstance(self.boxes, int) else None)


class Pair(NamedTuple):
    first: Any
    second: Any


class Encoding(UserDict):
    """A mapping that is no dict, as tokenizers return it."""


LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.floats(allow_nan=False)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3) | st.integers(0, 3), inner, max_size=3),
        st.builds(Sample, inner, inner),
        st.builds(Frozen, inner),
        st.builds(Pair, inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=3).map(Encoding),
    ),
    max_leaves=8,
)


def plain_leaves(tree: Any) -> list[Any]:
    """The leaves in order, by recursion."""
    if isinstance(tree, Sample | Frozen):
        tree = [getattr(tree, f.name) for f in dataclasses.fields(tree) if f.init]
    if isinstance(tree, dict | Encoding):
        tree = list(tree.values())
    return [leaf for inner in tree for leaf in plain_leaves(inner)] if isinstance(tree, list | tuple) else [tree]


def same(a: Any, b: Any) -> bool:
    return repr(a) == repr(b) and a == b  # True is not 1


@given(TREES)
def test_what_is_packed_is_unpacked_as_it_was(tree: Any) -> None:
    again = unpack(pack(tree))
    assert same(again, tree)
    assert type(again) is type(tree)


@given(TREES)
def test_each_leaf_has_a_place_of_its_own_and_can_be_changed(tree: Any) -> None:
    packed, wanted = pack(tree), plain_leaves(tree)
    leaves = leaves_of(packed)
    assert same(list(leaves.values()), wanted)
    changed = map_leaves(lambda path, leaf: [path, leaf], packed)
    assert sorted(leaves) == sorted({path.removesuffix("[0]") for path in leaves_of(changed) if path.endswith("[0]")})
    assert same(pack(unpack(packed)), packed)


@given(TREES)
def test_what_is_written_is_read_as_it_was(tree: Any) -> None:
    packed = pack(tree)
    written = json.loads(json.dumps(tree_to_json(packed, lambda leaf: {"value": leaf})))
    assert same(tree_from_json(written, lambda data: data["value"]), packed)


def test_a_path_says_where_a_leaf_is() -> None:
    tree = pack([1, Sample({"mask": 2}, (Pair(3, 4),)), Encoding({"ids": 5})])
    assert leaves_of(tree) == {
        "[0]": 1,
        "[1].image['mask']": 2,
        "[1].more[0].first": 3,
        "[1].more[0].second": 4,
        "[2]['ids']": 5,
    }


def test_containers_without_a_leaf_stay() -> None:
    tree = {"none": [], "empty": ((), {}), "object": Sample([], Encoding())}
    assert unpack(pack(tree)) == tree
    assert leaves_of(pack(tree)) == {}


def test_nothing_is_registered_for_the_user_s_classes() -> None:
    unpack(pack([Sample(1), Frozen(2), Encoding(x=3)]))
    assert not {Sample, Frozen, Encoding} & SUPPORTED_NODES.keys()


def test_a_class_is_not_imported_from_what_a_file_says() -> None:
    for name in ("this:Zen", "antigravity:Sample", "os:system", "builtins:int", f"{__name__}:Sample.image"):
        with pytest.raises(ArgumentError) as refused:
            tree_from_json({"object": name, "entries": []}, lambda data: data)
        assert str(refused.value) == f"inputs: they hold a {name}; import {name.split(':')[0]} before they are read"


def test_an_object_that_cannot_be_made_again_is_refused() -> None:
    @dataclasses.dataclass
    class Strict(Sample):
        def __post_init__(self) -> None:
            if not isinstance(self.image, int):
                raise TypeError("whole numbers alone")

    packed = map_leaves(lambda _, leaf: str(leaf), pack(dataclasses.replace(Strict(3))))
    with pytest.raises(ArgumentError, match=r"^inputs: a Strict cannot be made from its entries \(TypeError: whole"):
        unpack(packed)


def test_ordered_dicts_are_read_as_dicts() -> None:
    written = tree_to_json(OrderedDict(b=1, a=2), lambda leaf: {"value": leaf})
    assert list(tree_from_json(written, lambda data: data["value"]).items()) == [("b", 1), ("a", 2)]
