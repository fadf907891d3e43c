"""The benchmark of compensation, on few digits and small networks."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.bench import commands, compensation, experiments
from secateur.bench.compensation import OBS, SCRATCH, WAYS
from secateur.bench.curves import Cache, Curve, best, middle, rows, units_of, within
from secateur.bench.fitting import Cost
from secateur.errors import ArtifactError
from secateur.papers.data import digits
from secateur.papers.training import train
from secateur.reporting import compensation as pages
from secateur.saliency.gates import Gated
from secateur.saliency.losses import find_loss

WHOLE = digits()
FEW = replace(
    WHOLE, name="few", **{part: tuple(t[:80] for t in getattr(WHOLE, part)) for part in ("calibration", "test")},
    train=tuple(t[:300] for t in WHOLE.train),
)  # fmt: skip
SMALL = {
    name: replace(one, learning_rate=0.1, loss="cross_entropy")  # learn in a few epochs
    for name, one in (experiments.logistic(FEW, 30, hidden) for hidden in ((8,), (4, 6)))
}
ALONE = {name: WAYS[name] for name in ("magnitude, single", "oracle, iterative")}


@pytest.fixture(scope="module")
def compared():
    return compensation.compare(FEW, SMALL, (0, 1), ways=ALONE, progress=False)


# ------------------------------------------------------------ curves by hand


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([0.90, 0.895, 0.89, 0.88, 0.95], 20),  # exactly a point is allowed, and what comes after a drop is not
        ([0.90, 0.80, 0.90, 0.90, 0.90], 0),
        ([0.90, 0.90, 0.90, 0.91, 0.89], 40),
        ([0.90], 0),
    ],
)
def test_the_share_within_a_point_ends_before_the_first_that_is_not(accuracies, expected):
    assert Curve([0, 1, 2, 3, 4][: len(accuracies)], accuracies, 10).within == expected


def test_accuracies_are_read_off_at_shares_and_nothing_is_known_beyond_the_end():
    curve = Curve([0, 2, 4, 6], [0.9, 0.8, 0.7, 0.6], 10)
    assert [curve.at(share) for share in (0, 20, 30, 40, 60, 61)] == [0.9, 0.8, 0.7, 0.7, 0.6, -math.inf]
    assert units_of(30, 10) == 3  # 0.3 · 10 is a little more than 3


def test_rows_are_medians_and_a_curve_given_up_counts_as_the_lowest():
    curves = [
        Curve([0, 3, 5], [0.90, 0.89, 0.5], 10, 1.0),
        Curve([0, 3, 5], [0.92, 0.90, 0.8], 10, 3.0),
        Curve([0, 3], [0.94, 0.94], 10, 2.0),
    ]
    (row,) = rows({"net": {"way": curves}})
    assert (row.network, row.way, row.start, row.seconds) == ("net", "way", 0.92, 2.0)
    assert row.accuracy == (0.90, 0.90, 0.90, 0.5, 0.5, None, None, None, None)
    assert row.within_1pt == within(curves) == 30
    assert middle(curves) == [(0, 0.92), (30, 0.90), (50, 0.5)]
    (row,) = rows({"net": {SCRATCH: [Curve([0], [0.9], 10)]}})
    assert (row.seconds, row.accuracy) == (None, (None,) * 9)


def test_the_ratio_is_to_the_best_way_without_compensation():
    def flat(removed):
        return [Curve([0, removed], [0.9, 0.9], 100)]

    ways = {"taylor1, single": flat(10), "oracle, iterative": flat(20), "oracle, iterative, compensated": flat(80)}
    assert compensation.ratio(ways) is None
    assert compensation.ratio({**ways, OBS: flat(50), SCRATCH: flat(90)}) == 2.5
    assert compensation.ratio({"taylor1, single": flat(0), OBS: flat(50)}) is None
    assert best(ways, ["taylor1, single", "magnitude, single"]) == "taylor1, single"
    assert best(ways, ["magnitude, single"]) is None


# ------------------------------------------------------------ measured ones


def test_each_network_is_pruned_in_each_way_with_each_seed(compared):
    assert list(compared) == ["64-8-10", "64-4-6-10"]
    for ways in compared.values():
        assert list(ways) == [*ALONE, SCRATCH]
        assert [len(curves) for curves in ways.values()] == [2, 2, 2]


def test_accuracies_are_those_of_the_plan(compared):
    name, one = "64-4-6-10", SMALL["64-4-6-10"]
    model = one.build(1)
    train(model, FEW.train, one.epochs, find_loss(one.loss), one.learning_rate, seed=1, progress=False)
    plan = sc.rank(model, FEW.calibration, "cross_entropy", validation=FEW.test, progress=False)
    curve = compared[name]["oracle, iterative"][1]
    expected = [state.accuracy for state in plan.states]
    assert list(curve.accuracy) == pytest.approx(expected[: len(curve.removed)])
    assert list(curve.removed) == list(range(len(curve.removed)))
    assert len(curve.removed) == len(expected) or curve.accuracy[-1] < expected[0] - compensation.FALL
    assert curve.total == 10


def test_smaller_networks_are_trained_from_scratch(compared):
    first = compared["64-8-10"][SCRATCH][0]
    assert list(first.removed) == [0, 1, 2, 3, 4, 4, 5, 6, 7, 7]
    assert first.accuracy[0] == compared["64-8-10"]["magnitude, single"][0].accuracy[0]
    assert first.accuracy[4] == first.accuracy[5]  # one network


def test_weights_are_fitted_where_the_way_says_so():
    curves = compensation.compare(
        FEW, SMALL, (0,), ways={**ALONE, OBS: WAYS[OBS]}, scratch=False, progress=False
    )  # fmt: skip
    for ways in curves.values():
        assert len(ways[OBS][0].removed) > 2
        alone = max(sum(ways[way][0].accuracy[:5]) for way in ALONE)
        assert sum(ways[OBS][0].accuracy[:5]) >= alone - 0.05


@pytest.mark.parametrize(("fall", "removed"), [(0.05, [0, 2, 4]), (0, [0, 2, 4, 6])])
def test_a_curve_is_given_up_where_accuracy_is_far_below_the_start(monkeypatch, fall, removed):
    monkeypatch.setattr(Gated, "evaluate", lambda _, g: (0.0, 0.9 - fall * int((g == 0).sum())))
    one = replace(SMALL["64-8-10"], every=25)
    ways = {"magnitude, single": WAYS["magnitude, single"]}
    curves = compensation.compare(FEW, {"net": one}, (0,), ways=ways, scratch=False, progress=False)
    (curve,) = curves["net"]["magnitude, single"]
    assert (list(curve.removed), curve.total, curve.threads) == (removed, 8, torch.get_num_threads())


def test_only_units_that_count_are_removed_and_the_oracle_may_be_spared(monkeypatch):
    seen = []

    def ranked(model, calibration, loss, units, **options):
        seen.append((len(calibration[0]), [unit_set.name for unit_set in units], options.get("shortlist")))
        return sc.rank(model, calibration, loss, units, **options)

    monkeypatch.setattr(compensation, "rank", ranked)
    one = replace(SMALL["64-4-6-10"], counts=lambda s: s.size == 6, spared={"samples": 20, "shortlist": 2})
    curves = compensation.compare(FEW, {"net": one}, (0,), ways=ALONE, scratch=False, progress=False)["net"]
    assert seen == [(80, ["2"], None), (20, ["2"], 2)]
    assert {curve.total for (curve,) in curves.values()} == {6}


# ------------------------------------------------------------ the cache


def test_an_interrupted_bench_goes_on(tmp_path, monkeypatch):
    def run():
        return compensation.compare(FEW, SMALL, (0,), Cache(tmp_path / "new"), ALONE, progress=False)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compensation.Job, "scratch", stop)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert len(json.loads((tmp_path / "new/curves.json").read_text())) == 4
    found = run()
    assert {path.name for path in (tmp_path / "new").iterdir()} >= {"64-8-10-0.pt", "64-4-6-10-0.pt", "64-1-10-0.pt"}
    monkeypatch.setattr(Cache, "network", stop)
    for what in ("rank", "accuracy"):
        monkeypatch.setattr(compensation, what, stop)
    assert run() == found


def test_trained_networks_are_read_again(tmp_path):
    def build():
        return nn.Linear(2, 2)

    trained = Cache(tmp_path).network("net", build, lambda model: nn.init.ones_(model.weight))
    again = Cache(tmp_path).network("net", build, lambda _: pytest.fail("trained twice"))
    assert torch.equal(trained.weight, again.weight)
    (tmp_path / "net.pt").write_bytes(b"no weights")
    with pytest.raises(ArtifactError, match=r"net\.pt: does not hold the weights of net"):
        Cache(tmp_path).network("net", build, print)


@pytest.mark.parametrize("content", ["{", "[1]", '{"a": {"b": 1}}'])
def test_a_broken_file_of_curves_is_refused(tmp_path, content):
    (tmp_path / "curves.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"curves\.json: holds no curves"):
        Cache(tmp_path)


def test_a_cache_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="file: cannot be made a folder"):
        Cache(tmp_path / "file")


# ------------------------------------------------------------ the page and the command


@pytest.fixture
def run(command_line):
    return partial(command_line, "bench", "compensation")


@pytest.fixture
def quick(monkeypatch):
    """The command on few digits, small networks and few ways."""
    monkeypatch.setattr(commands, "experiment", lambda _: (FEW, 30))
    monkeypatch.setattr(commands, "experiments", lambda *_: SMALL)
    monkeypatch.setattr(commands, "costs", lambda data: [Cost(f"pass over {data.name}", 0.25, 0.125, 2.0)])
    monkeypatch.setattr(compensation, "compare", partial(compensation.compare, ways=ALONE, progress=False))


def test_the_page_holds_the_tables_numbers(compared):
    sections = compensation.sections(compared, SMALL)
    page = pages.document(sections, "the command", "The setting.", "a.png")
    assert "$ the command\n" in page
    assert "The setting." in page
    assert "![Test accuracy against the share of units removed](a.png)" in page
    for row in rows(compared):
        (line,) = (one for one in pages.text(section_of(sections, row)).splitlines() if one.startswith(row.way))
        assert line in page
        assert f" {row.start:.4f} " in line
        assert f" {row.within_1pt:.3g}" in line
    assert "removes" not in page.split("## ")[1]  # no ratio without obs


def section_of(sections, row):
    return next(section for section in sections if section.name == row.network)


def test_the_ratio_is_on_the_page():
    row = {"way": "a", "start": 1.0, "accuracy": [0.5], "within_1pt": 1, "seconds": None}
    assert "removes 1.23 times the share" in pages.text(pages.Section("net", "About.", [row], 1.234, {}))


def test_the_picture_has_a_line_for_the_better_ranking_of_each_criterion(compared, tmp_path):
    more = {name: {**ways, OBS: ways["oracle, iterative"]} for name, ways in compared.items()}
    sections = compensation.sections(more, SMALL)
    assert [list(section.lines) for section in sections] == [[OBS, "oracle", "magnitude", SCRATCH]] * 2
    pages.picture([*sections, *sections], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_writes_page_and_picture(run, quick, tmp_path):
    code, out, _ = run("--only", "64-8-10", "--seeds", "1", "--out", str(tmp_path / "new"), "--json")
    data = json.loads(out)
    assert code == 0
    assert [(row["network"], row["way"]) for row in data["rows"]] == [("64-8-10", way) for way in [*ALONE, SCRATCH]]
    assert (data["ratios"], data["costs"]) == ({"64-8-10": None}, [])
    page = (tmp_path / "new/compensation.md").read_text()
    assert "$ secateur bench compensation --only 64-8-10 --seeds 1 --out DIR\n" in page
    assert str(tmp_path) not in page
    assert "few: trained on 300 digits with seeds 0 to 0" in page
    assert (tmp_path / "new/compensation-accuracy.png").stat().st_size > 10_000


def test_what_it_costs_is_timed_with_all_networks(run, quick, tmp_path):
    words = ("--seeds", "1", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path))
    out = run(*words)[1]
    section = out[out.index("## What it costs") :].strip()
    assert section.splitlines()[-2].split() == ["pass", "over", "few", "0.250", "0.125", "2.0"]
    assert section in (tmp_path / "compensation.md").read_text()
    expected = [{"task": "pass over few", "seconds": 0.25, "forward": 0.125, "ratio": 2.0}]
    assert json.loads(run(*words, "--json")[1])["costs"] == expected


def test_the_command_prints_its_tables(run, quick, tmp_path):
    code, out, _ = run("--only", "64-8-10", "--seeds", "1", "--cache", str(tmp_path))
    assert (code, run("--only", "64-8-10", "--seeds", "1", "--cache", str(tmp_path))[1]) == (0, out)
    assert out.startswith("## 64-8-10\n\n8 neurons. Loss `cross_entropy`, 30 epochs; orders on 80 calibration digits.")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--only", "lenet"), 2, "unknown only 'lenet'; one of: 64-8-10, 64-4-6-10"),
        (("--out", "FILE/out"), 1, "out: cannot be made a folder"),
        (("--cache", "FILE/cache"), 1, "cache: cannot be made a folder"),
        (("--seeds", "0"), 2, "'--seeds'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_work(run, quick, monkeypatch, tmp_path, words, code, message):
    monkeypatch.setattr(compensation, "compare", lambda *_: pytest.fail("work was done"))
    (tmp_path / "FILE").touch()
    found, _, err = run(*(word.replace("FILE", str(tmp_path / "FILE")) for word in words))
    assert found == code
    assert message in err
