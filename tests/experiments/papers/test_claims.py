"""The papers' claims, judged by numbers; the page that says so.

Also covers secateur_experiments.papers.report and secateur_experiments.papers.rules.
"""

from __future__ import annotations

import pytest

from experiments.studies import study
from secateur_experiments.papers import report
from secateur_experiments.papers.claims import CLAIMS, judged


def degraded(accuracy, error, within):
    return {"start": 0.97, "within_1pt": within, "within_5pt": within + 0.1, "error": error, "accuracy": accuracy}


FALLING = [0.97, 0.97, 0.97, 0.97, 0.97, 0.96, 0.9, 0.8, 0.5]
LOW, HIGH = [0.01 * n for n in range(1, 10)], [0.02 * n for n in range(1, 10)]
SURFACE = {
    "at 0": 1.0, "at 1": 1.0, "at 2": 1.0, "at 4": 1.0, "at 10": 1.0, "slope": 0.0,
    "change 0-2": 0.0, "change 1-4": 0.0,
}  # fmt: skip
STEEP = {
    **SURFACE, "at 0": 2.0, "at 2": 2.0, "at 4": 4.0, "slope": 0.0, "change 0-2": 1.0, "change 1-4": 3.0,
}  # fmt: skip


def numbers():
    """Of all experiments, as if everything were as the papers say."""
    ways = {
        "oracle": degraded(FALLING, LOW, 0.6), "taylor1": degraded(FALLING, HIGH, 0.4),
        "taylor2": degraded(FALLING, LOW, 0.5), "hessian": degraded(FALLING, LOW, 0.5),
        "obs, compensated": degraded(FALLING, LOW, 0.9),
        "trained from scratch": {"shares": [0.6, 0.8, 0.9], "accuracy": [0.97] * 3, "error": [0.1] * 3},
    }  # fmt: skip
    shuffled = {"oracle": LOW[:3] + HIGH[3:], "taylor1": HIGH[:3] + LOW[3:6] + HIGH[6:], "taylor2": HIGH[:6] + LOW[6:]}
    single = {way: degraded(FALLING, error, 0.3) for way, error in shuffled.items()}
    two = {**ways, "oracle": degraded(FALLING, LOW, 0.55)}
    curves = {str(n): SURFACE for n in range(0, 90, 10)} | {"90": STEEP}
    calm = {str(n): {**SURFACE, "at 0": 1.05, "slope": -0.05} for n in range(0, 100, 10)}

    def decided(correlation):
        row = {"correlation": correlation, "error": 0.1, "regret": 0.1, "to exact": 0.0}
        return {"taylor1": {**row, "error": 0.9, "regret": 1.0}, "taylor2": row, "hessian": row}

    pairs = {"most correlated": {"fail together": 0.5, "compensated": 0.0}, "drawn": {"fail together": 0.1}}
    thresholds = {
        f"taylor2, single, {threshold} threshold": {"error": HIGH if threshold == "no" else LOW}
        for threshold in ("no", "mean", "median")
    }
    return {
        "2": single, "3": ways, "7": {"oracle": degraded(FALLING, HIGH, 0.2)}, "8": two, "4": curves, "5": curves,
        "9": calm, "10": calm, "11": calm, "12": {name: {"iterative": ways} for name in ("diamond", "random shape")},
        "thresholds": {"a": thresholds}, "decisions": {"a-b-c": decided(0.9), "a-b-c-d": decided(0.5)},
        "correlation": {"a": pairs}, "deeper": {"a": ways},
    }  # fmt: skip


FEWER = {"most correlated": {"fail together": 0.1, "compensated": 0}, "drawn": {"fail together": 0.5}}
OPEN = "It would be interesting to see deeper networks."


def test_each_claim_is_judged_by_numbers():
    verdicts = judged(numbers())
    assert len(verdicts) == len(CLAIMS) >= 12
    assert {claim.says for claim, verdict in verdicts if verdict.agrees != "agrees"} == {OPEN}
    assert all(claim.why and verdict.measured for claim, verdict in verdicts)


def put(value, *path):
    """Numbers with another value somewhere."""

    def change(results):
        level = results
        for key in path[:-1]:
            level[key] = level = dict(level[key])
        level[path[-1]] = value

    return change


