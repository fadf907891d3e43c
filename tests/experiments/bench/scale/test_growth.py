"""How times grow with units, layers and samples."""

from __future__ import annotations

import pytest
from torch import nn

from secateur_experiments.bench.scale import growth


def test_growth_is_asked_of_every_size_after_one_that_does_not_count(monkeypatch):
    asked = []

    def spent(hidden, samples, ranking):
        asked.append((hidden, samples, ranking))
        return float(len(hidden)) ** 2

    monkeypatch.setattr(growth, "removal_seconds", spent)
    question = growth.Question((1, 2, 4), 1.2, lambda size: ([5] * size, 7))
    (trend,) = growth.trends("single", 2, {"layers": question})
    assert trend == growth.Trend("layers", {1: 1.0, 2: 4.0, 4: 16.0}, pytest.approx(2.0), 1.2)
    assert asked == [([5], 7, "single"), *([([5] * n, 7, "single") for n in (1, 1, 2, 2, 4, 4)])]


def test_half_of_the_units_of_the_network_asked_for_go(monkeypatch):
    results, shrink = [], growth.shrink
    monkeypatch.setattr(growth, "shrink", lambda *args, **options: results.append(shrink(*args, **options)))
    assert growth.removal_seconds([6, 4], 30, "iterative") > 0
    (result,) = results
    assert [layer.weight.shape for layer in result.model if isinstance(layer, nn.Linear)][-1][0] == 10
    assert sum(map(len, result.plan.kept.values())) == 5


def test_the_three_questions_end_at_the_sizes_that_matter():
    ends = {what: question.build(question.sizes[-1]) for what, question in growth.QUESTIONS.items()}
    assert ends == {"units": ([4096], 1000), "layers": ([64] * 32, 1000), "samples": ([256, 256], 8000)}
