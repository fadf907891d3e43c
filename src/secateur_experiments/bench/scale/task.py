"""A network of real size, its data, and what is asked of it."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from secateur import Budget, SecateurError, Units
from secateur.errors import ArgumentError

Batches = Sequence[tuple[Any, Any]]  # (inputs, targets); targets None for a loss that keeps the outputs


class AbsentError(SecateurError):
    """A package or a folder that is not here, without which a network cannot be made."""


@dataclass(frozen=True)
class Folders:
    """Where things lie that no package brings along.

    Attributes:
        mnist: The folder of MNIST's four files.
        shim: The folder of a module `tvshim`, where torchvision needs one to be imported.
    """

    mnist: Path | None = None
    shim: Path | None = None


@dataclass(frozen=True)
class Task:
    """A network, its data and what is asked of it.

    Attributes:
        model: The network.
        units: Its units.
        data: Batches; none where no data are used.
        loss: A name or a function; None without data.
        budget: What must hold at the end.
        share: The share of the units that goes, about.
        options: What else `shrink` is given; without data `rank`.
        example: Inputs, where there are no data.
        quality: Measures a shrunk network by names; None where weights are random.
    """

    model: nn.Module
    units: Units
    data: Batches
    loss: Any
    budget: Budget
    share: float
    options: Mapping[str, Any] = field(default_factory=dict)
    example: Any = None
    quality: Callable[[nn.Module], dict[str, float]] | None = None

    @property
    def removable(self) -> dict[str, int]:
        """How many units each set may lose."""
        return self.budget.removable({unit_set.name: unit_set.size for unit_set in self.units})


def removing(units: Units, share: float, kinds: Collection[str] = (), of_each_set: bool = False) -> Budget:
    """Return the budget by which a share of the units of some kinds goes.

    Args:
        units: All units.
        share: The share of them all together.
        kinds: Their kinds; none for all. Others are protected.
        of_each_set: Whether the share is one of each set.

    Raises:
        AbsentError: The network has no such units.
    """
    chosen = [unit_set for unit_set in units if not kinds or unit_set.kind in kinds]
    if not chosen:
        raise AbsentError(f"no {' and no '.join(kinds)} in this network, only {', '.join({s.kind for s in units})}")
    protected = tuple(unit_set.name for unit_set in units if unit_set not in chosen)
    if of_each_set:
        return Budget(remove_fraction=share, scope="set", protect=protected)
    total = sum(unit_set.size for unit_set in chosen)
    return Budget(remove_units=math.ceil(share * total - 1e-9), protect=protected)


def imported(module: str, name: str, folders: Folders) -> Any:
    """Return what has a name in a module of a package that may not be here.

    Args:
        module: The module.
        name: The name.
        folders: Those with a shim for torchvision, which other packages import, too.

    Raises:
        AbsentError: It cannot be imported.
    """
    with_shim(folders.shim)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, RuntimeError) as error:  # torchvision's, where its operators do not fit
        raise AbsentError(f"{module} cannot be imported ({str(error).splitlines()[0]})") from error


def package_folder(package: str) -> Path:
    """Return the folder of a package, without importing it: what it imports may not be here.

    Raises:
        AbsentError: It is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise AbsentError(f"{package} is not installed")
    return Path(spec.submodule_search_locations[0])


def with_shim(folder: Path | None) -> None:
    """Make torchvision importable by the module `tvshim` of a folder, where one is given.

    Raises:
        ArgumentError: There is no such module.
    """
    if folder is None:
        return
    if not (folder / "tvshim.py").exists():
        raise ArgumentError(f"zoo: there is no tvshim.py in {folder}")
    sys.path.insert(0, str(folder))
    try:
        importlib.import_module("tvshim")
    finally:
        sys.path.remove(str(folder))
