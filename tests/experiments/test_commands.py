"""The commands of the experiments: how they are found, what they need, what is imported; `secateur demo`.

Also covers secateur_experiments.papers.commands.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from experiments.studies import FEW
from secateur_experiments import datasets, demo
from secateur_experiments.papers.reproduce import EXPERIMENTS

WITHOUT = """
import sys

class NotInstalled:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("sklearn", "scipy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
sys.argv = ["secateur", *sys.argv[1:]]
from secateur.cli import main
main()
"""
LOADED = """
import sys
sys.argv = ["secateur", *sys.argv[1:]]
from secateur.cli import main
try:
    main()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("words", [(), ("reproduce",), ("bench", "compensation")])
def test_help_needs_and_imports_none_of_the_experiments_libraries(words):
    done = python(LOADED, *words, "--help")
    loaded = done.stderr.split()
    assert done.returncode == 0
    assert "torch" in loaded
    assert {"sklearn", "scipy", "matplotlib", "jinja2"}.isdisjoint(loaded)
    assert {name for name in loaded if name.startswith("secateur_experiments")} == {
        "secateur_experiments", "secateur_experiments.commands", "secateur_experiments.papers",
        "secateur_experiments.papers.commands", "secateur_experiments.bench", "secateur_experiments.bench.commands",
        "secateur_experiments.bench.artifacts_command",
        "secateur_experiments.bench.suite", "secateur_experiments.bench.suite.commands",
    }  # fmt: skip


@pytest.mark.parametrize("words", [("demo",), ("reproduce", "2"), ("bench", "oracle")])
def test_without_the_extra_one_error_names_it(tmp_path, words):
    done = python(WITHOUT, *words, "--out", str(tmp_path / "new.png"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "secateur: sklearn.datasets is needed, which comes with the experiments: pip install 'secateur[experiments]' "
        "(No module named 'sklearn')\n"
    )


def test_the_library_and_its_own_commands_do_without_the_extra():
    done = python(WITHOUT, "inspect", "secateur_experiments.networks:lenet")
    assert (done.returncode, done.stdout) == (1, "")
    assert "example" in done.stderr  # convolutions come first; no word of the extra
    assert "experiments'" not in done.stderr


def test_all_commands_are_found_by_their_entry_points(command_line):
    code, out, _ = command_line("--help")
    assert code == 0
    for name, text in {
        "demo": "Do the main job on real digits:", "reproduce": "Make the papers' figures and tables again,",
        "bench": "Compare two sides in one process,",
    }.items():  # fmt: skip
        (line,) = (line for line in out.splitlines() if line.startswith(f"│ {name} "))
        assert text in line


def test_help_names_every_figure(command_line):
    code, out, _ = command_line("reproduce", "--help")
    named = " ".join(out.replace("│", " ").split())
    assert code == 0
    assert [*EXPERIMENTS][:12] == [str(n) for n in range(1, 13)]
    assert f"of the papers: 1 to 12, {', '.join([*EXPERIMENTS][12:])}, or all" in named


def test_the_demo_prints_its_reports_or_one_json_object(command_line, monkeypatch, tmp_path):
    class Report:
        def to_json(self):
            return {"name": "a"}

        def __str__(self):
            return "the text"

    seen = []
    monkeypatch.setattr(datasets, "digits_or_mnist", lambda _: (FEW, 7))
    monkeypatch.setattr(demo, "demo", lambda *work: seen.append(work) or [Report(), Report()])
    code, out, err = command_line("demo", "--out", str(tmp_path))
    assert (code, out, err) == (0, f"the text\n\n\nthe text\n\nThe pictures are in {tmp_path}\n", "")
    assert json.loads(command_line("demo", "--json")[1]) == {"networks": [{"name": "a"}] * 2}
    assert seen[0] == (FEW, [[100], [50, 50]], tmp_path, 7)
    assert str(seen[1][2]) == "demo-out"


def test_a_folder_without_mnist_is_refused(command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = command_line("demo", "--mnist", "nowhere")
    assert (code, out) == (2, "")
    assert err.startswith("secateur: nowhere/train-images-idx3-ubyte.gz: expected a gzipped IDX file")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_no_file(tmp_path):
    command = [sys.executable, "-m", "secateur", "demo", "--out", str(tmp_path / "out")]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, env=os.environ, preexec_fn=heard)
    while not (tmp_path / "out").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert b"Traceback" not in err
    assert list((tmp_path / "out").iterdir()) == []
