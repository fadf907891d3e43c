"""What is shown of the phases of a job, and what an interrupt says; also covers secateur.phases."""

from __future__ import annotations

import io
import threading

import pytest
import torch
from rich.console import Console
from torch import nn

import secateur as sc
from secateur.phases import Job, Phase, current_job, phase, working_on
from secateur.reporting import progress
from secateur.reporting.progress import bars, log, now, progress_bar, showing


@pytest.mark.parametrize("shown", [True, False])
def test_short_work_is_silent_where_there_is_no_terminal(capfd, shown):
    with progress_bar("work", shown) as bar:
        bar(1, 2)
    assert capfd.readouterr() == ("", "")


def test_a_phase_that_nobody_listens_to_is_one_all_the_same():
    assert current_job() is None
    with phase("work", 3) as work:
        work.advance()
    assert str(work) == "work, 1 of 3"


def test_phases_lie_within_each_other():
    with working_on(Job()) as job:
        with phase("ranking by obs", 1_650) as ranking:
            ranking.advance(12)
            with phase("measuring"):
                assert str(job) == "ranking by obs, 12 of 1,650: measuring"
            assert str(job) == "ranking by obs, 12 of 1,650"
        assert job.phases == []
    assert current_job() is None


def test_an_item_is_done_when_the_next_is_asked_for():
    work = Phase("work", 2)
    assert [(item, work.done) for item in work.through("ab")] == [("a", 0), ("b", 1)]
    assert work.done == 2


def test_another_thread_works_on_nothing_of_this_one():
    jobs = []
    with showing(False):
        thread = threading.Thread(target=lambda: jobs.append(current_job()))
        thread.start()
        thread.join()
    assert jobs == [None]


def test_time_left_goes_by_what_is_done(monkeypatch):
    monkeypatch.setattr("secateur.phases.time.monotonic", lambda: 130.0)
    half = Phase("fitting layers", 4, 1, began=100.0)
    assert half.seconds_left == 90
    assert now(Job(phases=[half, Phase("measuring")])) == "fitting layers, 1 of 4, 1 min 30 s left: measuring"
    assert Phase("fitting layers", 4, 0, began=100.0).seconds_left is None
    assert Phase("proving", None, 3, began=100.0).seconds_left is None
    assert now(Job()) == "working"


def test_a_terminal_shows_a_bar_for_each_phase(monkeypatch):
    monkeypatch.setattr("secateur.phases.time.monotonic", lambda: 130.0)
    console = Console(file=io.StringIO(), width=100)
    console.print(bars(Job(phases=[Phase("fitting layers", 4, 1, began=100.0), Phase("measuring", None)])))
    first, second = console.file.getvalue().splitlines()
    assert first.split() == ["fitting", "layers", "━" * 10, "1", "of", "4", "1", "min", "30", "s", "left"]
    assert second.split()[0] == "measuring"


class Lines(io.StringIO):
    """A log that says when a line was written."""

    def __init__(self):
        super().__init__()
        self.written = threading.Event()

    def flush(self):
        self.written.set()


def test_a_log_has_a_line_now_and_then_while_one_call_takes_long(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.01)
    lines = Lines()
    with working_on(Job()) as job, log(job, lines), phase("removal orders", 320):
        assert lines.written.wait(60)
    assert lines.getvalue().splitlines()[0] == "removal orders, 0 of 320"


def test_a_log_has_a_line_at_the_end_of_each_long_outermost_phase(monkeypatch):
    lines = Lines()
    with working_on(Job()) as job, log(job, lines):
        with phase("short"):
            pass
        monkeypatch.setattr(progress, "LONG", 0.0)
        with phase("long"), phase("inside"):
            pass
        job.say("a line")
    assert lines.getvalue() == "long: done after 0 s\na line\n"


def test_what_is_shown_within_something_shown_is_a_part_of_it():
    with showing() as outer, showing() as inner, showing(False) as hidden:
        assert inner is outer
        assert hidden is not outer


def interrupted_work():
    """Be interrupted in the second phase."""
    with showing(False):
        with phase("done before"):
            pass
        with phase("fitting layers", 18) as fitting, phase("measuring"):
            fitting.advance(3)
            raise KeyboardInterrupt


def test_an_interrupt_says_where_it_was():
    text = r"^interrupted while fitting layers, 3 of 18: measuring, after 0 s; nothing was written$"
    with pytest.raises(KeyboardInterrupt, match=text):
        interrupted_work()


def test_an_interrupt_between_phases_says_what_it_can():
    with pytest.raises(KeyboardInterrupt, match=r"^interrupted after 0 s; nothing was written$"), showing(False):
        raise KeyboardInterrupt


def test_shrinking_says_what_it_does():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    data, said = (torch.randn(40, 3), torch.randint(2, (40,))), []
    with showing() as job:
        job.on_end = lambda over: said.append(str(over))
        sc.shrink(model, data, "cross_entropy", sc.Budget(remove_units=4), ranking="layerwise")
    assert said == [
        "capturing the model", "measuring, 1 of 1", "learning moments, 1 of 1", "ordering removals, 7 of 7",
        "fitting layers, 1 of 1", "measuring, 1 of 1", "cutting and proving",
    ]  # fmt: skip
    said.clear()
    with showing() as job:
        job.on_end = lambda over: said.append(str(over))
        sc.rank(
            model, data, "cross_entropy", criterion="taylor1", ranking="iterative", budget=sc.Budget(remove_units=4)
        )
    assert said[-1] == "ranking by taylor1, 4 of 7"


@pytest.mark.parametrize("ranking", ["layerwise", "iterative", "quadratic"])
def test_an_interrupt_of_a_ranking_leaves_the_model_as_it_was(ranking, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    data, before = (torch.randn(40, 3).double(), torch.randint(2, (40,))), [p.clone() for p in model.parameters()]
    monkeypatch.setattr("secateur.objective.gated_loss.quality_of", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"^interrupted while .*measuring, 0 of 1, after"):
        sc.shrink(model, data, "cross_entropy", sc.Budget(remove_units=4), ranking=ranking, progress=False)
    assert all(map(torch.equal, before, model.parameters()))
