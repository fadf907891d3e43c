"""The report's page: what is in it, that it is always the same, what it refuses."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure

from secateur import SecateurError
from secateur.errors import ArgumentError, PathError
from secateur.reporting.page import Page, Picture, Section, Table, environment, html, svg, write_page


def figure(noise: float = 0.0, lines: int = 1) -> Figure:
    made = Figure(figsize=(5, 3))
    panel = made.subplots()
    x = np.linspace(-3, 3, 10_001)
    for seed in range(lines):
        panel.plot(x, np.sin(x) + noise * np.random.default_rng(seed).normal(size=len(x)), label="a < b")
    panel.legend()
    return made


def page(*sections: Section, **changes: object) -> Page:
    given = {"title": "A page", "summary": [("Size", "3")], "settings": {"Criterion": "obs"}, "environment": {}}
    return Page(**(given | {"sections": sections} | changes))  # type: ignore[arg-type]


def pictured() -> Page:
    drawn = svg(figure())
    twice = [Picture(drawn, f"A sine, {n}", f"Sine {n}") for n in (1, 2)]
    return page(Section("one", "One", ["Words"], twice), Section("two", "Two", pictures=twice))


class Tags(HTMLParser):
    """All tags of a page with their attributes, in order, and that each is closed by its own end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.open += [] if tag in ("meta", "link") else [tag]

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


# ---------------------------------------------------------------- content


def test_everything_given_is_in_the_page_in_order_under_headings_and_linked_to():
    table = Table(["layer", "width"], [("fc1", 1234), ("fc2", None)], "Widths", "A note")
    text = html(page(Section("layers", "Layers", ["First.", "Second."], tables=[table]), environment={"Python": "3"}))
    shown = [
        "<h1>A page</h1>", 'id="summary"', "<dt>Size</dt><dd>3</dd>", 'id="layers"', "<p>First.</p>", "<p>Second.</p>",
        "Widths</caption>", "1,234", "–", "A note", 'id="settings"', "<dt>Criterion</dt><dd>obs</dd>",
        'id="environment"', "<dt>Python</dt><dd>3</dd>",
    ]  # fmt: skip
    places = [text.index(one) for one in shown]
    assert places == sorted(places)
    tags = Tags(text)
    assert [name for name, _ in tags.found if re.fullmatch(r"h\d", name)] == ["h1", "h2", "h2", "h2", "h2"]
    links = [a["href"] for a in tags.all("a")]
    assert links == ["#main", "#summary", "#layers", "#settings", "#environment"]
    assert {link[1:] for link in links} <= {attributes.get("id") for _, attributes in tags.found}
    assert tags.all("html") == [{"lang": "en"}]


def test_text_is_escaped_wherever_it_comes_from():
    bad = '<b>"&'
    table = Table([f"column {bad}"], [(f"cell {bad}",)], f"caption {bad}", f"note {bad}")
    picture = Picture(svg(figure()), f"alt {bad}", f"below {bad}")
    text = html(
        page(
            Section("a", f"section {bad}", [f"words {bad}"], [picture], [table]),
            title=f"title {bad}", summary=[(f"label {bad}", f"value {bad}")], settings={f"set {bad}": f"to {bad}"},
            environment={f"where {bad}": f"there {bad}"},
        )
    )  # fmt: skip
    assert "<b>" not in text
    escaped = set(re.findall(r"(\w+) &lt;b&gt;&#34;&amp;", text))
    assert escaped == {
        "column", "cell", "caption", "note", "alt", "below", "section", "words", "title", "label", "value", "set", "to",
        "where", "there",
    }  # fmt: skip


def test_a_table_has_heading_cells_and_its_numbers_are_aligned_to_the_right():
    text = html(page(Section("a", "A", tables=[Table(["unit", "loss"], [("x", 0.123456), ("y", None)], "C")])))
    assert '<th scope="col" class="t">unit</th><th scope="col">loss</th>' in text
    assert '<tr><th scope="row" class="t">x</th><td>0.1235</td></tr>' in text
    assert '<tr><th scope="row" class="t">y</th><td>–</td></tr>' in text
    (region,) = [a for a in Tags(text).all("div") if a.get("role") == "region"]
    assert region["tabindex"] == "0"
    assert f'<caption id="{region["aria-labelledby"]}">C</caption>' in text


