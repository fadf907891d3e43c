"""Tables and numbers as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import ArgumentError
from secateur.text import format_bytes, parse_bytes, table

FACTORS = {"": 1, "B": 1, "kB": 1000, "MB": 10**6, "GB": 10**9, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


@pytest.mark.parametrize(
    ("given_size", "size"),
    [
        (0, 0),
        (1500, 1500),
        ("1500", 1500),
        ("1500 B", 1500),
        ("200 kB", 200_000),
        ("200kb", 200_000),
        (" 200  KB ", 200_000),
        ("64 KiB", 65_536),
        ("1.5 MB", 1_500_000),
        ("1.5 MiB", 1_572_864),
        (".5 kB", 500),
        ("2 GB", 2_000_000_000),
        ("2 GiB", 2 * 1024**3),
        ("1_000 kB", 1_000_000),
        ("1.001 kB", 1001),
        ("4.35 kB", 4350),
    ],
)
def test_sizes_are_read_in_bytes(given_size: int | str, size: int) -> None:
    assert parse_bytes(given_size) == size


@given(st.integers(0, 10**6), st.sampled_from(sorted(FACTORS)), st.sampled_from(["", " "]))
def test_every_whole_size_is_read_exactly(n: int, unit: str, space: str) -> None:
    assert parse_bytes(f"{n}{space}{unit}") == n * FACTORS[unit]


def test_thousandths_of_a_kilobyte_are_whole_bytes() -> None:
    read = [parse_bytes(f"{n // 1000}.{n % 1000:03} kB") for n in range(20_000)]
    assert read == list(range(20_000))


@pytest.mark.parametrize(
    "bad",
    ["", "kB", "5.", "1e3", "-5", "-5 kB", "1 tb", "1 k", "1,5 MB", "one", "1 2", "_5", "1__0 kB", None, True, [], 1.5],
)
def test_what_is_no_size_is_refused(bad: object) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse_bytes(bad)  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"bytes: expected an int or a size such as '200 kB', '64 KiB' or '1.5 MB', got {bad!r}"
    )


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (318_040, "318.0 kB"),
        (1_500_000, "1.5 MB"),
        (2_340_000_000, "2.3 GB"),
    ],
)
def test_bytes_are_shown_in_powers_of_ten(size: int, text: str) -> None:
    assert format_bytes(size) == text


def test_a_table_aligns_numbers_right_and_text_left() -> None:
    made = table(["unit set", "size", "loss"], [("fc1", 7, "-0.5"), ("layer.fc2", 100, "10.25")], "two sets")
    assert made.splitlines() == [
        "two sets",
        "unit set   size   loss",
        "fc1           7   -0.5",
        "layer.fc2   100  10.25",
    ]


def test_an_empty_cell_is_for_none_and_lines_do_not_end_in_blanks() -> None:
    made = table(["n", "accuracy"], [(1, "x"), (20, None)])
    assert made.splitlines() == [" n  accuracy", " 1  x", "20"]


def test_a_table_without_rows_is_its_headings() -> None:
    assert table(["fixed", "size"], []) == "fixed  size"


@pytest.mark.parametrize("cell", ["x[bold]y[/bold]", "[b]", "w[0]", ":smile:", "aten::linear", "[/]"])
def test_a_cell_is_shown_as_it_is(cell: str) -> None:
    assert table(["name"], [(cell,)]).splitlines()[1] == cell
