"""`secateur reproduce`: what it makes, writes and refuses.

Also covers secateur_experiments.papers.finding.
"""

from __future__ import annotations

import json
from functools import partial

import pytest

from experiments.studies import FEW
from secateur.errors import ArgumentError
from secateur.reporting.page import Table
from secateur_experiments import datasets
from secateur_experiments.papers import claims, reproduce
from secateur_experiments.papers.claims import CLAIMS
from secateur_experiments.papers.finding import Finding
from secateur_experiments.papers.reproduce import EXPERIMENTS, Experiment
from secateur_experiments.study import Study


@pytest.fixture
def few(monkeypatch):
    """The command on few digits, and two quick experiments."""
    calls = []

    def make(made: Study) -> Finding:
        network = made.network(made.logistic((3,)), made.seeds[-1])
        total = sum(p.sum().item() for p in network.parameters())
        return Finding("Figure 2", (), (), (Table(["sum"], [[total]], "of weights"),), {"sum": total})

    def work(made: Study):
        return [lambda: calls.append(made)] * 3

    monkeypatch.setattr(reproduce, "EXPERIMENTS", {"2": Experiment(work, make), "decisions": Experiment(work, make)})
    monkeypatch.setattr(datasets, "digits_or_mnist", lambda _: (FEW, 2))
    return calls


@pytest.fixture
def run(command_line):
    return partial(command_line, "reproduce")


def test_all_figures_of_the_papers_are_there():
    assert [*EXPERIMENTS][:12] == [str(n) for n in range(1, 13)]
    assert reproduce.chosen(["all"]) == [*EXPERIMENTS]
    assert reproduce.chosen(["deeper", "3"]) == ["3", "deeper"]
    with pytest.raises(ArgumentError, match="unknown figure '13'; one of: all, 1, 2, 3"):
        reproduce.chosen(["13"])


def test_the_command_writes_report_claims_numbers(run, few, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "judged", lambda _: [])
    code, out, err = run("2", "--out", str(tmp_path / "new"), "--seeds", "2")
    assert (code, len(few)) == (0, 3), err
    results = json.loads((tmp_path / "new/results.json").read_text())
    assert out.startswith("# Figure 2\n\n")
    assert f"{results['figures']['2']['sum']:.4g}" in out
    assert f"report and pictures: {tmp_path / 'new'}" in out
    assert list(results["figures"]) == ["2"]
    page = (tmp_path / "new/report.html").read_text()
    assert "secateur reproduce 2 --out DIR --seeds 2" in page
    assert str(tmp_path) not in page
    assert "few: 200 samples to train on, 60 to make orders on, 60 to test on" in page


def test_the_same_seeds_give_the_same_numbers(run, few, tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "judged", lambda _: [])
    one, other = (json.loads(run("all", "--json", "--out", str(tmp_path / name))[1]) for name in "ab")
    assert list(one["figures"]) == ["2", "decisions"]
    assert one["figures"] == other["figures"]
    assert one["files"] == [str(tmp_path / "a" / name) for name in ("report.html", "paper.md", "results.json")]
    assert (tmp_path / "a/report.html").read_text() == (tmp_path / "b/report.html").read_text()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("13",), 2, "unknown figure '13'; one of: all, "),
        (("--out", "FILE"), 1, "FILE: cannot be made a folder"),
        (("--seeds", "0"), 2, "'--seeds'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_work(run, few, monkeypatch, tmp_path, words, code, message):
    monkeypatch.setattr(reproduce, "reproduce", lambda *_: pytest.fail("work was done"))
    (tmp_path / "FILE").touch()
    exit_code, _, err = run(*(word.replace("FILE", str(tmp_path / "FILE")) for word in words))
    assert exit_code == code
    assert message in err


@pytest.mark.slow
def test_all_of_it_on_the_digits(run, tmp_path):
    code, out, err = run("all", "--seeds", "1", "--json", "--out", str(tmp_path))
    results = json.loads(out)
    assert code == 0, err
    assert list(results["figures"]) == [*EXPERIMENTS]
    assert len(results["claims"]) == len(CLAIMS)
    one = results["figures"]["3"]
    assert one["oracle"]["start"] > 0.96
    assert one["obs, compensated"]["within_1pt"] > one["oracle"]["within_1pt"] > 0.4
    assert (tmp_path / "report.html").stat().st_size < 5e6
    assert all((tmp_path / f"figure-{n}.png").exists() for n in range(1, 13))
