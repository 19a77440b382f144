"""Record schemas, and readers of their fields: texts, lists of texts, targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nse_plugin.request_fields import all_texts, is_missing
from nse_plugin.requests import EditRequest

NEIGHBORHOOD = "neighborhood"
"""Locality kind of benchmarks that have only one kind."""
ONE_HOP = "one_hop"
"""Portability kind of questions one hop away from the edit."""
MULTI_HOP = "multi_hop"
"""Portability kind of questions that take several hops."""

MISSING = object()


class BadField(Exception):
    """A field of a record is missing or cannot be used."""

    def __init__(self, field: str, value: Any, wanted: str) -> None:
        found = "missing" if value is MISSING else repr(value)[:80]
        if isinstance(value, (bool, int, float)) and "text" in wanted:
            wanted += "; put it in quotes if it is one"  # YAML reads no as False, 1984 as a number
        super().__init__(f"field {field!r} is {found}, wanted {wanted}")


Parse = Callable[[Mapping[str, Any], int, list[str]], list[EditRequest]]
"""From (record, its index, list that collects notes on left-out probes) to requests."""


@dataclass(frozen=True)
class Schema:
    """One benchmark's record layout."""

    fields: tuple[str, ...]
    """Fields that every record has."""
    parse: Parse
    fits: Callable[[Mapping[str, Any]], bool]
    """Whether a record is of this schema."""
    reads: tuple[str, ...]
    """All fields that :attr:`parse` looks at."""
    leaves: tuple[str, ...] = ()
    """Fields of the benchmark that have no place in a request; a dot marks a nested one."""

    def left_out(self, record: Mapping[str, Any]) -> list[str]:
        """Those of :attr:`leaves` that a record has."""
        return [path for path in self.leaves if _holds(record, path.split("."))]


def _holds(value: Any, path: list[str]) -> bool:
    if not path:
        return True
    if isinstance(value, list):
        return any(_holds(entry, path) for entry in value)
    return isinstance(value, Mapping) and path[0] in value and _holds(value[path[0]], path[1:])


def neighbour_of(
    record: Mapping[str, Any], prompt: str, answer: str, kind: str = NEIGHBORHOOD
) -> dict[str, Any]:
    """A record's single question as probes of one kind; empty if its field is missing."""
    if is_missing(record.get(prompt)):
        return {}
    return {kind: {"prompt": record[prompt], "ground_truth": record.get(answer)}}


def text_of(record: Mapping[str, Any], field: str) -> str:
    """A text that is not empty."""
    value = record.get(field, MISSING)
    if not isinstance(value, str) or not value.strip():
        raise BadField(field, value, "a text that is not empty")
    return value


def texts_of(record: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """A list of texts, without those that are missing."""
    value = record.get(field, MISSING)
    if not isinstance(value, list) or not all(
        isinstance(entry, str) or is_missing(entry) for entry in value
    ):
        raise BadField(field, value, "a list of texts")
    return all_texts(value, field)


def mapping_of(record: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    """An object."""
    value = record.get(field, MISSING)
    if not isinstance(value, Mapping):
        raise BadField(field, value, "an object")
    return value


def target_of(rewrite: Mapping[str, Any], field: str) -> str:
    """A rewrite's target or true answer, which may be given as {"str": ...}."""
    value = rewrite.get(field, rewrite.get(f"{field}_str", MISSING))  # MQuAKE-Remastered
    if isinstance(value, Mapping):
        value = value.get("str", MISSING)
    return text_of({field: value} if value is not MISSING else {}, field).strip()
