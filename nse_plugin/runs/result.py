"""What a run leaves: its status, and everything measured, read back from its directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nse_plugin.files import JsonLines
from nse_plugin.runs.directory import RunDirectory, comparable


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    status: str
    """``complete``; ``collapsed``: a stop rule took the last round back; ``stopped``: it was kept;
    ``paused``: ``max_rounds`` of this call are done and the stream goes on."""
    run_dir: Path
    final: Mapping[str, Any]
    """What was measured at the end; empty for a paused run."""

    def lines(self) -> Iterator[dict[str, Any]]:
        """What was measured of each round, in order."""
        path = self.run_dir / "rounds.jsonl"
        if path.exists():  # a stream may have ended before its first request
            yield from JsonLines(path)

    def retention_matrix(self, score: str = "efficacy") -> dict[int, dict[int, float | None]]:
        """By round tested: the score by round edited."""
        points = [point for line in self.lines() if (point := line.get("checkpoint"))]
        points.append(self.final.get("checkpoint") or {})
        return {
            point["tested"]: {row["edited"]: row[score] for row in point["retention"]}
            for point in points
            if point.get("retention")
        }


def same_run(one: str | Path, other: str | Path) -> bool:
    """Whether two finished runs measured the same, times aside."""

    def read(folder: str | Path) -> Any:
        directory = RunDirectory(Path(folder))
        return comparable([list(directory.lines("rounds.jsonl")), directory.final()])

    return read(one) == read(other)
