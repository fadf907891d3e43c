"""What `secateur reproduce` writes: the report, the claims in Markdown, all numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from secateur.artifacts.safetensors import make_folder, whole_file
from secateur.reporting import page as pages
from secateur.reporting.page import Page, Section, Table
from secateur.reporting.paths import check_page
from secateur.reporting.plots import write_picture
from secateur_experiments.papers.claims import Claim
from secateur_experiments.papers.finding import Finding
from secateur_experiments.papers.rules import Verdict
from secateur_experiments.study import Study
from secateur_experiments.subjects import channels

TITLE = "The Incredible Shrinking Neural Network, reproduced"
WORDS = (
    "Within a point: the largest share of the hidden units that can go with test accuracy at no point more than one "
    "point below the start. Medians over the networks of each kind; surfaces, pairs of neurons and deeper networks are "
    "of the first alone. Errors are squared errors per sample, of test samples where units go one after the other."
)


def folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder if it is not there, and refuse it before the work where it cannot be written to.

    Raises:
        ArtifactError: It cannot.
    """
    made = make_folder(path)
    check_page(made / "report.html")
    return made


def write(
    study: Study, findings: Mapping[str, Finding], claims: list[tuple[Claim, Verdict]], out: Path, command: str
) -> list[Path]:
    """Write report.html, paper.md, results.json and the pictures as PNG; return the files.

    Args:
        study: What was measured on.
        findings: By the name of the experiment.
        claims: What their numbers say of the claims.
        out: From `folder`.
        command: That wrote them.

    Raises:
        ArtifactError: A file cannot be written.
    """
    written = [out / "report.html", out / "paper.md", out / "results.json"]
    pages.write_page(report(study, findings, claims, command), written[0])
    for path, text in zip(written[1:], (markdown(study, claims, command), numbers(findings, claims)), strict=True):
        with whole_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for name, finding in findings.items():
        for i, drawing in enumerate(finding.drawings):
            written.append(out / f"{label(name)}{f'-{i + 1}' if i else ''}.png")
            write_picture(drawing.figure, written[-1])
    return written


def label(name: str) -> str:
    """Return an experiment's name in file names and links.

    >>> label("7"), label("decisions")
    ('figure-7', 'decisions')
    """
    return f"figure-{name}" if name.isdigit() else name


def report(study: Study, findings: Mapping[str, Finding], claims: list[tuple[Claim, Verdict]], command: str) -> Page:
    """Return the whole page."""
    first = [Section("claims", "Claim by claim", (WORDS,), (), (claim_table(claims),))] if claims else []
    sections = [*first, *(finding.section(label(name)) for name, finding in findings.items())]
    return Page(TITLE, summary(study, claims), settings(study, command), pages.environment(), sections)


def summary(study: Study, claims: list[tuple[Claim, Verdict]]) -> list[tuple[str, str]]:
    """Return what comes first."""
    verdicts = [verdict.agrees for _, verdict in claims]
    counts = ", ".join(f"{verdicts.count(kind)} {kind}" for kind in dict.fromkeys(verdicts))
    return [
        ("Data", study.data.name),
        ("Networks of each kind", str(len(study.seeds))),
        ("Claims", counts or "none judged"),
    ]


def settings(study: Study, command: str) -> dict[str, str]:
    """Tell how it came about."""
    data, deeper = study.data, channels(study.data, study.epochs)
    return {
        "Command": command,
        "Data": f"{data.name}: {len(data.train[0]):,} samples to train on, {len(data.calibration[0]):,} to make orders "
        f"on, {len(data.test[0]):,} to test on",
        "Training": f"Adam at {study.learning_rate} with cosine decay, batches of 128, {study.epochs} epochs, squared "
        f"error, no regulariser; {deeper.name} {deeper.epochs} epochs, cross-entropy",
        "Seeds": ", ".join(map(str, study.seeds)),
    }


def claim_table(claims: list[tuple[Claim, Verdict]]) -> Table:
    """Return a row for each claim."""
    rows = [[claim.says, claim.source, verdict.measured, verdict.agrees, claim.why] for claim, verdict in claims]
    return Table(["claim", "where", "measured", "verdict", "why"], rows, "What the papers claim, and what was measured")


def markdown(study: Study, claims: list[tuple[Claim, Verdict]], command: str) -> str:
    """Return the claims as a page in Markdown."""
    lines = [f"- {name}: {value}" for name, value in settings(study, command).items() if name != "Command"]
    rows = [
        f"| {claim.source} | {claim.says} | {verdict.measured} | {verdict.agrees} | {claim.why} |"
        for claim, verdict in claims
    ]
    head = "| where | claim | measured | | why |\n|---|---|---|---|---|"
    parts = [
        f"# {TITLE}", f"Written by the command below.\n\n```\n$ {command}\n```", "\n".join(lines), WORDS,
        "\n".join([head, *rows]),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def numbers(findings: Mapping[str, Finding], claims: list[tuple[Claim, Verdict]]) -> str:
    """Return all of it as JSON."""
    return json.dumps(to_json(findings, claims), indent=1, allow_nan=False) + "\n"


def to_json(findings: Mapping[str, Finding], claims: list[tuple[Claim, Verdict]]) -> dict[str, object]:
    """Return plain data."""
    rows = [{"source": c.source, "claim": c.says, "measured": v.measured, "verdict": v.agrees} for c, v in claims]
    return {"figures": {name: finding.numbers for name, finding in findings.items()}, "claims": rows}
