"""What a run leaves: its status, and everything measured, read back from its directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nse_plugin.files import JsonLines
from nse_plugin.runs.reading import read_lines
from nse_plugin.runs.schema import Final, Measurement, RoundLine, Status


@dataclass(frozen=True)
class RunResult:
    """How a call of the scheduler ended."""

    status: Status
    run_dir: Path
    final: Final
    """What was measured at the end."""

    def lines(self) -> JsonLines[RoundLine]:
        """What was measured of each round, in order."""
        return read_lines(self.run_dir)

    def retention_matrix(self, score: str = "efficacy") -> dict[int, dict[int, float | None]]:
        """By round tested: the score by round edited."""
        return retention_matrix(self.lines(), self.final, score)


def retention_matrix(
    lines: Any, final: Final | None, score: str = "efficacy"
) -> dict[int, dict[int, float | None]]:
    """By round tested: the score by round edited, of all measurements of a run."""
    points: list[Measurement | None] = [line["measurement"] for line in lines]
    points.append(final["measurement"] if final else None)
    return {
        point["tested"]: {row["edited"]: row[score] for row in point["retention"]}
        for point in points
        if point and point.get("retention")
    }
