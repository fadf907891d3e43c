"""When do numbers bear a claim out? Rules, each from the numbers of all experiments."""

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


def verdict(measured: str, good: bool, partly: bool = False) -> Verdict:
    """Return it in words."""
    return Verdict(measured, AGREES if good else PARTLY if partly else DISAGREES)


def _within(numbers: Numbers, figure: str, way: str, points: int = 1) -> float:
    return float(numbers[figure][way][f"within_{points}pt"])


def single_layer(numbers: Numbers) -> Verdict:
    """Has no criterion nearly always the least error?"""
    errors = {way: numbers["2"][way]["error"] for way in ("oracle", "taylor1", "taylor2")}
    least = [min(errors, key=lambda way: errors[way][i]) for i in range(9)]
    most = max(least.count(way) for way in errors)
    text = "the least error of three is at nine tenths that of " + _counts(least)
    return verdict(text, most <= 6, most <= 7)


def _counts(names: list[str]) -> str:
    return ", ".join(f"{name} {names.count(name)} times" for name in dict.fromkeys(names))


def _shares(by_way: Mapping[str, float]) -> str:
    return ", ".join(f"{way} {share:.0%}" for way, share in by_way.items())


def less(first: tuple[str, str], second: tuple[str, str], *names: str) -> Callable[[Numbers], Verdict]:
    """Does a way remove less within a point than another? Each with the figure that it is in."""

    def judge(numbers: Numbers) -> Verdict:
        less, more = (_within(numbers, figure, way) for figure, way in (first, second))
        text = f"within a point: {_shares(dict(zip(names, (less, more), strict=True)))}"
        return verdict(text, more - less > CLOSE + 1e-9, less < more)

    return judge


def removable(figure: str, share: float) -> Callable[[Numbers], Verdict]:
    """Can brute force remove that share within a point? Within five in part."""

    def judge(numbers: Numbers) -> Verdict:
        one, five = (_within(numbers, figure, "oracle", points) for points in (1, 5))
        text = f"oracle, iterative: {one:.0%} within one point, {five:.0%} within five"
        return verdict(text, one >= share - CLOSE, five >= share - CLOSE)

    return judge


def second_order(figure: str, first_tenth: int) -> Callable[[Numbers], Verdict]:
    """Has second order no more error than first, from that tenth on?"""

    def judge(numbers: Numbers) -> Verdict:
        first, second, exact = (
            numbers[figure][way]["error"][first_tenth - 1 :] for way in ("taylor1", "taylor2", "hessian")
        )
        wins, others = (sum(b <= a for a, b in zip(first, error, strict=True)) for error in (second, exact))
        text = (
            f"no more error than taylor1: taylor2 at {wins} of {len(first)} tenths, the exact second order at {others}"
        )
        return verdict(text, wins >= len(first) - 1, 2 * wins > len(first))

    return judge


def flat(numbers: Numbers) -> Verdict:
    """Do curves stay within 10 % for α up to 2, but for the last one?"""
    changes = [row["change 0-2"] for row in numbers["4"].values()]
    text = "largest change of the error for α from 0 to 2: " + ", ".join(f"{change:.0%}" for change in changes)
    *before, last = changes
    flat = sum(change < 0.1 for change in before)
    return verdict(text, flat >= len(before) - 1 and last > 2 * max(before, default=0), 2 * flat > len(before))


def boosted(numbers: Numbers) -> Verdict:
    """Are there units whose error stays within 2 % up to α = 4?"""
    rows = list(numbers["4"].values())
    still = sum(row["change 1-4"] < 0.02 for row in rows)
    text = f"up to four times the output the error changes by less than 2 % for {still} of {len(rows)} units chosen"
    return verdict(text, still >= 2, still >= 1)


def falling(numbers: Numbers) -> Verdict:
    """Does twice the output raise the error by at most 10 % for most units?"""
    rows = list(numbers["5"].values())
    flat = sum(row["at 2"] <= 1.1 * row["at 1"] for row in rows)
    text = f"twice the output raises the error by at most 10 % for {flat} of {len(rows)} units chosen"
    return verdict(text, flat >= 0.8 * len(rows), 2 * flat > len(rows))


def little_change(figure: str) -> Callable[[Numbers], Verdict]:
    """Does removing the unit change the error by less than 10 % for most?"""

    def judge(numbers: Numbers) -> Verdict:
        rises = [abs(row["at 0"] / row["at 1"] - 1) for row in numbers[figure].values()]
        text = "without the unit the error changes by " + ", ".join(f"{rise:.0%}" for rise in rises)
        small = sum(rise < 0.1 for rise in rises)
        return verdict(text, small >= 0.8 * len(rises), 2 * small > len(rises))

    return judge


def like_brute_force(numbers: Numbers) -> Verdict:
    """Has second order much less regret than first, with one hidden layer?"""
    (rows,) = (rows for name, rows in numbers["decisions"].items() if name.count("-") == 2)
    first, second = (rows[way]["regret"] for way in ("taylor1", "taylor2"))
    text = f"regret against brute force, summed: first order {first:.3g}, second {second:.3g}"
    return verdict(text, second < 0.5 * first, second < first)


def inconsistent(numbers: Numbers) -> Verdict:
    """Do ranks agree less with the truth with two hidden layers, or little?"""
    rows = _by_depth(numbers)
    ranks = {way: [row[way]["correlation"] for row in rows] for way in ("taylor1", "taylor2", "hessian")}
    text = "rank correlation with the truth, one layer and two: " + ", ".join(
        f"{way} {one:.2f} and {two:.2f}" for way, (one, two) in ranks.items()
    )
    worse = [ranks[way][1] < ranks[way][0] - 0.1 or ranks[way][1] < 0.7 for way in ("taylor1", "taylor2")]
    return verdict(text, all(worse), any(worse))


