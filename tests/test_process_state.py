"""Calls in several threads run one after the other."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable

import pytest

import secateur as sc
from secateur.errors import SecateurError
from secateur.optim import curvature_of
from secateur.process_state import one_at_a_time
from secateur.saliency.gain_sweep import gain_sweep

FUNCTIONS = [getattr(sc, name) for name in sc.__all__ if inspect.isfunction(getattr(sc, name)) and name != "criterion"]


@one_at_a_time
def call(function: Callable[[], object]) -> object:
    return function()


def test_a_marked_function_is_called_as_it_is() -> None:
    @one_at_a_time
    def divide(a: float, *, by: float = 2.0) -> float:
        """Return the quotient."""
        return a / by

    assert (divide(3.0), divide(a=3.0, by=4.0)) == (1.5, 0.75)
    assert (divide.__name__, divide.__doc__) == ("divide", "Return the quotient.")
    assert list(inspect.signature(divide).parameters) == ["a", "by"]


def test_marked_functions_may_call_each_other() -> None:
    assert call(lambda: call(lambda: call(lambda: 3))) == 3


@pytest.mark.parametrize("function", [*FUNCTIONS, gain_sweep, curvature_of], ids=lambda function: function.__name__)
def test_a_public_function_waits_while_another_call_runs(function: Callable[..., object]) -> None:
    finished = threading.Event()
    parameters = inspect.signature(function).parameters.values()
    wrong = [None for parameter in parameters if parameter.default is parameter.empty]

    def with_wrong_arguments() -> None:
        with pytest.raises(SecateurError):
            function(*wrong)
        finished.set()

    def meanwhile() -> None:
        thread.start()
        assert not finished.wait(0.2)

    thread = threading.Thread(target=with_wrong_arguments)
    call(meanwhile)
    thread.join()
    assert finished.is_set()


def test_a_call_that_fails_lets_the_next_one_run() -> None:
    with pytest.raises(ZeroDivisionError):
        call(lambda: 1 / 0)
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(call(lambda: 2)))
    thread.start()
    thread.join()
    assert results == [2]
