"""`secateur reproduce`: arguments, and what is printed.

The command line imports this file for its help, so what is slow to import is imported by the command.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli_options import Json, print_json
from secateur.text import table
from secateur_experiments.commands import Mnist, Seeds

Figures = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FIGURE ...|all]",
        help="of the papers: 1 to 12, thresholds, decisions, correlation, deeper, or all",
    ),
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="for report.html, paper.md, results.json and the pictures")]


def reproduce(
    figures: Figures = None,
    mnist: Mnist = None,
    out: Out = Path("reproduce-out"),
    seeds: Seeds = 3,
    as_json: Json = False,
) -> None:
    """Make the papers' figures and tables again, ours beside them, and judge their claims one by one."""
    from secateur_experiments.datasets import digits_or_mnist
    from secateur_experiments.papers import claims, report
    from secateur_experiments.papers.reproduce import chosen
    from secateur_experiments.papers.reproduce import reproduce as run
    from secateur_experiments.study import Study

    names = chosen(figures or ["all"])
    folder = report.folder(out)
    study = Study(*digits_or_mnist(mnist), range(seeds))
    findings = run(study, names)
    words = [*(figures or ["all"]), *(["--mnist", "DIR"] if mnist else []), "--out", "DIR", "--seeds", str(seeds)]
    judged = claims.judged({name: finding.numbers for name, finding in findings.items()})
    written = report.write(study, findings, judged, folder, f"secateur reproduce {shlex.join(words)}")
    if as_json:
        print_json({**report.to_json(findings, judged), "files": list(map(str, written))})
        return
    typer.echo("\n\n".join(map(str, findings.values())))
    if judged:
        rows = [(claim.source, claim.says, verdict.agrees) for claim, verdict in judged]
        typer.echo(f"\n{table(['where', 'claim', ''], rows, 'Claim by claim')}")
    typer.echo(f"\nreport and pictures: {folder.resolve()}")
