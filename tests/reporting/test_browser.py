"""The report in a browser: quiet, alone, for narrow screens, for keys, in the dark and on paper."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from selenium import webdriver
from selenium.webdriver import ActionChains, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import secateur as sc
from cases import CASES
from secateur.reporting.page import Page, Picture, Section, Table, environment, svg, write_page

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no browser: apt-get install chromium chromium-driver"),
    pytest.mark.xdist_group("browser"),  # one browser for all of these tests
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
OVERFLOW = "return document.scrollingElement.scrollWidth - window.innerWidth"
UNFOLD = "document.querySelectorAll('details').forEach(one => { one.open = true })"
FOCUSABLE = "return [...document.querySelectorAll('a[href], summary, button, input, [tabindex]')]"
FOCUSED = """
    const one = document.activeElement, box = one.getBoundingClientRect(), style = getComputedStyle(one)
    const shown = box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth
    return [one, shown && style.outlineStyle == 'solid' && parseFloat(style.outlineWidth) >= 2]
"""
CONTRASTS = """
    const parts = colour => colour.match(/[\\d.]+/g).map(Number)
    const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b)
    const behind = one => {
        const colour = parts(getComputedStyle(one).backgroundColor)
        return colour.length == 4 && colour[3] == 0 ? behind(one.parentElement) : colour
    }
    const texts = [...document.body.querySelectorAll('*')].filter(one =>
        [...one.childNodes].some(n => n.nodeType == 3 && n.data.trim()) && !one.closest('svg'))
    return texts.map(one => {
        const [low, high] = [light(parts(getComputedStyle(one).color)), light(behind(one))].sort((a, b) => a - b)
        return [one.outerHTML.slice(0, 80), (high + 0.05) / (low + 0.05)]
    })
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A result's page, and one of everything that is too wide or too long."""
    folder = tmp_path_factory.mktemp("pages")
    case = CASES["two_hidden"]()
    result = sc.shrink(case.model, (case.x, case.y), "cross_entropy", sc.Budget(remove_units=5), progress=False)
    result.report(folder / "result.html")
    wide = Figure(figsize=(12, 3))
    wide.subplots().plot([1, 2, 3])
    word = "blocks.0.attention" * 12
    tables = [Table([f"column {i}" for i in range(14)], [(word, *range(13))] * n, f"{n} rows") for n in (3, 60)]
    picture = Picture(svg(wide), "A rising line", word)
    section = Section("wide", word, [word], [picture, picture], tables)
    write_page(Page(word, [(word, word)], {word: word}, environment(), [section]), folder / "wide.html")
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(params=["result", "wide"])
def opened(browser: webdriver.Chrome, pages: dict[str, Path], request: pytest.FixtureRequest) -> webdriver.Chrome:
    """A page, freshly loaded in a window of 360 × 800, in light colours."""
    look(browser, "light")
    resize(browser, 360)
    for log in ("browser", "performance"):
        browser.get_log(log)  # reading empties it
    browser.get(pages[request.param].as_uri())
    return browser


def resize(browser: webdriver.Chrome, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def look(browser: webdriver.Chrome, scheme: str, media: str = "screen") -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def background(browser: webdriver.Chrome, selector: str) -> str:
    return browser.find_element(By.CSS_SELECTOR, selector).value_of_css_property("background-color")


def test_nothing_is_complained_of_and_nothing_but_the_file_is_asked_for(opened):
    assert opened.get_log("browser") == []
    opened.execute_script(UNFOLD)
    asked = [
        message["params"]["request"]["url"]
        for entry in opened.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
    ]
    assert {url for url in asked if not url.startswith("data:")} == {opened.current_url}


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_never_scrolls_sideways(opened, width):
    resize(opened, width)
    assert opened.execute_script("return innerWidth") == width
    assert opened.execute_script(OVERFLOW) <= 0
    opened.execute_script(UNFOLD)
    assert opened.execute_script(OVERFLOW) <= 0
    assert min(value.size["width"] for value in opened.find_elements(By.TAG_NAME, "dd")) > width / 4


def test_wide_tables_scroll_by_themselves(browser, pages):
    resize(browser, 360)
    browser.get(pages["wide"].as_uri())
    region = browser.find_element(By.CSS_SELECTOR, "[role=region]")
    assert region.accessible_name == "3 rows"
    assert browser.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", region)
    browser.execute_script("arguments[0].scrollLeft = 9999", region)
    assert browser.execute_script("return arguments[0].scrollLeft", region) > 0


def test_every_picture_says_in_words_what_it_shows(opened):
    pictures = opened.find_elements(By.CSS_SELECTOR, "img, svg")
    assert len(pictures) >= 2
    assert {one.aria_role for one in pictures} <= {"img", "image"}
    assert all(len(one.accessible_name) > 10 for one in pictures)


def test_tab_reaches_everything_and_shows_where_it_is(opened):
    opened.execute_script(UNFOLD)
    wanted = opened.execute_script(FOCUSABLE)
    reached = []
    for _ in wanted:
        ActionChains(opened).send_keys(Keys.TAB).perform()
        one, seen = opened.execute_script(FOCUSED)
        assert seen, one.get_attribute("outerHTML")[:200]
        reached.append(one)
    assert reached == wanted
    assert reached[0].get_attribute("href").endswith("#main")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_colour_schemes_and_pictures_stay_on_white(opened, scheme):
    look(opened, scheme)
    assert background(opened, "body") == {"light": "rgba(255, 255, 255, 1)", "dark": "rgba(21, 24, 27, 1)"}[scheme]
    assert background(opened, ".card") == "rgba(255, 255, 255, 1)"
    contrasts = opened.execute_script(CONTRASTS)
    assert len(contrasts) > 20
    assert [one for one in contrasts if one[1] < 4.5] == []


def test_paper_is_white_and_cuts_nothing_off(opened):
    look(opened, "dark", "print")
    resize(opened, 680)  # A4 within its margins
    opened.execute_script(UNFOLD)
    assert background(opened, "body") == "rgba(255, 255, 255, 1)"
    assert opened.execute_script(OVERFLOW) <= 0
    edges = "return [...document.querySelectorAll('table, svg')].map(one => one.getBoundingClientRect().right)"
    assert max(opened.execute_script(edges)) <= 680
    assert not opened.find_element(By.TAG_NAME, "nav").is_displayed()
