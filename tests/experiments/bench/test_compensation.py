"""The benchmark of compensation, on few digits and small networks.

Also covers secateur_experiments.bench.compensation_page and secateur_experiments.bench.timing.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

import secateur as sc
from experiments.studies import few
from secateur_experiments import datasets, study, subjects
from secateur_experiments.bench import compensation, fitting
from secateur_experiments.bench import compensation_page as pages
from secateur_experiments.bench.compensation import OBS, SCRATCH, WAYS
from secateur_experiments.bench.fitting import Cost
from secateur_experiments.curves import Curve, rows
from secateur_experiments.study import Study, Way

FEW = few(300, 80, 80)
SMALL = {
    subject.name: replace(subject, loss="cross_entropy")  # learn in a few epochs
    for subject in (subjects.logistic(FEW, 30, hidden, 0.1) for hidden in ((8,), (4, 6)))
}
ALONE = {name: WAYS[name] for name in ("magnitude, single", "oracle, iterative")}


def made(seeds=(0,), folder=None):
    return Study(FEW, 30, seeds, 0.1, folder)


@pytest.fixture(scope="module")
def compared():
    return compensation.compare(made((0, 1)), SMALL, ALONE, progress=False)


def test_the_ratio_is_to_the_best_way_without_compensation():
    def flat(removed):
        return [Curve([0, removed], [0.9, 0.9], 100)]

    ways = {"taylor1, single": flat(10), "oracle, iterative": flat(20), "oracle, iterative, compensated": flat(80)}
    assert compensation.ratio(ways) is None
    assert compensation.ratio({**ways, OBS: flat(50), SCRATCH: flat(90)}) == 2.5
    assert compensation.ratio({"taylor1, single": flat(0), OBS: flat(50)}) is None


# ------------------------------------------------------------ measured ones


def test_each_network_is_pruned_in_each_way_with_each_seed(compared):
    assert list(compared) == ["64-8-10", "64-4-6-10"]
    for ways in compared.values():
        assert list(ways) == [*ALONE, SCRATCH]
        assert [len(curves) for curves in ways.values()] == [2, 2, 2]


def test_accuracies_are_those_of_the_plan(compared):
    name = "64-4-6-10"
    model = made().network(SMALL[name], 1)
    plan = sc.rank(model, FEW.calibration, "cross_entropy", criterion="oracle", validation=FEW.test, progress=False)
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
    ways = {**ALONE, OBS: WAYS[OBS], "fitted": Way("magnitude", "single", fitted=True)}
    for curves in compensation.compare(made(), SMALL, ways, scratch=False, progress=False).values():
        assert len(curves[OBS][0].removed) > 2
        alone = max(sum(curves[way][0].accuracy[:5]) for way in ALONE)
        assert sum(curves[OBS][0].accuracy[:5]) >= alone - 0.05
        fitted, plain = (curves[way][0].accuracy for way in ("fitted", "magnitude, single"))
        assert fitted[0] == plain[0]
        assert fitted[1:4] != plain[1:4]


def test_a_curve_is_given_up_where_accuracy_is_far_below_the_start():
    job = compensation.Job(made(), replace(SMALL["64-8-10"], every=10), 0, lambda *_: None)
    curve = job.measure(lambda n: 0.9 - 0.01 * n, 100, 90, 1.5)
    assert (list(curve.removed), curve.seconds) == ([0, 10, 20], 1.5)
    assert list(job.measure(lambda _: 0.9, 100, 35, 1.5).removed) == [0, 10, 20, 30]
    assert curve.threads == torch.get_num_threads()


def test_only_units_that_count_are_removed_and_the_oracle_may_be_spared(monkeypatch):
    seen = []

    def ranked(model, calibration, loss, *, units, **options):
        seen.append((len(calibration[0]), [unit_set.name for unit_set in units], options.get("shortlist")))
        return sc.rank(model, calibration, loss, units=units, **options)

    monkeypatch.setattr(study, "rank", ranked)
    subject = replace(SMALL["64-4-6-10"], counts=lambda s: s.size == 6, spared={"samples": 20, "shortlist": 2})
    curves = compensation.compare(made(), {"net": subject}, ALONE, scratch=False, progress=False)["net"]
    assert seen == [(80, ["2"], None), (20, ["2"], 2)]
    assert {curve.total for (curve,) in curves.values()} == {6}


def test_networks_that_are_not_logistic_are_spared_what_takes_long(monkeypatch):
    for what in ("pruned", "scratch"):
        monkeypatch.setattr(compensation.Job, what, lambda *_: Curve([0], [0.5], 1))
    subject = replace(SMALL["64-8-10"], hidden=())
    curves = compensation.compare(made(), {**SMALL, "other": subject}, progress=False)
    assert list(curves["64-8-10"]) == [*WAYS, SCRATCH]
    spared = ["oracle, iterative, compensated", "obs, shortlist 5, compensated", SCRATCH]
    assert list(curves["other"]) == [way for way in [*WAYS, SCRATCH] if way not in spared]


def test_an_interrupted_bench_goes_on(tmp_path, monkeypatch):
    def run():
        return compensation.compare(made(folder=tmp_path / "new"), SMALL, ALONE, progress=False)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compensation.Job, "train_smaller", stop)
        with pytest.raises(KeyboardInterrupt):
            run()
    names = json.loads((tmp_path / "new/curves.json").read_text())
    assert list(names) == [
        f"{network} | seed 0 | 80 samples | {way}" for way in ALONE for network in ("64-8-10", "64-4-6-10")
    ]
    curves = run()
    assert {path.name for path in (tmp_path / "new").iterdir()} >= {"64-8-10-0.pt", "64-4-6-10-0.pt", "64-1-10-0.pt"}
    for what in ("prune", "train_smaller"):
        monkeypatch.setattr(compensation.Job, what, stop)
    monkeypatch.setattr(study, "train", stop)
    assert run() == curves


def test_what_spares_the_oracle_is_in_the_name_of_its_curve():
    measured = made()
    subject = replace(SMALL["64-8-10"], spared={"samples": 20, "shortlist": 2})
    named = []
    measured.stored = lambda name, _: named.append(name)
    job = compensation.Job(measured, subject, 1, print)
    for label, way in (("oracle, iterative", Way("oracle")), ("obs", Way("obs", compensate=True, shortlist=5))):
        job.pruned(label, way)
    assert named == [
        "64-8-10 | seed 1 | 20 samples | oracle, iterative | shortlist 2", "64-8-10 | seed 1 | 80 samples | obs"
    ]  # fmt: skip


# ------------------------------------------------------------ the page and the command


@pytest.fixture
def run(command_line):
    return partial(command_line, "bench", "compensation")


@pytest.fixture
def quick(monkeypatch):
    """The command on few digits, small networks and few ways."""
    monkeypatch.setattr(datasets, "digits_or_mnist", lambda _: (FEW, 30))
    monkeypatch.setattr(subjects, "subjects", lambda *_: SMALL)
    monkeypatch.setattr(fitting, "costs", lambda data: [Cost(f"pass over {data.name}", 0.25, 0.125, 2.0)])
    monkeypatch.setattr(compensation, "compare", partial(compensation.compare, ways=ALONE, progress=False))


def test_the_page_holds_the_tables_numbers(compared):
    sections = compensation.sections(compared, SMALL)
    page = pages.document(sections, "the command", "The setting.", "a.png")
    assert "$ the command\n" in page
    assert "The setting." in page
    assert "![Test accuracy against the share of units removed](a.png)" in page
    for row in rows(compared):
        (line,) = (line for line in pages.text(section_of(sections, row)).splitlines() if line.startswith(row.way))
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
    exit_code, _, err = run(*(word.replace("FILE", str(tmp_path / "FILE")) for word in words))
    assert exit_code == code
    assert message in err
