"""Plugins of other packages."""

import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from installed import install
from secateur.plugins import load_plugins, name_of_function, place_of_function


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages; each test loads a group of its own, since a group is loaded once."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def known(loaded: Any) -> bool:
    return getattr(loaded, "decorated", False)


def test_modules_and_decorated_functions_are_loaded_once(folder: Path) -> None:
    source = "import sys\nsys.loads = getattr(sys, 'loads', 0) + 1\ndef f(): pass\nf.decorated = True\n"
    modules = {"plugin_a": source, "plugin_b": source}
    install(folder, "both", modules, {"tests.once": {"a": "plugin_a", "b": "plugin_b:f"}})
    assert load_plugins("tests.once", known) == []
    assert {"plugin_a", "plugin_b"} <= set(sys.modules)
    del sys.modules["plugin_a"], sys.modules["plugin_b"]
    assert load_plugins("tests.once", known) == []
    assert sys.__dict__.pop("loads") == 2


def test_a_group_that_nobody_has_is_empty() -> None:
    assert load_plugins("tests.nobody", known) == []


def test_one_that_fails_is_named_and_takes_no_other_down(folder: Path) -> None:
    install(folder, "broken", {"plugin_broken": "1 / 0"}, {"tests.broken": {"mine": "plugin_broken"}})
    install(folder, "gone", {}, {"tests.broken": {"theirs": "plugin_gone:f"}})
    install(folder, "works", {"plugin_works": ""}, {"tests.broken": {"zebra": "plugin_works"}})
    with pytest.warns(RuntimeWarning) as warned:
        failures = load_plugins("tests.broken", known)
    assert failures == [
        "entry point 'mine' of broken, group 'tests.broken', failed (ZeroDivisionError: division by zero)",
        "entry point 'theirs' of gone, group 'tests.broken', failed (ModuleNotFoundError: "
        "No module named 'plugin_gone')",
    ]
    assert [str(one.message) for one in warned] == failures
    assert "plugin_works" in sys.modules
    assert load_plugins("tests.broken", known) == failures  # and no further warning, which would be an error here


def test_what_is_neither_a_module_nor_decorated_fails(folder: Path) -> None:
    install(folder, "plain", {"plugin_plain": "def f(): pass"}, {"tests.plain": {"f": "plugin_plain:f"}})
    with pytest.warns(RuntimeWarning, match="of plain"):
        failures = load_plugins("tests.plain", known)
    assert [one.partition("failed ")[2] for one in failures] == [
        "(ArgumentError: plugin_plain:f is neither a module nor a decorated function)"
    ]


def test_one_that_asks_for_the_others_while_it_is_loaded_gets_those_before_it(folder: Path) -> None:
    source = "from secateur.plugins import load_plugins\nfound = load_plugins('tests.again', bool)"
    install(folder, "again", {"plugin_again": source}, {"tests.again": {"a": "plugin_again"}})
    assert load_plugins("tests.again", known) == []
    assert sys.modules["plugin_again"].found == []


class Callable:
    def __call__(self) -> None: ...

    def method(self) -> None: ...


def test_functions_of_every_kind_have_a_name_and_a_place() -> None:
    assert name_of_function(known) == name_of_function(partial(partial(known, 1))) == "known"
    assert name_of_function(Callable()) == "Callable"
    assert name_of_function(Callable().method) == "method"
    assert re.search(r"test_plugins\.known \(line \d+ of .*test_plugins\.py\)$", place_of_function(partial(known, 1)))
    assert place_of_function(Callable()).endswith("test_plugins.Callable")
    assert re.search(r"test_plugins\.Callable\.method \(line \d+ of ", place_of_function(Callable().method))
    assert place_of_function(len) == "builtins.len"
