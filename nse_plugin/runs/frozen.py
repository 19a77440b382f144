"""Each round's requests and the untouched model's answers to their probes, kept on disk."""

from __future__ import annotations

from collections.abc import Sequence

from nse_plugin.errors import DataError
from nse_plugin.evaluation.metrics import Answered
from nse_plugin.files import JsonLines
from nse_plugin.requests import EditRequest
from nse_plugin.runs.schema import FrozenLine


class FrozenAnswers:
    """What ``frozen.jsonl`` holds: a line per round, read when it is asked for."""

    def __init__(self, lines: JsonLines[FrozenLine]) -> None:
        self._lines = lines

    def lines(self) -> JsonLines[FrozenLine]:
        """What is kept, as it lies on disk."""
        return self._lines

    def __len__(self) -> int:
        return len(self._lines)

    def holds(self, number: int, requests: Sequence[EditRequest]) -> bool:
        """Whether a round is there, counted from 1, and is of these requests."""
        if number > len(self):
            return False
        kept = self._lines[number - 1]["requests"]
        return kept == [request.digest() for request in requests]

    def read(self, number: int) -> tuple[list[EditRequest], list[Answered]]:
        """A round's requests and answers.

        Raises:
            DataError: the line cannot be read.
        """
        line = self._lines[number - 1]
        try:
            return [EditRequest.from_json(record) for record in line["edits"]], line["answers"]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"line {number} of {self._lines.path} lacks a field ({error!r}); restore the "
                "file, or give another folder"
            ) from error

    def append(
        self, number: int, requests: Sequence[EditRequest], answers: Sequence[Answered]
    ) -> None:
        """Add the next round."""
        self._lines.append(
            {
                "round": number,
                "requests": [request.digest() for request in requests],
                "edits": [request.to_json() for request in requests],
                "answers": list(answers),
            }
        )

    def keep(self, count: int) -> None:
        """Drop the rounds after the first ``count``."""
        self._lines.keep(count)
