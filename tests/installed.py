"""Packages as they lie in a folder once they are installed: modules, and what says their entry points."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]


def install(folder: Path, package: str, modules: Mapping[str, str], points: Mapping[str, Mapping[str, str]]) -> None:
    """Write a package of some modules by name, and its entry points by group and name."""
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(source)
    described = folder / f"{package}-1.0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in named.items()) for group, named in points.items()]
    (described / "entry_points.txt").write_text("\n".join(lines))


def run_with(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Call Python in a process of its own in which the packages of a folder are installed."""
    path = os.pathsep.join([str(folder), str(ROOT / "src"), *sys.path])
    return subprocess.run(
        [sys.executable, *words], env={**os.environ, "PYTHONPATH": path}, cwd=folder, capture_output=True, text=True
    )


COMMANDS = """
import sys
from secateur.cli import main
for line in sys.argv[1:]:
    sys.argv = ["secateur", *line.split()]
    try:
        main()
    except SystemExit as end:
        for stream in (sys.stdout, sys.stderr):
            print(f"\\f{end.code or 0}\\f", end="", file=stream, flush=True)
"""


def run_commands(folder: Path, *lines: str) -> list[tuple[int, str, str]]:
    """Give the command line these lines, one after the other in one such process: (exit code, stdout, stderr) each."""
    done = run_with(folder, "-c", COMMANDS, *lines)
    out, err = (stream.split("\f") for stream in (done.stdout, done.stderr))
    return list(zip(map(int, out[1::2]), out[::2], err[::2], strict=False))
