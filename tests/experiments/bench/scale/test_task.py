"""What is asked of a network, and what is not here."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
import torch
from torch import nn

from secateur import SecateurError, find_units
from secateur_experiments.bench.scale import task as tasks
from secateur_experiments.bench.scale.task import AbsentError, Folders, imported, package_folder, removing
from secateur_experiments.networks import vision_transformer


@pytest.fixture(scope="module")
def units():
    return find_units(vision_transformer().eval(), torch.rand(2, 784))


def test_a_share_of_the_units_of_some_kinds_goes_and_the_others_are_protected(units):
    budget = removing(units, 0.25, ("feed-forward width",))
    assert budget.remove_units == 3 * 192 // 4
    limits = budget.removable({unit_set.name: unit_set.size for unit_set in units})
    kinds = Counter(unit_set.kind for unit_set in units if limits[unit_set.name])
    assert kinds == {"feed-forward width": 3}
    assert removing(units, 0.5).remove_units == units.total / 2
    assert removing(units, 0.5).protect == ()


def test_a_share_of_each_set_goes_where_that_is_asked_for(units):
    budget = removing(units, 0.5, ("head", "feed-forward width"), of_each_set=True)
    limits = budget.removable({unit_set.name: unit_set.size for unit_set in units})
    assert Counter((s.kind, limits[s.name]) for s in units if limits[s.name]) == {
        ("head", 4): 3, ("feed-forward width", 96): 3
    }  # fmt: skip


def test_a_network_without_such_units_says_which_it_has():
    units = find_units(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.rand(2, 2))
    with pytest.raises(AbsentError, match=r"^no head and no channel in this network, only neuron$"):
        removing(units, 0.5, ("head", "channel"))


def test_what_is_not_installed_is_absent():
    with pytest.raises(
        AbsentError, match=r"^no_such_package cannot be imported \(No module named 'no_such_package'\)$"
    ):
        imported("no_such_package", "name", Folders())
    with pytest.raises(AbsentError, match=r"^no_such_package is not installed$"):
        package_folder("no_such_package")
    assert imported("torch.nn", "Linear", Folders()) is nn.Linear
    assert package_folder("torch").name == "torch"


def test_the_shim_is_imported_from_its_folder_once(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "tvshim", raising=False)
    with pytest.raises(SecateurError, match=r"zoo: there is no tvshim\.py in"):
        tasks.with_shim(tmp_path)
    (tmp_path / "tvshim.py").write_text("LOADED = []\n")
    tasks.with_shim(tmp_path)
    first = sys.modules["tvshim"]
    tasks.with_shim(tmp_path)
    assert sys.modules.pop("tvshim") is first
    assert str(tmp_path) not in sys.path
