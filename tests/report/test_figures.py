"""Figures and colours."""

from __future__ import annotations

import io
import itertools
import re

import pandas as pd
import pytest

from nse_plugin.report import charts, figures
from nse_plugin.report.theme import DARK, LIGHT, THEMES

NAN = float("nan")


def rounds(**columns):
    return pd.DataFrame(columns, index=pd.Index([1, 2, 3], name="round"))


def contrast(one, other):
    """Contrast as defined in WCAG 2.1."""

    def luminance(colour):
        channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_contrast(theme):
    for behind in (theme.background, theme.panel):
        for text in (theme.text, theme.muted, theme.accent):
            assert contrast(text, behind) >= 4.5
    for line in theme.series:
        assert contrast(line, theme.background) >= 3
    assert len(set(theme.series)) == len(theme.series)


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_numbers_in_cells_can_be_read(theme):
    from matplotlib.colors import to_hex

    figure = figures.heat_map(
        pd.DataFrame([[i / 10 for i in range(11)]]), x="x", y="y", value="v", theme=theme
    )
    (axes, _) = figure.axes
    image = axes.images[0]
    for i, text in enumerate(axes.texts):
        cell = to_hex(image.cmap(image.norm(i / 10)))
        assert contrast(to_hex(text.get_color()), cell) >= 3.5


def test_lines_show_the_values():
    table = rounds(a=[1.0, NAN, 3.0], b=[2.0, 2.0, 2.0])
    figure = charts.lines(table, x="round", y="norm", theme=DARK)
    (axes,) = figure.axes
    first, second = axes.lines
    assert first.get_xydata().tolist() == [[1, 1], [3, 3]]
    assert second.get_ydata().tolist() == [2, 2, 2]
    assert first.get_marker() != second.get_marker() and first.get_color() != second.get_color()
    assert [t.get_text() for t in axes.texts] == ["a", "b"] and axes.get_xticks().tolist() == [
        1,
        2,
        3,
    ]
    assert axes.get_ylim()[0] == 0 and axes.get_xlabel() == "round"


