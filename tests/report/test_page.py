"""Pages: what they hold, and how a real browser shows them."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from nse_plugin.report import charts
from nse_plugin.report.figures import heat_map
from nse_plugin.report.page import Page, Picture
from nse_plugin.report.theme import DARK, LIGHT
from nse_plugin.table import Table

ALT = 'A line that "rises" from 1.5 to 2.5'


def a_page():
    frame = pd.DataFrame({"norm": [1.5, 2.5], "who": ["<script>x</script>", "b"]})
    frame.index.name = "round"
    page = Page("A <b>page</b>", subtitle=f"of a test: /{'folder/' * 20}x.json")
    first = page.section("Tables & words", "An introduction.")
    wide = pd.DataFrame([range(60)], columns=[f"column {i}" for i in range(60)])
    first.add(
        "A paragraph.", Table.of(frame, "The caption", note="A note."), Table.of(wide, "Wide")
    )

    def draw(theme):
        return charts.lines(frame[["norm"]], x="round", y="norm", theme=theme)

    def cells(theme):
        return heat_map(frame[["norm"]], x="x", y="y", value="v", theme=theme)

    picture = Picture("norm", "Norm", alt=ALT, draw=draw)
    heat = Picture("heat", "Heat", alt="A heat map", draw=cells)
    page.section("Pictures").add(picture, picture, "Between.", picture, heat)
    return page


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "deep" / "page.html"
    a_page().write(path)
    return path


class Tags(HTMLParser):
    """Tags with their attributes; complains of one that is closed by another's end."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, html):
        super().__init__()
        self.found, self.open = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_accessible(written):
    html = written.read_text(encoding="utf-8")
    tags = Tags(html)
    assert not tags.open
    by_name = {name: [a for tag, a in tags.found if tag == name] for name, _ in tags.found}
    assert by_name["html"][0]["lang"] == "en"
    assert {a["scope"] for a in by_name["th"]} == {"col", "row"}
    assert len(by_name["table"]) == 2 and all("aria-labelledby" in a for a in by_name["table"])
    figures = by_name["svg"]
    assert {a["aria-label"] for a in figures} == {ALT, "A heat map"}
    assert [a["class"] for a in figures] == ["light dark"] * 3 + ["light", "dark"]
    assert {a["role"] for a in figures} == {"img"} and html.count('<div class="pictures">') == 2
    ids = [a["id"] for _, a in tags.found if "id" in a]
    assert len(ids) == len(set(ids))
    for _, a in tags.found:
        assert a.get("aria-labelledby", ids[0]) in ids
        href = a.get("href", "data:,")
        assert href.startswith("data:") or href.removeprefix("#") in ids
    assert len(by_name["script"]) == 1  # that of a cell is text


def test_a_long_name_can_be_broken_where_its_parts_end_and_marks_are_shown(tmp_path, open_page):
    page = Page("Names")
    rows = (("NSE:a;b=<1>", "9"), ("b", "10"))
    page.section("x").add(Table("T", ("name", "n"), rows, (False, True), marks={(1, 1): "good"}))
    page.write(tmp_path / "page.html")
    assert "NSE:<wbr>a;<wbr>b=" in (tmp_path / "page.html").read_text()
    opened = open_page(tmp_path / "page.html")
    assert opened.page.get_by_role("rowheader").first.text_content() == "NSE:a;b=<1>"
    assert opened.page.locator(".good").all_text_contents() == ["10"]
    assert opened.page.get_by_role("table", name="T").count() == 1


def test_nothing_is_loaded_from_elsewhere(written):
    html = written.read_text(encoding="utf-8")
    assert max(map(len, re.findall("<svg.*?</svg>", html))) < 9_000
    assert not re.search(r"(?:src|href)=[\"'](?!#|data:)|@import|url\((?!#)", html)
    assert "default-src 'none'" in html
    assert a_page().html() == html  # the same each time


SHOWN = """[...document.querySelectorAll("figure [role=img]")]
    .filter(each => each.getBoundingClientRect().width > 100).map(each => each.className.baseVal)"""
AXIS = """getComputedStyle([...document.querySelectorAll("figure text")]
    .find(each => each.textContent === "round")).fill"""
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def rgb(colour):
    return "rgb({}, {}, {})".format(*(int(colour[at : at + 2], 16) for at in (1, 3, 5)))


@pytest.mark.parametrize("width", [1200, 768, 360])
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_a_browser_shows_it(written, open_page, theme, width):
    opened = open_page(written, scheme=theme.name, width=width)
    assert opened.page.title() == "A <b>page</b>"
    assert opened.evaluate(SHOWN) == ["light dark"] * 3 + [theme.name]
    assert opened.evaluate(AXIS) == rgb(theme.text)
    assert opened.evaluate(BACKGROUND) == rgb(theme.background)
    assert opened.evaluate("document.documentElement.scrollWidth") == width  # tables scroll alone
    assert opened.complaints == [] and opened.outside() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible_in_a_browser(written, open_page, scheme):
    opened = open_page(written, scheme=scheme, width=390)
    assert opened.barriers() == []
    opened.page.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.id") == "theme"
    for _ in range(3):  # two sections in the contents, and then the table that scrolls
        opened.page.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.getAttribute('role')") == "group"


def test_a_table_is_sorted_and_filtered(tmp_path, open_page):
    page = Page("Facts")
    rows = (("b", "9"), ("a", "10"), ("c", "1"))
    page.section("Facts").add(Table("Facts", ("name", "n"), rows, (False, True), searchable=True))
    page.write(tmp_path / "page.html")
    opened = open_page(tmp_path / "page.html")
    names = "[...document.querySelectorAll('tbody tr:not([hidden]) th')].map(c => c.textContent)"
    assert opened.evaluate(names) == ["b", "a", "c"]
    head = opened.page.get_by_role("button", name="n", exact=True)
    head.click()
    assert opened.evaluate(names) == ["c", "b", "a"]
    head.press("Enter")
    assert opened.evaluate(names) == ["a", "b", "c"]
    assert opened.evaluate("document.querySelector('[aria-sort]').textContent") == "n"
    opened.page.get_by_label("Show rows that hold").fill("1")
    assert opened.evaluate(names) == ["a", "c"]
    assert opened.page.get_by_role("status").inner_text() == "2 of 3"
    assert opened.complaints == [] and opened.barriers() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_button_changes_the_colours(written, open_page, scheme):
    opened = open_page(written, scheme=scheme)
    other = {"light": DARK, "dark": LIGHT}[scheme]
    button = opened.page.get_by_role("button")
    assert button.inner_text() == f"{other.name.capitalize()} colours"
    button.click()
    assert opened.evaluate(SHOWN)[-1] == other.name
    assert opened.evaluate(AXIS) == rgb(other.text)
    assert opened.evaluate(BACKGROUND) == rgb(other.background)
    assert button.inner_text() == f"{scheme.capitalize()} colours"
    button.click()
    assert opened.evaluate(SHOWN)[-1] == scheme
    assert opened.evaluate(AXIS) == rgb({"light": LIGHT, "dark": DARK}[scheme].text)
    assert opened.complaints == []


def test_the_browser_would_notice(tmp_path, open_page):
    """The checks above can fail: a page with an external image and an error."""
    path = tmp_path / "bad.html"
    path.write_text("<img src='http://example.org/x.png'><script>console.error('no')</script>")
    opened = open_page(path)
    assert opened.outside() == ["http://example.org/x.png"]
    assert "no" in opened.complaints
    assert any(found.startswith("image-alt:") for found in opened.barriers())
