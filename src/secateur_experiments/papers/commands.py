"""`secateur reproduce`: arguments, and what is printed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from secateur.bench.commands import Json, Mnist, Seeds, experiment, print_json
from secateur.papers import report
from secateur.papers.claims import judged
from secateur.papers.finding import Finding
from secateur.papers.reproduce import EXPERIMENTS, chosen
from secateur.papers.reproduce import reproduce as run
from secateur.papers.study import Study
from secateur.reporting.page import text_of
from secateur.text import table

Figures = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FIGURE ...|all]", help=f"of the papers: {', '.join(EXPERIMENTS)}, or all"),
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="for report.html, paper.md, results.json and the pictures")]


def reproduce(
    figures: Figures = None,
    mnist: Mnist = None,
    out: Out = Path("reproduce-out"),
    seeds: Seeds = 3,
    as_json: Json = False,
) -> None:
    """The papers' figures and tables made again, ours beside them, and their claims one by one."""
    names = chosen(figures or ["all"])
    folder = report.folder(out)
    data, epochs = experiment(mnist)
    study = Study(data, epochs, range(seeds))
    findings = run(study, names)
    words = [*(figures or ["all"]), *(["--mnist", "DIR"] if mnist else []), "--out", "DIR", "--seeds", str(seeds)]
    claims = judged({name: one.numbers for name, one in findings.items()})
    written = report.write(study, findings, claims, folder, f"secateur reproduce {shlex.join(words)}")
    if as_json:
        print_json({**report.to_json(findings, claims), "files": list(map(str, written))})
        return
    typer.echo("\n\n".join(map(_text, findings.values())))
    if claims:
        rows = [(claim.source, claim.says, verdict.agrees) for claim, verdict in claims]
        typer.echo(f"\n{table(['where', 'claim', ''], rows, 'Claim by claim')}")
    typer.echo(f"\nreport and pictures: {folder.resolve()}")


def _text(finding: Finding) -> str:
    tables = [
        table(list(one.columns), [list(map(text_of, row)) for row in one.rows], one.caption) for one in finding.tables
    ]
    return "\n\n".join([f"# {finding.title}", *tables])