def test_names_beside_lines_do_not_overlap_and_ticks_are_what_was_measured():
    table = pd.DataFrame({f"method {n}": [0.5, 0.9 + n / 1000] for n in range(12)}, [100, 200])
    from matplotlib.text import Text  # whose boxes leave out the lines to the ends

    figure = charts.lines(table, x="edits", y="efficacy", percent=True)
    figures.to_png(figure)  # lays it out
    (axes,) = figure.axes
    boxes = sorted((Text.get_window_extent(t) for t in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == 12
    assert all(one.y1 <= other.y0 for one, other in itertools.pairwise(boxes))
    assert axes.get_xticks().tolist() == [100, 200]


def test_places_that_lie_apart():
    for values, gap, wanted in (
        ([0.2, 0.8], 0.1, [0.2, 0.8]),
        ([0.5, 0.5], 0.2, [0.4, 0.6]),
        ([0.5, 0.5, 0.9], 0.2, [0.4, 0.6, 0.9]),
        ([1.0, 1.0, 0.0], 0.3, [0.7, 1.0, 0.0]),
        ([0.1] * 3, 9.0, [0.0, 0.5, 1.0]),
    ):
        assert charts.apart(values, gap) == pytest.approx(wanted)


def test_dots_show_means_spreads_and_the_best():
    means = pd.DataFrame({"efficacy": [0.9, 0.5], "locality": [0.8, NAN]}, ["NSE", "FT"])
    figure = charts.dots(means, means / 10)
    first, second = figure.axes
    assert [t.get_text() for t in first.get_yticklabels()] == ["NSE", "FT"]
    bars = [c for c in first.containers if c.has_xerr]
    assert [bar[0].get_xdata().tolist() for bar in bars] == [[0.9], [0.5]]
    faces = [bar[0].get_markerfacecolor() for bar in bars]
    assert faces == [LIGHT.series[0], LIGHT.background] and len(second.containers) == 1


def test_long_names_are_broken_after_semicolons():
    assert charts.wrapped("NSE:consolidated") == "NSE:consolidated"
    assert charts.wrapped("MEMIT:previous-keys;consolidated;weight=3;b") == (
        "MEMIT:previous-keys;\nconsolidated;weight=3;\nb"
    )
    names = ["MEMIT:previous-keys;consolidated;consolidation_weight=3", "NSE"]
    means = pd.DataFrame({"locality: is the rest as it was?": [0.98, 1.0]}, names)
    figure = charts.dots(means, means / 100)
    figures.to_png(figure)  # lays it out
    (axes,) = figure.axes
    box, label = axes.get_window_extent(), axes.xaxis.label.get_window_extent()
    assert label.x1 <= figure.bbox.x1 and box.width > 0.5 * figure.bbox.width
    shares = [tick.get_text() for tick in axes.get_xticklabels()]
    assert max(float(text.rstrip("%")) for text in shares if text) <= 100 < 100 * axes.get_xlim()[1]


def test_heat_maps_share_their_colours():
    tables = {"layer 1": rounds(a=[1, 2, 3]), "layer 2": rounds(a=[4, NAN, 9])}
    figure = figures.heat_maps(tables, x="neuron", y="round", value="norm", limits=(None, None))
    images = [axes.images[0] for axes in figure.axes[:2]]
    assert {image.get_clim() for image in images} == {(1, 9)}
    assert images[1].get_array().mask.tolist() == [[False], [True], [False]]
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == list(tables)


def test_heat_map_of_one_value_and_of_none():
    for values in ([0.0, 0.0, 0.0], [NAN, NAN, NAN]):
        figures.to_png(figures.heat_map(rounds(a=values), x="x", y="y", value="v"))


def test_binned_is_the_mean_of_what_is_there():
    table = pd.DataFrame([[1.0, 3.0, NAN, 5.0, NAN]], columns=[10, 11, 12, 13, 14])
    assert figures.binned(table, 5) is table
    means = figures.binned(table, 3)
    assert list(means.columns) == [10, 12, 14]
    assert means.iloc[0].tolist()[:2] == [2.0, 5.0] and means.isna().iloc[0].tolist()[2]
    assert figures.binned(pd.DataFrame([range(14336)])).shape[1] <= 128


def test_files_are_the_same_each_time_and_nothing_global_changes():
    import matplotlib

    before = dict(matplotlib.rcParams)

    def draw(theme):
        return charts.lines(rounds(a=[1, 2, 3]), x="x", y="y", title="L 1.23456: t", theme=theme)

    for save in (figures.to_png, figures.to_svg):
        assert save(draw(LIGHT)) == save(draw(LIGHT)) != save(draw(DARK))
    assert dict(matplotlib.rcParams) == before
    assert figures.to_png(draw(LIGHT)).startswith(b"\x89PNG")
    svg = figures.to_svg(draw(LIGHT), "one")
    assert ">L 1.23456: t</text>" in svg and not re.search(r'href="(?!#one-|data:)', svg)


def test_markers_have_their_values_as_titles():
    table = pd.DataFrame({'a "<b>"': [0.5, NAN, float("inf"), 0.25]}, index=[1, 2, 3, 4])
    svg = figures.to_svg(charts.lines(table, x="edits", y="y", percent=True))
    titles = re.findall("<use [^>]*><title>(.*?)</title></use>", svg)
    assert titles == [
        'a "&lt;b&gt;", edits 1: 50.0%',
        'a "&lt;b&gt;", edits 4: 25.0%',
    ]


def test_the_background_is_the_theme_s():
    import matplotlib.image

    for theme in THEMES:
        figure = charts.lines(rounds(a=[1, 2, 3]), x="x", y="y", theme=theme)
        corner = matplotlib.image.imread(io.BytesIO(figures.to_png(figure)))[0, 0, :3]
        wanted = [int(theme.background[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        assert corner.tolist() == pytest.approx(wanted, abs=0.01)
