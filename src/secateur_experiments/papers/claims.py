"""What the papers claim, one by one, beside what was measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from secateur_experiments.papers import rules
from secateur_experiments.papers.rules import Numbers, Verdict


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


CLAIMS = (
    Claim(
        "003, 2.3", "The second order is a much better estimate of the change than the first.",
        ("decisions",), rules.estimates,
        "A parabola sees that the error rises on both sides of a minimum, a straight line does not.",
    ),
    Claim(
        "003, 2.3", "Thresholding by mean or median helps the second order in some cases.",
        ("thresholds",), rules.thresholds,
        "It changes the order of the units above the mean alone, which go when most accuracy is lost.",
    ),
    Claim(
        "003, 3.1.1", "With one layer and a single ranking no criterion is superior.",
        ("2",), rules.single_layer,
        "Scored once, every criterion misses that removals change each other's cost.",
    ),
    Claim(
        "003, 3.1.1", "A single ranking is quite bad; re-ranking is better.",
        ("2", "3"), rules.less(("2", "oracle"), ("3", "oracle"), "single", "iterative"),
        "After each removal the cost of the others changes: units that stood in for each other become needed.",
    ),
    Claim(
        "003, 3.1.2", "Brute force with re-ranking takes almost 60 % of 1 × 100 without major loss.",
        ("3",), rules.removable("3", 0.6),
        "How much is spare depends on the data and the training; accuracy here is that on a whole test set.",
    ),
    Claim(
        "003, 3.1.2", "Second order is consistently better than first (one layer).",
        ("3",), rules.second_order("3", 1),
        "Near a minimum first derivatives all but vanish; what a removal costs is curvature.",
    ),
    Claim(
        "003, 3.1.3", "Units chosen by brute force have low, flat curves until the 90th.",
        ("4",), rules.flat,
        "Each unit chosen is flat beside those left; but what removals cost adds up, and later ones matter more.",
    ),
    Claim(
        "003, 3.1.3", "For some units even four times the output has no effect on the error.",
        ("4",), rules.boosted,
        "It may be where a unit adds little or what follows it is saturated; such units are rare.",
    ),
    Claim(
        "003, 3.1.3", "Units chosen by first order have flat or falling curves.",
        ("5",), rules.falling,
        "First order takes the unit whose slope promises most; it does not see the curve bend.",
    ),
    Claim(
        "003, 3.1.3", "Second order's choices are more like brute force's than first order's are.",
        ("decisions",), rules.like_brute_force,
        "With one hidden layer the recursion is exact, and removals stay close to parabolas.",
    ),
    Claim(
        "003, 3.2.1", "Two layers are harder to prune by a single ranking than one.",
        ("2", "7"), rules.less(("7", "oracle"), ("2", "oracle"), "two layers", "one layer"),
        "Units of one layer are what those of the next depend on; a score made once does not see either go.",
    ),
    Claim(
        "003, 3.2.2", "Two layers are harder to prune by re-ranking than one.",
        ("3", "8"), rules.less(("8", "oracle"), ("3", "oracle"), "two layers", "one layer"),
        "The second layer needs the first: fewer units are spare of 50 than of 100.",
    ),
    Claim(
        "003, 3.2.2", "Brute force with re-ranking takes up to 40 % of 2 × 50 without major loss.",
        ("8",), rules.removable("8", 0.4),
        "As with one layer: it depends on data and training.",
    ),
    Claim(
        "003, 3.2.2", "With two layers second order is better than first, but for the first 20 %.",
        ("8",), rules.second_order("8", 3),
        "As with one layer, though the recursion leaves a part of the curvature out.",
    ),
    Claim(
        "003, 3.2.2", "First and second order are inconsistent criteria in deeper networks.",
        ("decisions",), rules.inconsistent,
        "The recursion drops how units of the next layer depend on each other; exact curvature ranks well.",
    ),
    Claim(
        "003, 3.2.3", "With two layers removing brute force's choices changes the error little.",
        ("9",), rules.little_change("9"),
        "It chooses them for that; the changes add up all the same.",
    ),
    Claim(
        "003, 3.2.3", "The first derivative is accurate for the units that it chooses.",
        ("10",), rules.derivative_is_accurate,
        "A derivative is accurate for small changes of a gain; a removal changes it by one.",
    ),
    Claim(
        "003, 3.2.3", "Second order's choices are not overtly poor: the error changes little.",
        ("11",), rules.little_change("11"),
        "As for brute force; the recursion's errors show in which unit is taken, not in how flat it is.",
    ),
    Claim(
        "003, 3.3", "Beyond the first layer second order is not nearly as good as brute force.",
        ("8",), rules.less(("8", "taylor2"), ("8", "oracle"), "second order", "brute force"),
        "That is the recursion's fault: the exact second derivative is close to brute force.",
    ),
    Claim(
        "003, 3.3", "On toy sets second order is very close to brute force, and first order poor.",
        ("12",), rules.toys,
        "Steep edges make the error far from a parabola in the gains. The paper says little of its training.",
    ),
    Claim(
        "003, abstract", "40 to 60 % of the neurons go one after the other with minimal effect.",
        ("3", "8"), rules.serially,
        "See the two claims on re-ranking.",
    ),
    Claim(
        "003, 4", "Few neurons carry the function.",
        ("3", "8"), rules.uneven,
        "Brute force shows which units are spare; it does not show that the others cancel each other out.",
    ),
    Claim(
        "003, 4", "Once trained, bigger networks hold no advantage over smaller ones.",
        ("3", "8"), rules.no_advantage,
        "A small network that was trained loses little; a large one whose weights make up for what went loses less.",
    ),
    Claim(
        "003, A.1.3", "The recursion gives ∂²E/∂o² for any layer.",
        ("decisions",), rules.recursion,
        "It is exact for the last hidden layer and drops cross terms ∂²E/∂x_i∂x_k before it.",
    ),
    Claim(
        "001, abstract", "Correlated neurons cause faults when one is removed at a time.",
        ("correlation",), rules.faults,
        "Of two units that do the same each can go, but not both. Compensation hands what they did to others.",
    ),
    Claim(
        "003, 4", "It would be interesting to see deeper networks.",
        ("deeper",), rules.deeper,
        "The papers leave it open.",
    ),
)  # fmt: skip


def judged(numbers: Numbers) -> list[tuple[Claim, Verdict]]:
    """Judge the claims whose experiments were made."""
    return [(claim, claim.judge(numbers)) for claim in CLAIMS if all(name in numbers for name in claim.needs)]
