"""The suite's table."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import torch

COLUMNS = {
    "equal": "equal", "free": "free dimensions", "generate": "generate", "train": "train", "deepcopy": "copy",
    "state_dict": "state dict", "save": "save", "export": "export", "again": "cut again",
    "unequal": "unequal shares", "compile": "compile",
}  # fmt: skip


def captured(row: dict[str, Any]) -> str:
    """Return which parts compute by captured calls."""
    parts = row["captured"]
    return "none" if not parts else "the whole" if "" in parts else f"{len(parts)}: {parts[0]}"


def failures(row: dict[str, Any]) -> dict[str, str]:
    """Return the reasons of all checks that failed, by column."""
    return {title: row[name] for name, title in COLUMNS.items() if row[name].startswith("no: ")}


def text(row: dict[str, Any]) -> str:
    """Return a row as one line, and one more for each failure."""
    if "skipped" in row or "error" in row:
        return f"{row['name']}: " + (f"skipped, {row['skipped']}" if "skipped" in row else f"not cut: {row['error']}")
    bad = failures(row)
    generated = f", generate {row['generate']}" if row["generate"] and "generate" not in bad else ""
    head = (
        f"{row['name']}: captured {captured(row)}, free {'?' if 'free dimensions' in bad else row['free']}{generated}"
    )
    notes = [row["note"]] if row["note"] else []
    size = f"{row['left']:,} of {row['params']:,}, {row['seconds']:.1f} s"
    notes += [f"unequal shares: {row['unequal']}"] if row["unequal"].startswith("captured") else []
    return "\n    ".join([f"{head}, {size}", *notes, *(f"{title} {why}" for title, why in bad.items())])


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return what the rows add up to, one line for each thing that is checked."""
    cut = [row for row in rows if "captured" in row]
    tried = [row for row in rows if "skipped" not in row]
    whole = sum(not row["captured"] for row in cut)
    lines = [f"- {len(cut)} of {len(tried)} networks were cut, {whole} without a captured part."]
    for name, title in COLUMNS.items():
        asked = [row for row in cut if row[name]]
        lines.append(f"- {title}: {sum(not row[name].startswith('no: ') for row in asked)} of {len(asked)}.")
    lines.append(
        f"- unequal shares without a captured part: {sum(row['unequal'] == 'yes' for row in cut)} of {len(cut)}."
    )
    return lines


def section(rows: Sequence[dict[str, Any]], command: str) -> str:
    """Return the page's section."""
    lines = [
        "## Used as before",
        "",
        "Tiny networks with random parameters and buffers, 40 % of every unit set of the default scope removed at "
        "random. What the cut one gives is compared with the original in which every entry that is gone is zero, "
        "found by values alone, to 1e-9 in float64: at the example's shapes (*equal*), at other numbers of samples and "
        "every other length or size that the original takes (*free dimensions*), for three tokens of `generate` with "
        "each kind of cache. *captured*: modules that compute by captured calls, not by their own code. *train*: one "
        "step, every parameter that had a gradient has one. What is made of the cut network by `copy.deepcopy`, "
        "`load_state_dict`, `torch.save`, `torch.export` and `torch.compile` (backend eager, 15 s at most) and by "
        "cutting it again gives the same. *unequal shares*: 40 % of all units together, so that each set loses another "
        "share; equal, other sizes and `generate` once more. Empty: nothing to check.",
        "",
        f"Made by `{command}` with PyTorch {torch.__version__} on {platform.machine()}, one thread.",
        "",
        *summary(rows),
        "",
        "| network | parameters | left | | captured | " + " | ".join(COLUMNS.values()) + " | seconds | note |",
        "|---|--:|--:|--:|---|" + "---|" * len(COLUMNS) + "--:|---|",
    ]
    for row in rows:
        if "captured" in row:
            cells = [row[name].replace("|", "/") for name in COLUMNS]
            sizes = f"{row['params']:,} | {row['left']:,} | {row['left'] / row['params']:.0%}"
            seconds = f"{row['seconds']:.1f} | {row['note'].replace('|', '/')}"
            lines.append(f"| {row['name']} | {sizes} | {captured(row)} | {' | '.join(cells)} | {seconds} |")
        else:
            why = f"skipped: {row['skipped']}" if "skipped" in row else f"**{row['error'].replace('|', '/')}**"
            lines.append(f"| {row['name']} | | | | {why} |" + " |" * (len(COLUMNS) + 2))
    return "\n".join(lines) + "\n"
