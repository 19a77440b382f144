"""Each round's requests and the untouched model's answers to their probes, kept on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nse_plugin.errors import DataError
from nse_plugin.evaluation.settings import GROUPS, OPTIONAL_GROUPS
from nse_plugin.files import JsonLines
from nse_plugin.requests import EditRequest
from nse_plugin.runs.schema import IF_DAMAGED, AskedLocality, AskedProbe, FrozenLine, check

if TYPE_CHECKING:  # it imports transformers, and reading a run does not need a model
    from nse_plugin.evaluation.metrics import Answered


class FrozenAnswers:
    """The content of ``frozen.jsonl``: a line per round, read on demand."""

    def __init__(self, lines: JsonLines[FrozenLine]) -> None:
        self._lines = lines

    def __len__(self) -> int:
        return len(self._lines)

    def holds(self, number: int, requests: Sequence[EditRequest]) -> bool:
        """Whether a round, counted from 1, is there and has these requests."""
        if number > len(self):
            return False
        kept = self._lines[number - 1]["requests"]
        return kept == [request.digest() for request in requests]

    def requests(self, number: int) -> list[EditRequest]:
        """A round's requests.

        Raises:
            DataError: the line is damaged.
        """
        return self._requests(number, self._lines[number - 1])

    def read(self, number: int) -> tuple[list[EditRequest], list[Answered]]:
        """A round's requests and answers; raises as :meth:`requests` does."""
        line = self._lines[number - 1]
        requests = self._requests(number, line)
        with self._explained(number) as what:
            for answered, request in zip(line["answers"], requests, strict=True):
                asked = (group for group in OPTIONAL_GROUPS if group in answered)
                for group in (*GROUPS, *asked):
                    kind = AskedLocality if group == "locality" else AskedProbe
                    for probe in answered[group]:
                        check(probe, kind, f"{what}: case {request.case_id}", IF_DAMAGED)
        return requests, line["answers"]

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

    def _requests(self, number: int, line: FrozenLine) -> list[EditRequest]:
        with self._explained(number):
            return [EditRequest.from_json(record) for record in line["edits"]]

    @contextmanager
    def _explained(self, number: int) -> Iterator[str]:
        """Turn errors inside into a :class:`DataError` that names the line; yields its name."""
        what = f"line {number} of {self._lines.path}"
        try:
            yield what
        except DataError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"{what} is damaged ({error!r}); {IF_DAMAGED}") from error

    def keep(self, count: int) -> None:
        """Drop the rounds after the first ``count``."""
        self._lines.keep(count)
