"""Tables of saliencies and interactions."""

from __future__ import annotations

import torch

from secateur.reporting.tables import pairs, saliencies, spread


def test_the_lowest_saliency_comes_first_and_ties_in_the_order_of_the_sets():
    scores = {"b": torch.tensor([2.0, -1.0, 0.5]), "a": torch.tensor([0.5, 3e-9])}
    rows = [line.split() for line in saliencies("oracle", scores, None).splitlines()]
    assert rows == [
        ["oracle", "unit", "set", "unit"],
        ["-1", "b", "1"], ["3e-09", "a", "1"], ["0.5", "b", "2"], ["0.5", "a", "0"], ["2", "b", "0"],
    ]  # fmt: skip


def test_ties_are_not_broken_by_the_standard_error():
    same = {"0": torch.tensor([1.0, 1.0])}
    rows = saliencies("fisher", same, {"0": torch.tensor([0.9, 0.1])}).splitlines()
    assert [line.split() for line in rows[1:]] == [["1", "0.9", "0", "0"], ["1", "0.1", "0", "1"]]


def test_the_spread_is_of_all_values_in_any_order_and_of_none():
    assert spread(torch.tensor([[9.0, 1.0], [5.0, 2.0], [3.0, 1234.5]])) == [6, "1", "2", "3", "9", "1.23e+03"]
    assert spread(torch.tensor([7.0])) == [1, "7", "7", "7", "7", "7"]
    assert spread(torch.zeros(0, 3)) == [0, *"–––––"]


def test_pairs_are_listed_by_the_size_of_their_correlation():
    matrix = torch.tensor([[4.0, 1.0, -6.0], [1.0, 4.0, 2.0], [-6.0, 2.0, 4.0]])
    places = [("fc", 0), ("fc", 1), ("conv", 0)]
    rows = [line.split() for line in pairs(matrix, matrix / 8, places, 2).splitlines()]
    assert rows[1:] == [["-0.750", "-6", "fc[0]", "conv[0]"], ["+0.250", "+2", "fc[1]", "conv[0]"]]
    assert len(pairs(matrix, matrix / 8, places, 99).splitlines()) == 4
    assert len(pairs(matrix[:1, :1], matrix[:1, :1], places, 9).splitlines()) == 1