def _by_depth(numbers: Numbers) -> list[Mapping[str, Any]]:
    """Return the decisions of the network with one hidden layer, and of that with two."""
    return [numbers["decisions"][name] for name in sorted(numbers["decisions"], key=lambda name: name.count("-"))]


def derivative_is_accurate(numbers: Numbers) -> Verdict:
    """Does −slope tell what removal changes?"""
    rows = list(numbers["10"].values())
    errors = sum(abs(-row["slope"] - (row["at 0"] - row["at 1"])) for row in rows)
    rises = sum(abs(row["at 0"] - row["at 1"]) for row in rows)
    text = f"of the units chosen −slope misses the measured changes by {errors:.3g} in sum; these are {rises:.3g}"
    return verdict(text, errors < 0.25 * rises, errors < 0.5 * rises)


def estimates(numbers: Numbers) -> Verdict:
    """Has second order at most half of the first's error, with one layer and with two?"""
    rows = _by_depth(numbers)
    errors = {way: [row[way]["error"] for row in rows] for way in ("taylor1", "taylor2", "hessian")}
    text = "mean error of the predicted rise in the whole network, to the mean rise, one layer and two: " + ", ".join(
        f"{way} " + " and ".join(f"{value:.0%}" for value in values) for way, values in errors.items()
    )
    pairs = list(zip(errors["taylor1"], errors["taylor2"], strict=True))
    return verdict(text, all(b < 0.5 * a for a, b in pairs), any(b < a for a, b in pairs))


def toys(numbers: Numbers) -> Verdict:
    """Is second order close to brute force, and first order worse? Open if the networks did not learn."""
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


def thresholds(numbers: Numbers) -> Verdict:
    """Is there less error with a threshold at more tenths than more?"""
    less = more = 0
    for rows in numbers["thresholds"].values():
        plain = rows["taylor2, single, no threshold"]["error"]
        for threshold in ("mean", "median"):
            pairs = list(zip(rows[f"taylor2, single, {threshold} threshold"]["error"], plain, strict=True))
            less += sum(a < b for a, b in pairs)
            more += sum(a > b for a, b in pairs)
    text = f"single ranking by taylor2, both thresholds and networks: less error at {less} of 36 tenths, more at {more}"
    return verdict(text, less > more, less > 0)


def uneven(numbers: Numbers) -> Verdict:
    """Can most units go within five points?"""
    shares = {name: _within(numbers, figure, "oracle", 5) for name, figure in (("one layer", "3"), ("two", "8"))}
    share = min(shares.values())
    return verdict("brute force, within five points: " + _shares(shares), share >= 0.6, share >= 0.4)


def serially(numbers: Numbers) -> Verdict:
    """Can 40 % go within a point, in both networks?"""
    shares = {name: _within(numbers, figure, "oracle") for name, figure in (("one layer", "3"), ("two", "8"))}
    good = [share >= 0.4 - CLOSE for share in shares.values()]
    return verdict("brute force, iterative, within a point: " + _shares(shares), all(good), any(good))


def no_advantage(numbers: Numbers) -> Verdict:
    """Is a smaller network that was trained within a point of the whole one?"""
    parts, good = [], []
    for figure in ("3", "8"):
        rows, i = numbers[figure], 5  # at 60 %, where smaller networks are trained, too
        small = rows["trained from scratch"]["accuracy"][0]
        pruned, fitted = (rows[way]["accuracy"][i] for way in ("oracle", "obs, compensated"))
        start = rows["oracle"]["start"]
        parts.append(f"{start:.3f} whole; at 60 % trained {small:.3f}, pruned {pruned:.3f}, compensated {fitted:.3f}")
        good.append(small >= start - 0.01)
    return verdict("test accuracy. One layer: " + "; two: ".join(parts), all(good), any(good))


def faults(numbers: Numbers) -> Verdict:
    """Do correlated pairs fail together more often than drawn ones?"""
    rows = [both for both in numbers["correlation"].values() if both["drawn"]["fail together"] is not None]
    high, fitted = ([row["most correlated"][what] for row in rows] for what in ("fail together", "compensated"))
    drawn = [row["drawn"]["fail together"] for row in rows]
    text = (
        "pairs of harmless units that fail together, one layer and two: "
        f"{_and(high)} of the most correlated, {_and(drawn)} of drawn ones; with compensation {_and(fitted)}"
    )
    more = [a > b for a, b in zip(high, drawn, strict=True)]
    return verdict(text, bool(more) and all(more), any(more))


def _and(shares: list[float]) -> str:
    return " and ".join(f"{share:.0%}" for share in shares)


def recursion(numbers: Numbers) -> Verdict:
    """Is the recursion exact, to 1 %?"""
    gaps = [rows["taylor2"]["to exact"] for rows in _by_depth(numbers)]
    text = f"estimates by the recursion differ from the exact ones by {_and(gaps)} of these, one layer and two"
    return verdict(text, max(gaps) < 0.01, gaps[0] < 0.01)


def deeper(numbers: Numbers) -> Verdict:
    """Tell how much can go there."""
    parts = []
    for name, rows in numbers["deeper"].items():
        shares = {way: rows[way]["within_1pt"] for way in ("oracle", "taylor1", "taylor2", "obs, compensated")}
        parts.append(f"{name}: {_shares(shares)}")
    return Verdict("within a point: " + "; ".join(parts), OPEN)