@pytest.mark.parametrize(("rows", "folded"), [(40, False), (41, True), (1234, True)])
def test_long_tables_are_folded_up(rows, folded):
    text = html(page(Section("a", "A", tables=[Table(["n"], [(n,) for n in range(rows)], "All")])))
    assert ("<details>" in text) is folded
    assert (f"<summary>All: {rows:,} rows</summary>" in text) is folded
    assert text.count("<tr>") == rows + 1


# ---------------------------------------------------------------- pictures


def test_every_picture_has_a_role_and_a_text_alternative():
    text = html(pictured())
    titles = dict(re.findall(r'<title id="([^"]+)">([^<]+)</title>', text))
    pictures = Tags(text).all("svg")
    assert [titles[one["aria-labelledby"]] for one in pictures] == ["A sine, 1", "A sine, 2"] * 2
    assert {one["role"] for one in pictures} == {"img"}
    assert text.count("<figcaption>Sine 1</figcaption>") == 2


def test_the_same_figure_four_times_shares_no_id_and_every_reference_finds_its_own():
    text = html(pictured())
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for drawn in re.findall(r"<svg .*?</svg>", text, re.DOTALL):
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawn))
        assert used
        assert used <= set(re.findall(r'\bid="([^"]+)"', drawn))


def test_a_picture_is_bare_svg_without_words_that_need_a_font():
    drawn = svg(figure())
    assert drawn.startswith("<svg ")
    assert drawn.endswith("</svg>")
    assert not re.search(r"<text|<!--|<metadata|a < b|a &lt; b", drawn)


def test_the_page_speaks_of_no_other_place():
    text = html(pictured())
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # of XML, never fetched
    assert set(re.findall(r"https?:[^\"'\s)]+", text)) == names
    assert not re.search(r"<script|@import|\ssrc=", text)
    assert [a["href"] for a in Tags(text).all("link")] == ["data:,"]
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]+)", text))


def test_smooth_lines_stay_lines_and_noise_becomes_pixels():
    smooth, noisy = svg(figure(lines=10)), svg(figure(noise=1, lines=10))
    assert len(smooth) < 150_000
    assert "data:image/png" not in smooth
    assert "data:image/png" in noisy
    assert len(noisy) < 190_000


def test_twenty_five_figures_stay_below_5_mb():
    drawn = Picture(svg(figure(noise=1, lines=10)), "Noise", "Noise")
    assert len(html(page(Section("a", "A", pictures=[drawn] * 25))).encode()) < 5e6


# ---------------------------------------------------------------- always the same


def test_the_same_page_is_the_same_file(tmp_path):
    for name in ("a.html", "b.HTM"):
        write_page(pictured(), tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.HTM").read_bytes() == html(pictured()).encode()
    noisy = figure(noise=1, lines=10)
    assert svg(noisy) == svg(noisy) == svg(figure(noise=1, lines=10))


def test_the_environment_is_the_same_each_time():
    assert environment() == environment()
    assert all(isinstance(value, str) and value for value in environment().values())


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("a.pdf", ArgumentError, "{}: pages are written as .html or .htm, not as '.pdf'"),
        ("no/a.html", PathError, "{}: cannot be written (No such file or directory)"),
    ],
)
def test_a_path_that_no_page_can_be_written_to_is_refused(tmp_path, name, kind, text):
    with pytest.raises(SecateurError) as caught:
        write_page(page(), tmp_path / name)
    assert type(caught.value) is kind
    assert str(caught.value) == text.format(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: Picture("<img>", "a", "b"),
            "Picture: svg must be what secateur.reporting.page.svg returns, got '<img>'",
        ),
        (lambda: Picture("<svg ></svg>", " ", "b"), "Picture: alt must say what is to be seen, got ' '"),
        (lambda: Table(["a", "b"], [(1, 2), (3,)], "c"), "Table: row 1 has 1 cells for 2 columns: (3,)"),
        (
            lambda: page(Section("a", "A"), Section("a", "B")),
            "Page: 2 sections are named 'a'; every page has summary, settings, environment",
        ),
        (
            lambda: page(Section("summary", "A")),
            "Page: 2 sections are named 'summary'; every page has summary, settings, environment",
        ),
        (
            lambda: page(Section("a b", "A")),
            "Page: a section's name is small letters, digits and hyphens, got 'a b'",
        ),
    ],
)
def test_parts_that_make_no_page_are_refused(make, text):
    with pytest.raises(ArgumentError) as caught:
        make()
    assert str(caught.value) == text
