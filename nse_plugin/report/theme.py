"""Light and dark colours of figures and pages.

Every text colour has a contrast of at least 4.5 to the background, every line of a figure at least
3 (WCAG 2.1, 1.4.3 and 1.4.11); a test computes them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Theme:
    """A set of colours, as ``#rrggbb``."""

    name: str
    background: str
    panel: str
    """Background of figures and table heads."""
    text: str
    muted: str
    """Captions and labels."""
    grid: str
    """Rules and grid lines, which carry no meaning."""
    accent: str
    """Links and buttons."""
    absent: str
    """Cells of a heat map that hold no value."""
    series: tuple[str, ...]
    """Lines of a figure, which the colour-blind can distinguish."""
    colour_map: str
    """Matplotlib's name of the colours of heat maps; low values are near the background."""


LIGHT = Theme(
    name="light",
    background="#ffffff",
    panel="#f5f7fa",
    text="#1b2129",
    muted="#566070",
    grid="#d5dbe3",
    accent="#0b5cad",
    absent="#e4e7ec",
    series=("#0b5cad", "#c04f00", "#007a5a", "#a03a86", "#7a5d00", "#4b4bb0"),
    colour_map="YlGnBu",
)
DARK = Theme(
    name="dark",
    background="#14181f",
    panel="#1c222b",
    text="#e6eaf0",
    muted="#a3adbb",
    grid="#38414e",
    accent="#7db8f5",
    absent="#2b323d",
    series=("#6cb6f5", "#f0a35e", "#4fd1a5", "#e79bcb", "#e8d44d", "#b3b3ff"),
    colour_map="viridis",
)
THEMES = (LIGHT, DARK)
