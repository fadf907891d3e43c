"""The networks that are pruned."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace

import pytest
import torch

from experiments.studies import FEW
from secateur_experiments.subjects import channels, logistic, narrowed, subjects

MNIST = replace(FEW, train=(torch.zeros(4, 784), FEW.train[1][:4]))


def test_a_logistic_network_has_the_widths_of_its_name():
    subject = logistic(FEW, 30, (8, 5), 0.1)
    assert (subject.name, subject.about, subject.hidden) == ("64-8-5-10", "8 and 5 neurons", (8, 5))
    assert [tuple(p.shape) for p in subject.build(3).parameters()] == [(8, 64), (8,), (5, 8), (5,), (10, 5), (10,)]
    assert (subject.epochs, subject.learning_rate, subject.loss, subject.samples) == (30, 0.1, "squared_error", 60)
    assert (subject.every, subject.spared) == (1, {})


@pytest.mark.parametrize(
    ("share", "expected"), [(0, [10, 4]), (60, [4, 1]), (75, [2, 1]), (80, [2, 1]), (90, [1, 1]), (99.9, [1, 1])]
)
def test_at_least_that_share_is_left_out_and_one_unit_stays(share, expected):
    assert narrowed((10, 4), share) == expected


def test_the_network_with_channels_is_that_for_the_size_of_the_rows():
    small, large = channels(FEW, 30), channels(MNIST, 15)
    assert (small.name, small.epochs, small.samples, small.spared) == ("conv 8-16-32", 6, 60, {})
    assert (large.name, large.epochs, large.samples, large.spared) == ("conv 20-50-200", 5, 1000, {"shortlist": 25})
    assert channels(FEW, 2).epochs == 1


def test_the_benchmark_has_two_logistic_networks_and_for_784_pixels_three_others():
    assert list(subjects(FEW, 30)) == ["64-100-10", "64-50-50-10"]
    known = subjects(MNIST, 15)
    assert list(known) == ["784-100-10", "784-50-50-10", "conv", "residual", "vit"]
    assert {name: subject.name for name, subject in known.items()} == {name: name for name in known}
    assert not known["residual"].counts(Namespace(name="1", kind="channel"))
    assert known["residual"].counts(Namespace(name="5.conv1", kind="channel"))
    assert not known["vit"].counts(Namespace(name="a", kind="head width"))
    assert known["vit"].counts(Namespace(name="a", kind="head"))


def test_the_description_says_what_is_spared():
    known = subjects(MNIST, 15)
    assert known["784-100-10"].description == (
        "100 neurons. Loss `squared_error`, 15 epochs; orders on 60 calibration digits."
    )
    assert known["conv"].description == (
        "20 and 50 channels, 200 neurons. Loss `cross_entropy`, 5 epochs; orders on 2,000 calibration digits, "
        "`oracle, iterative` on 1,000 samples with shortlist 25 to save time."
    )
