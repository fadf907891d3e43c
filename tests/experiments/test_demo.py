"""The demonstration, on small networks; whole as a slow test."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from secateur import Budget, SecateurError, find_units, load, rank
from secateur.saliency.criterion import criteria
from secateur.structure import capture
from secateur_experiments.datasets import digits
from secateur_experiments.demo import demo, reloaded_difference
from secateur_experiments.networks import logistic_network
from secateur_experiments.training import train

WAYS = {f"{c}/{r}" for c in criteria() for r in ("single", "iterative")} | {
    f"{c}/quadratic" for c in ("ggn", "fisher", "hessian")
}


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory):
    """The reports on two networks, and the models that were exported for them."""
    exported, export = [], capture.export_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capture, "export_model", lambda model, *given, **options: (
            exported.append(model), export(model, *given, **options)
        )[1])  # fmt: skip
        reports = demo(digits(), [[6], [5, 4]], tmp_path_factory.mktemp("demo"), epochs=4, progress=False)
    return reports, exported


@pytest.fixture(scope="module")
def reports(demonstrated):
    return demonstrated[0]


def test_a_network_and_what_is_left_of_it_are_exported_once_for_all_ways(demonstrated):
    reports, exported = demonstrated
    assert len(exported) <= 2 * len(reports)


def test_every_criterion_has_a_curve_under_every_ranking_that_takes_it(reports):
    for report, units in zip(reports, (6, 9), strict=True):
        assert set(report.curves) == WAYS
        for curve in report.curves.values():
            assert list(curve.removed) == list(range(len(curve.loss)))
            assert len(curve.accuracy) == len(curve.loss) == units - report.name.count("-") + 2
            assert curve.total == units


def test_the_file_meets_the_budget_and_gives_the_network_back(reports):
    for report, widths in zip(reports, ([64, 6, 10], [64, 5, 4, 10]), strict=True):
        data = report.to_json()
        assert data["artifact"]["bytes"] == data["after"]["bytes"] <= data["before"]["bytes"] // 2
        small = load(report.artifact, logistic_network(widths, seed=5))
        x, y = digits().test
        assert (small(x).argmax(1) == y).double().mean().item() == pytest.approx(data["after"]["accuracy"])
        assert report.reloaded_difference <= 1e-6


def test_the_curves_are_measured_on_the_test_digits(reports):
    model = logistic_network([64, 6, 10])
    train(model, digits().train, epochs=4, progress=False)
    x, y = digits().test
    plan = rank(model, digits().train, "squared_error", criterion="taylor1", validation=(x, y), progress=False)
    curve = reports[0].to_json()["curves"]["taylor1/iterative"]
    assert curve["removed"] == [0, 1, 2, 3, 4, 5]
    assert curve["loss"] == [state.loss for state in plan.states]
    assert curve["accuracy"] == [state.accuracy for state in plan.states]
    assert curve["accuracy"][0] == (model(x).argmax(1) == y).sum().item() / len(y)


def test_the_best_way_is_chosen_on_the_training_digits_alone(reports):
    model = logistic_network([64, 5, 4, 10])
    train(model, digits().train, epochs=4, progress=False)
    units = find_units(model, digits().train[0])
    budget = Budget(bytes=reports[1].result.before.bytes // 2)

    def error(way: str) -> float:
        criterion, ranking = way.split("/")
        plan = rank(
            model, digits().train, "squared_error", units=units, criterion=criterion, ranking=ranking, progress=False
        )
        return plan.at(budget).states[-1].loss

    assert error(reports[1].best) == pytest.approx(min(map(error, WAYS)), rel=1e-6)


def test_json_has_the_promised_form(reports):
    data = json.loads(json.dumps(reports[0].to_json()))
    assert data["name"] == "64-6-10"
    assert set(data["before"]) == set(data["after"]) == {"params", "bytes", "loss", "accuracy"}
    assert data["verified"] is True
    assert 0 <= data["max_difference"] < 1e-5
    assert set(data["artifact"]) == {"path", "bytes"}
    assert data["before"]["params"] == 64 * 6 + 6 + 60 + 10


def test_the_text_shows_both_tables_and_where_things_are(reports):
    text = str(reports[0])
    assert text.count("oracle/iterative") >= 2
    assert "10 %   20 %" in text
    assert str(reports[0].picture) in text
    assert reports[0].picture.read_bytes()[:4] == b"\x89PNG"


def test_a_file_that_gives_back_another_network_is_an_error(reports):
    changed = logistic_network([64, reports[0].result.model[0].out_features, 10], seed=3)
    with pytest.raises(SecateurError, match=r"safetensors: the network loaded from the file differs"):
        reloaded_difference(reports[0].artifact, [64, 6, 10], changed, digits().test[0])


def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SecateurError, match=r"file/out: cannot be made a folder \(Not a directory\)"):
        demo(digits(), [[3]], tmp_path / "file" / "out", epochs=1)


@pytest.mark.slow
def test_the_whole_demo_halves_both_networks_and_keeps_their_accuracy(tmp_path):
    command = [sys.executable, "-m", "secateur", "demo", "--json", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    networks = json.loads(done.stdout)["networks"]
    assert [n["name"] for n in networks] == ["64-100-10", "64-50-50-10"]
    for network in networks:
        assert network["before"]["accuracy"] > 0.96
        assert network["after"]["accuracy"] > network["before"]["accuracy"] - 0.02
        assert set(network["curves"]) == WAYS
