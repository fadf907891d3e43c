"""What the papers claim, one by one, beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import mean
from typing import Any, NamedTuple

Numbers = Mapping[str, Any]  # experiment → its numbers
AGREES, PARTLY, DISAGREES, OPEN = "agrees", "partly", "disagrees", "open"
CLOSE = 0.02  # shares of units that differ by no more are taken as the same


class Verdict(NamedTuple):
    """What was measured, and what it says of the claim."""

    measured: str
    agrees: str


class Claim(NamedTuple):
    """One claim.

    Attributes:
        source: Paper and place.
        says: What it claims.
        needs: Experiments whose numbers it is judged by.
        judge: From the numbers.
        why: It is so.
    """

    source: str
    says: str
    needs: tuple[str, ...]
    judge: Callable[[Numbers], Verdict]
    why: str


def verdict(measured: str, good: bool, partly: bool = False) -> Verdict:
    """In words."""
    return Verdict(measured, AGREES if good else PARTLY if partly else DISAGREES)


def _within(numbers: Numbers, figure: str, way: str, points: int = 1) -> float:
    return float(numbers[figure][way][f"within_{points}pt"])


def _single_layer(numbers: Numbers) -> Verdict:
    found = {way: numbers["2"][way]["error"] for way in ("oracle", "taylor1", "taylor2")}
    least = [min(found, key=lambda way: found[way][i]) for i in range(9)]
    most = max(least.count(way) for way in found)
    text = "the least error of three is at nine tenths that of " + _counts(least)
    return verdict(text, most <= 6, most <= 7)


def _counts(names: list[str]) -> str:
    return ", ".join(f"{name} {names.count(name)} times" for name in dict.fromkeys(names))


def _shares(found: Mapping[str, float]) -> str:
    return ", ".join(f"{way} {share:.0%}" for way, share in found.items())


def _less(first: tuple[str, str], second: tuple[str, str], *names: str) -> Callable[[Numbers], Verdict]:
    """Does a way remove less within a point than another? Each with the figure that it is in."""

    def judge(numbers: Numbers) -> Verdict:
        less, more = (_within(numbers, *one) for one in (first, second))
        text = f"within a point: {_shares(dict(zip(names, (less, more), strict=True)))}"
        return verdict(text, more - less > CLOSE + 1e-9, less < more)

    return judge


def _removable(figure: str, share: float) -> Callable[[Numbers], Verdict]:
    def judge(numbers: Numbers) -> Verdict:
        one, five = (_within(numbers, figure, "oracle", points) for points in (1, 5))
        text = f"oracle, iterative: {one:.0%} within one point, {five:.0%} within five"
        return verdict(text, one >= share - CLOSE, five >= share - CLOSE)

    return judge


def _second_order(figure: str, first_tenth: int) -> Callable[[Numbers], Verdict]:
    """Has second order no more error than first, from that tenth on?"""

    def judge(numbers: Numbers) -> Verdict:
        first, second, exact = (
            numbers[figure][way]["error"][first_tenth - 1 :] for way in ("taylor1", "taylor2", "hessian")
        )
        wins, others = (sum(b <= a for a, b in zip(first, one, strict=True)) for one in (second, exact))
        text = (
            f"no more error than taylor1: taylor2 at {wins} of {len(first)} tenths, the exact second order at {others}"
        )
        return verdict(text, wins >= len(first) - 1, 2 * wins > len(first))

    return judge


def _flat(numbers: Numbers) -> Verdict:
    changes = [row["change 0-2"] for row in numbers["4"].values()]
    text = "largest change of the error for α from 0 to 2: " + ", ".join(f"{change:.0%}" for change in changes)
    *before, last = changes
    flat = sum(change < 0.1 for change in before)
    return verdict(text, flat >= len(before) - 1 and last > 2 * max(before, default=0), 2 * flat > len(before))


def _boosted(numbers: Numbers) -> Verdict:
    rows = list(numbers["4"].values())
    still = sum(row["change 1-4"] < 0.02 for row in rows)
    text = f"up to four times the output the error changes by less than 2 % for {still} of {len(rows)} units chosen"
    return verdict(text, still >= 2, still >= 1)


def _falling(numbers: Numbers) -> Verdict:
    rows = list(numbers["5"].values())
    flat = sum(row["at 2"] <= 1.1 * row["at 1"] for row in rows)
    text = f"twice the output raises the error by at most 10 % for {flat} of {len(rows)} units chosen"
    return verdict(text, flat >= 0.8 * len(rows), 2 * flat > len(rows))


def _little_change(figure: str) -> Callable[[Numbers], Verdict]:
    def judge(numbers: Numbers) -> Verdict:
        rises = [abs(row["at 0"] / row["at 1"] - 1) for row in numbers[figure].values()]
        text = "without the unit the error changes by " + ", ".join(f"{rise:.0%}" for rise in rises)
        small = sum(rise < 0.1 for rise in rises)
        return verdict(text, small >= 0.8 * len(rises), 2 * small > len(rises))

    return judge


def _like_brute_force(numbers: Numbers) -> Verdict:
    (rows,) = (rows for name, rows in numbers["decisions"].items() if name.count("-") == 2)
    first, second = (rows[way]["regret"] for way in ("taylor1", "taylor2"))
    text = f"regret against brute force, summed: first order {first:.3g}, second {second:.3g}"
    return verdict(text, second < 0.5 * first, second < first)


def _inconsistent(numbers: Numbers) -> Verdict:
    rows = _by_depth(numbers)
    found = {way: [one[way]["correlation"] for one in rows] for way in ("taylor1", "taylor2", "hessian")}
    text = "rank correlation with the truth, one layer and two: " + ", ".join(
        f"{way} {one:.2f} and {two:.2f}" for way, (one, two) in found.items()
    )
    worse = [found[way][1] < found[way][0] - 0.1 or found[way][1] < 0.7 for way in ("taylor1", "taylor2")]
    return verdict(text, all(worse), any(worse))


def _by_depth(numbers: Numbers) -> list[Mapping[str, Any]]:
    """The decisions of the network with one hidden layer, and of that with two."""
    return [numbers["decisions"][name] for name in sorted(numbers["decisions"], key=lambda name: name.count("-"))]


def _derivative_is_accurate(numbers: Numbers) -> Verdict:
    rows = list(numbers["10"].values())
    errors = sum(abs(-row["slope"] - (row["at 0"] - row["at 1"])) for row in rows)
    rises = sum(abs(row["at 0"] - row["at 1"]) for row in rows)
    text = f"of the units chosen −slope misses the measured changes by {errors:.3g} in sum; these are {rises:.3g}"
    return verdict(text, errors < 0.25 * rises, errors < 0.5 * rises)


def _estimates(numbers: Numbers) -> Verdict:
    rows = _by_depth(numbers)
    found = {way: [one[way]["error"] for one in rows] for way in ("taylor1", "taylor2", "hessian")}
    text = "mean error of the predicted rise in the whole network, to the mean rise, one layer and two: " + ", ".join(
        f"{way} " + " and ".join(f"{value:.0%}" for value in values) for way, values in found.items()
    )
    pairs = list(zip(found["taylor1"], found["taylor2"], strict=True))
    return verdict(text, all(b < 0.5 * a for a, b in pairs), any(b < a for a, b in pairs))


def _toys(numbers: Numbers) -> Verdict:
    parts, good, starts = [], [], []
    for name, both in numbers["12"].items():
        oracle, first, second = (mean(both["iterative"][way]["error"]) for way in ("oracle", "taylor1", "taylor2"))
        parts.append(f"{name}: oracle {oracle:.4f}, second order {second:.4f}, first {first:.4f}")
        good.append(second < 1.25 * oracle < first)
        starts.append(both["iterative"]["oracle"]["start"])
    text = f"mean error over the tenths, iterative, from accuracies of {_numbers_of(starts)}. " + "; ".join(parts)
    return verdict(text, all(good), any(good)) if min(starts) >= 0.97 else Verdict(text, OPEN)


def _numbers_of(values: list[float]) -> str:
    return " and ".join(f"{value:.3f}" for value in values)


def _thresholds(numbers: Numbers) -> Verdict:
    less = more = 0
    for rows in numbers["thresholds"].values():
        plain = rows["taylor2, single, no threshold"]["error"]
        for threshold in ("mean", "median"):
            pairs = list(zip(rows[f"taylor2, single, {threshold} threshold"]["error"], plain, strict=True))
            less += sum(a < b for a, b in pairs)
            more += sum(a > b for a, b in pairs)
    text = f"single ranking by taylor2, both thresholds and networks: less error at {less} of 36 tenths, more at {more}"
    return verdict(text, less > more, less > 0)


def _uneven(numbers: Numbers) -> Verdict:
    found = {name: _within(numbers, figure, "oracle", 5) for name, figure in (("one layer", "3"), ("two", "8"))}
    share = min(found.values())
    return verdict("brute force, within five points: " + _shares(found), share >= 0.6, share >= 0.4)


def _serially(numbers: Numbers) -> Verdict:
    found = {name: _within(numbers, figure, "oracle") for name, figure in (("one layer", "3"), ("two", "8"))}
    good = [share >= 0.4 - CLOSE for share in found.values()]
    return verdict("brute force, iterative, within a point: " + _shares(found), all(good), any(good))


def _no_advantage(numbers: Numbers) -> Verdict:
    parts, good = [], []
    for figure in ("3", "8"):
        rows, i = numbers[figure], 5  # at 60 %, where smaller networks are trained, too
        small = rows["trained from scratch"]["accuracy"][0]
        pruned, fitted = (rows[way]["accuracy"][i] for way in ("oracle", "obs, compensated"))
        start = rows["oracle"]["start"]
        parts.append(f"{start:.3f} whole; at 60 % trained {small:.3f}, pruned {pruned:.3f}, compensated {fitted:.3f}")
        good.append(small >= start - 0.01)
    return verdict("test accuracy. One layer: " + "; two: ".join(parts), all(good), any(good))


def _faults(numbers: Numbers) -> Verdict:
    rows = [both for both in numbers["correlation"].values() if both["drawn"]["fail together"] is not None]
    high, fitted = ([one["most correlated"][what] for one in rows] for what in ("fail together", "compensated"))
    drawn = [one["drawn"]["fail together"] for one in rows]
    text = (
        "pairs of harmless units that fail together, one layer and two: "
        f"{_and(high)} of the most correlated, {_and(drawn)} of drawn ones; with compensation {_and(fitted)}"
    )
    more = [a > b for a, b in zip(high, drawn, strict=True)]
    return verdict(text, bool(more) and all(more), any(more))


def _and(shares: list[float]) -> str:
    return " and ".join(f"{share:.0%}" for share in shares)


def _recursion(numbers: Numbers) -> Verdict:
    gaps = [rows["taylor2"]["to exact"] for rows in _by_depth(numbers)]
    text = f"estimates by the recursion differ from the exact ones by {_and(gaps)} of these, one layer and two"
    return verdict(text, max(gaps) < 0.01, gaps[0] < 0.01)


def _deeper(numbers: Numbers) -> Verdict:
    parts = []
    for name, rows in numbers["deeper"].items():
        found = {way: rows[way]["within_1pt"] for way in ("oracle", "taylor1", "taylor2", "obs, compensated")}
        parts.append(f"{name}: {_shares(found)}")
    return Verdict("within a point: " + "; ".join(parts), OPEN)


CLAIMS = (
    Claim(
        "003, 2.3", "The second order is a much better estimate of the change than the first.",
        ("decisions",), _estimates,
        "A parabola sees that the error rises on both sides of a minimum, a straight line does not.",
    ),
    Claim(
        "003, 2.3", "Thresholding by mean or median helps the second order in some cases.",
        ("thresholds",), _thresholds,
        "It changes the order of the units above the mean alone, which go when most accuracy is lost.",
    ),
    Claim(
        "003, 3.1.1", "With one layer and a single ranking no criterion is superior.",
        ("2",), _single_layer,
        "Scored once, every criterion misses that removals change each other's cost.",
    ),
    Claim(
        "003, 3.1.1", "A single ranking is quite bad; re-ranking is better.",
        ("2", "3"), _less(("2", "oracle"), ("3", "oracle"), "single", "iterative"),
        "After each removal the cost of the others changes: units that stood in for each other become needed.",
    ),
    Claim(
        "003, 3.1.2", "Brute force with re-ranking takes almost 60 % of 1 × 100 without major loss.",
        ("3",), _removable("3", 0.6),
        "How much is spare depends on the data and the training; accuracy here is that on a whole test set.",
    ),
    Claim(
        "003, 3.1.2", "Second order is consistently better than first (one layer).",
        ("3",), _second_order("3", 1),
        "Near a minimum first derivatives all but vanish; what a removal costs is curvature.",
    ),
    Claim(
        "003, 3.1.3", "Units chosen by brute force have low, flat curves until the 90th.",
        ("4",), _flat,
        "Each unit chosen is flat beside those left; but what removals cost adds up, and later ones matter more.",
    ),
    Claim(
        "003, 3.1.3", "For some units even four times the output has no effect on the error.",
        ("4",), _boosted,
        "It may be where a unit adds little or what follows it is saturated; such units are rare.",
    ),
    Claim(
        "003, 3.1.3", "Units chosen by first order have flat or falling curves.",
        ("5",), _falling,
        "First order takes the unit whose slope promises most; it does not see the curve bend.",
    ),
    Claim(
        "003, 3.1.3", "Second order's choices are more like brute force's than first order's are.",
        ("decisions",), _like_brute_force,
        "With one hidden layer the recursion is exact, and removals stay close to parabolas.",
    ),
    Claim(
        "003, 3.2.1", "Two layers are harder to prune by a single ranking than one.",
        ("2", "7"), _less(("7", "oracle"), ("2", "oracle"), "two layers", "one layer"),
        "Units of one layer are what those of the next depend on; a score made once does not see either go.",
    ),
    Claim(
        "003, 3.2.2", "Two layers are harder to prune by re-ranking than one.",
        ("3", "8"), _less(("8", "oracle"), ("3", "oracle"), "two layers", "one layer"),
        "The second layer needs the first: fewer units are spare of 50 than of 100.",
    ),
    Claim(
        "003, 3.2.2", "Brute force with re-ranking takes up to 40 % of 2 × 50 without major loss.",
        ("8",), _removable("8", 0.4),
        "As with one layer: it depends on data and training.",
    ),
    Claim(
        "003, 3.2.2", "With two layers second order is better than first, but for the first 20 %.",
        ("8",), _second_order("8", 3),
        "As with one layer, though the recursion leaves a part of the curvature out.",
    ),
    Claim(
        "003, 3.2.2", "First and second order are inconsistent criteria in deeper networks.",
        ("decisions",), _inconsistent,
        "The recursion drops how units of the next layer depend on each other; exact curvature ranks well.",
    ),
    Claim(
        "003, 3.2.3", "With two layers removing brute force's choices changes the error little.",
        ("9",), _little_change("9"),
        "It chooses them for that; the changes add up all the same.",
    ),
    Claim(
        "003, 3.2.3", "The first derivative is accurate for the units that it chooses.",
        ("10",), _derivative_is_accurate,
        "A derivative is accurate for small changes of a gain; a removal changes it by one.",
    ),
    Claim(
        "003, 3.2.3", "Second order's choices are not overtly poor: the error changes little.",
        ("11",), _little_change("11"),
        "As for brute force; the recursion's errors show in which unit is taken, not in how flat it is.",
    ),
    Claim(
        "003, 3.3", "Beyond the first layer second order is not nearly as good as brute force.",
        ("8",), _less(("8", "taylor2"), ("8", "oracle"), "second order", "brute force"),
        "That is the recursion's fault: the exact second derivative is close to brute force.",
    ),
    Claim(
        "003, 3.3", "On toy sets second order is very close to brute force, and first order poor.",
        ("12",), _toys,
        "Steep edges make the error far from a parabola in the gains. The paper says little of its training.",
    ),
    Claim(
        "003, abstract", "40 to 60 % of the neurons go one after the other with minimal effect.",
        ("3", "8"), _serially,
        "See the two claims on re-ranking.",
    ),
    Claim(
        "003, 4", "Few neurons carry the function.",
        ("3", "8"), _uneven,
        "Brute force shows which units are spare; it does not show that the others cancel each other out.",
    ),
    Claim(
        "003, 4", "Once trained, bigger networks hold no advantage over smaller ones.",
        ("3", "8"), _no_advantage,
        "A small network that was trained loses little; a large one whose weights make up for what went loses less.",
    ),
    Claim(
        "003, A.1.3", "The recursion gives ∂²E/∂o² for any layer.",
        ("decisions",), _recursion,
        "It is exact for the last hidden layer and drops cross terms ∂²E/∂x_i∂x_k before it.",
    ),
    Claim(
        "001, abstract", "Correlated neurons cause faults when one is removed at a time.",
        ("correlation",), _faults,
        "Of two units that do the same each can go, but not both. Compensation hands what they did to others.",
    ),
    Claim(
        "003, 4", "It would be interesting to see deeper networks.",
        ("deeper",), _deeper,
        "The papers leave it open.",
    ),
)  # fmt: skip


def judged(numbers: Numbers) -> list[tuple[Claim, Verdict]]:
    """The claims whose experiments were made."""
    return [(claim, claim.judge(numbers)) for claim in CLAIMS if all(name in numbers for name in claim.needs)]