AGAINST = {
    "much better estimate": [put(0.95, "decisions", one, "taylor2", "error") for one in ("a-b-c", "a-b-c-d")],
    "Thresholding": [put([1.0] * 9, "thresholds", "a", f"taylor2, single, {one} threshold", "error")
                     for one in ("mean", "median")],
    "no criterion is superior": [put([0.0] * 9, "2", "taylor1", "error")],
    "re-ranking is better": [put(0.7, "2", "oracle", "within_1pt")],
    "almost 60 %": [put(0.3, "3", "oracle", "within_1pt"), put(0.4, "3", "oracle", "within_5pt")],
    "consistently better than first": [put([0.0] * 9, "3", "taylor1", "error")],
    "low, flat curves": [put({str(n): STEEP for n in range(10)}, "4")],
    "even four times": [put({str(n): STEEP for n in range(10)}, "4")],
    "flat or falling": [put({str(n): STEEP for n in range(10)}, "5")],
    "more like brute force": [put(2.0, "decisions", "a-b-c", "taylor2", "regret")],
    "by a single ranking than one": [put(0.4, "7", "oracle", "within_1pt")],
    "by re-ranking than one": [put(0.7, "8", "oracle", "within_1pt")],
    "up to 40 %": [put(0.1, "8", "oracle", "within_1pt"), put(0.2, "8", "oracle", "within_5pt")],
    "but for the first 20 %": [put([1.0] * 2 + [0.0] * 7, "8", "taylor1", "error")],
    "inconsistent criteria": [put(0.9, "decisions", "a-b-c-d", one, "correlation") for one in ("taylor1", "taylor2")],
    "brute force's choices changes": [put({str(n): STEEP for n in range(10)}, "9")],
    "first derivative is accurate": [put({str(n): STEEP for n in range(10)}, "10")],
    "not overtly poor": [put({str(n): STEEP for n in range(10)}, "11")],
    "Beyond the first layer": [put(0.7, "8", "taylor2", "within_1pt")],
    "On toy sets": [put([1.0] * 9, "12", one, "iterative", "taylor2", "error") for one in ("diamond", "random shape")],
    "40 to 60 %": [put(0.1, one, "oracle", "within_1pt") for one in ("3", "8")],
    "Few neurons": [put(0.2, "3", "oracle", "within_5pt")],
    "bigger networks": [put([0.9] * 3, one, "trained from scratch", "accuracy") for one in ("3", "8")],
    "The recursion": [put(0.5, "decisions", one, "taylor2", "to exact") for one in ("a-b-c", "a-b-c-d")],
    "Correlated neurons": [put({"fail together": 0.9}, "correlation", "a", "drawn")],
}  # fmt: skip


@pytest.mark.parametrize("says", AGAINST)
def test_claims_that_numbers_do_not_bear_out(says):
    results = numbers()
    for change in AGAINST[says]:
        change(results)
    (verdict,) = (verdict for claim, verdict in judged(results) if says in claim.says)
    assert verdict.agrees == "disagrees", verdict


def test_every_claim_but_the_open_one_can_fail():
    for claim in CLAIMS:
        assert claim.says == OPEN or sum(says in claim.says for says in AGAINST) == 1, claim.says


@pytest.mark.parametrize(
    ("says", "change"),
    [
        ("much better estimate", put(0.6, "decisions", "a-b-c", "taylor2", "error")),
        ("The recursion", put(0.5, "decisions", "a-b-c-d", "taylor2", "to exact")),
        ("40 to 60 %", put(0.1, "8", "oracle", "within_1pt")),
        ("Correlated neurons", put(FEWER, "correlation", "b")),
    ],
)  # fmt: skip
def test_claims_that_hold_in_part(says, change):
    results = numbers()
    change(results)
    (verdict,) = (verdict for claim, verdict in judged(results) if says in claim.says)
    assert verdict.agrees == "partly", verdict


def test_toy_networks_that_never_learned_their_shape_say_nothing():
    results = numbers()
    put(0.8, "12", "diamond", "iterative", "oracle", "start")(results)
    (verdict,) = (verdict for claim, verdict in judged(results) if "toy sets" in claim.says)
    assert verdict.agrees == "open"


def test_claims_are_left_out_where_their_experiments_were_not_made():
    verdicts = judged({"2": numbers()["2"]})
    assert [claim.needs for claim, _ in verdicts] == [("2",)]
    assert judged({}) == []


def test_the_page_of_claims_has_a_row_for_each():
    text = report.markdown(study(), judged(numbers()), "the command")
    rows = [line for line in text.splitlines() if line.startswith("| 00")]
    assert len(rows) == len(CLAIMS)
    assert "| within a point: single 30%, iterative 60% | agrees | After each removal" in text
    assert "$ the command\n" in text
