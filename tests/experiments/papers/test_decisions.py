"""How good decisions are, and pairs that fail together, on few digits.

Also covers secateur_experiments.papers.correlation.
"""

from __future__ import annotations

from statistics import median

import pytest
import torch

from experiments.studies import FEW, done, study
from secateur.cutting.slices import gates
from secateur.saliency.interactions import interactions
from secateur_experiments.papers import correlation, decisions
from secateur_experiments.papers.correlation import Pair, faults
from secateur_experiments.papers.decisions import Judged
from secateur_experiments.study import Way


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for module in (decisions, correlation):
        monkeypatch.setattr(module, "ONE", (6,))
        monkeypatch.setattr(module, "TWO", (4, 3))
    monkeypatch.setattr(decisions, "POINTS", 3)
    monkeypatch.setattr(correlation, "PAIRS", 2)


def test_criteria_are_judged_by_what_removals_cost_along_the_brute_force_order():
    made = study()
    subject = made.logistic((4, 3))
    judgement = decisions.judged(made, subject, 1)
    assert list(judgement) == [*decisions.CRITERIA, "obs"]
    plan, gated = made.plan(subject, 1, Way("oracle")), made.gated(subject, 1)
    for i, one in enumerate(judgement["taylor2"]):
        n = i * 7 // 3
        assert one.share == n / 7
        g = gates(made.network(subject, 1), made.units(subject, 1), plan.prefix(n).kept)
        left = g.nonzero()[:, 0].tolist()
        rises = [gated.loss(g.index_fill(0, torch.tensor([k]), 0)) - gated.loss(g) for k in left]
        assert one.measured == pytest.approx(rises, rel=1e-3, abs=1e-6)
        assert one.regret == pytest.approx(
            rises[one.predicted.index(min(one.predicted))] - min(rises), rel=1e-3, abs=1e-6
        )
    assert len(judgement["obs"][1].predicted) == 7 - 2


def test_the_table_of_decisions():
    made = study()
    finding = done((decisions.decision_jobs, decisions.decisions), made)
    assert list(finding.numbers) == ["64-6-10", "64-4-3-10"]
    several = [decisions.judged(made, made.logistic((6,)), seed)["taylor1"] for seed in made.seeds]
    row = finding.numbers["64-6-10"]["taylor1"]
    assert row["correlation at start"] == median(one[0].correlation for one in several)
    assert row["regret"] == median(sum(judged.regret for judged in one) for one in several)
    rows = finding.numbers["64-4-3-10"]
    assert finding.numbers["64-6-10"]["taylor2"]["to exact"] < 1e-3 < rows["taylor2"]["to exact"]
    assert "error" in rows["ggn"]
    assert "error" not in rows["magnitude"]
    assert [line[0] for line in finding.tables[0].rows] == [*decisions.CRITERIA, "obs"]
    assert len(finding.drawings) == 4


def test_a_criterion_that_says_the_truth_has_no_regret():
    one = Judged(0.0, [1.0, 3.0, 2.0], [1.0, 3.0, 2.0])
    assert (one.correlation, one.regret, decisions.relative_error(one)) == (1, 0, 0)
    assert Judged(0.0, [3.0, 1.0], [1.0, 3.0]).correlation == -1
    assert Judged(0.0, [1.0, 1.0], [1.0, 3.0]).correlation == 0  # of what is always the same
    assert decisions.relative_error(Judged(0.0, [0.0], [0.0])) == 0


def test_pairs_are_measured_alone_together_and_compensated():
    made = study()
    subject = made.logistic((6,))
    network = correlation.correlated(made, subject)
    gated, units = made.gated(subject, 0), made.units(subject, 0)
    g = torch.ones(6)
    alone = [gated.loss(g.index_fill(0, torch.tensor([k]), 0)) - gated.loss(g) for k in range(6)]
    assert network.harmless == pytest.approx(max(0, sorted(alone)[2]), rel=1e-3)
    assert network.sizes == [units.total]
    matrix = interactions(gated.model, FEW.calibration, "squared_error", units=units, curvature="hessian")
    for kind, pairs in network.pairs.items():
        assert len(pairs) == 2, kind
        for pair in pairs:
            j, k = pair.units
            assert pair.alone == pytest.approx((alone[j], alone[k]), rel=1e-3, abs=1e-6)
            assert max(pair.alone) <= network.harmless * (1 + 1e-6)
            together = gated.loss(g.index_fill(0, torch.tensor(pair.units), 0)) - gated.loss(g)
            assert pair.together == pytest.approx(together, rel=1e-3, abs=1e-6)
            expected = matrix[j, k] / (matrix[j, j] * matrix[k, k]).abs().sqrt()
            assert pair.correlation == pytest.approx(expected.item(), rel=1e-3)
    most = [pair.correlation for pair in network.pairs["most correlated"]]
    assert most == sorted(most, reverse=True)
    assert max(pair.correlation for pair in network.pairs["drawn"]) <= most[0]


def test_pairs_fail_together_where_they_cost_more_than_two_harmless_units():
    pairs = [Pair((0, 1), 0.9, (0.1, 0.1), 0.3, 0.1), Pair((0, 2), 0.8, (0.1, 0.0), 0.1, 0.3)]
    assert faults(pairs, 0.1) == {
        "fail together": 0.5, "compensated": 0.5, "together to alone": pytest.approx(0.4 / 0.3),
    }  # fmt: skip


def test_no_pairs_have_no_shares():
    assert faults([], 0.1) == {"fail together": None, "compensated": None, "together to alone": None}
    assert faults([Pair((0, 1), 0.9, (0.0, 0.0), 0.3, 0.1)], 0.1)["together to alone"] is None


def test_the_table_of_pairs():
    finding = done((correlation.correlation_jobs, correlation.neurons), study())
    assert [line[:3] for line in finding.tables[0].rows] == [
        [name, kind, 2] for name in ("64-6-10", "64-4-3-10") for kind in ("most correlated", "drawn")
    ]  # fmt: skip
    assert finding.tables[0].rows[0][3] == round(100 * finding.numbers["64-6-10"]["most correlated"]["fail together"])
