"""A page to which several commands write, each its own section."""

from __future__ import annotations

import re
from pathlib import Path

from secateur.artifacts.safetensors import whole_file


def with_section(page: str, section: str) -> str:
    """Return a page with a section in place of the one of that heading, or at the end."""
    title, *sections = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    heading = section.partition("\n")[0]
    places = [place for place, other in enumerate(sections) if other.partition("\n")[0] == heading]
    if places:
        sections[places[0]] = section
    else:
        sections.append(section)
    return "\n\n".join(part.strip() for part in (title, *sections)) + "\n"


def write_section(file: Path, section: str) -> None:
    """Write a section of the page on architectures; a file that is not there begins with that title."""
    page = file.read_text(encoding="utf-8") if file.is_file() else "# Architectures\n"
    with whole_file(file) as temporary:
        temporary.write_text(with_section(page, section), encoding="utf-8")
