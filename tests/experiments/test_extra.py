"""Libraries that come with the extra."""

from __future__ import annotations

import math

import pytest

from secateur import SecateurError
from secateur_experiments.extra import from_extra


def test_a_module_that_is_there_is_imported():
    assert from_extra("math") is math


def test_one_that_is_not_there_names_the_extra():
    with pytest.raises(SecateurError, match=r"^no_library\.part is needed, .*pip install 'secateur\[experiments\]'"):
        from_extra("no_library.part")
