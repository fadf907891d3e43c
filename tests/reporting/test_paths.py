"""Paths that nothing can be written to."""

from __future__ import annotations

import pytest

from secateur import SecateurError
from secateur.errors import ArgumentError, PathError
from secateur.reporting.paths import check_page, check_picture


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("a.pdf", ArgumentError, "{}: pages are written as .html or .htm, not as '.pdf'"),
        ("a", ArgumentError, "{}: pages are written as .html or .htm, not as 'no extension'"),
        ("no/a.html", PathError, "{}: cannot be written (No such file or directory)"),
        ("folder.html", PathError, "{}: cannot be written, it is a folder"),
    ],
)
def test_a_path_that_no_page_can_be_written_to_is_refused(tmp_path, name, kind, text):
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(SecateurError) as caught:
        check_page(tmp_path / name)
    assert type(caught.value) is kind
    assert str(caught.value) == text.format(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


def test_a_page_that_can_be_written_is_not_there_yet(tmp_path):
    check_page(tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.svg", r"a\.svg: pictures are written as \.png, not as '\.svg'$"),
        ("a", r"a: pictures are written as \.png, not as 'no extension'$"),
        ("no/a.png", r"no/a\.png: cannot be written \(No such file or directory\)$"),
        ("folder.png", r"folder\.png: cannot be written, it is a folder$"),
    ],
)
def test_a_picture_is_refused_before_it_is_drawn(tmp_path, name, text):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(SecateurError, match=text):
        check_picture(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_picture_that_can_be_written_is_not_there_yet(tmp_path):
    check_picture(tmp_path / "a.PNG")
    assert list(tmp_path.iterdir()) == []
