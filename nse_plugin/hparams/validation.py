"""One validator for all settings: method, run, protocol, stop rules, comparison.

A class of settings is a dataclass derived from :class:`Settings`.  The type hint of a field says
what it may hold, with :func:`bounded` for a range and :func:`group` for nested settings.  All
mistakes are found together and raised as one :class:`HparamsError`, a line each.
"""

from __future__ import annotations

import functools
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast

from nse_plugin.errors import HparamsError, did_you_mean
from nse_plugin.hparams.yaml_files import read_yaml

S = TypeVar("S", bound="Settings")

LARGEST_SEED = 2**63 - 1
"""The largest seed that torch accepts."""
_LONGEST = 120
"""Maximum number of characters of a value in an error."""
_NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")
_IN_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}


@dataclass(frozen=True)
class Range:
    """``low <= value <= high`` and ``above < value``; None is no bound."""

    low: float | None = None
    above: float | None = None
    high: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a number is finite and in the range."""
        return (
            math.isfinite(value)
            and (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
        )

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return f" from {self.low} to {self.high}"
        if self.above is not None and self.high is not None:
            return f" above {self.above} and at most {self.high}"
        bounds = {"of at least": self.low, "above": self.above, "of at most": self.high}
        return "".join(f" {word} {at}" for word, at in bounds.items() if at is not None)


def bounded(default: Any, *, low: float | None = None, above: float | None = None,
            high: float | None = None) -> Any:  # fmt: skip
    """A field with a range: ``low <= value <= high`` and ``above < value``."""
    return field(default=default, metadata={"range": Range(low, above, high)})


def group(kind: type[Settings]) -> dict[str, Any]:
    """Metadata of a field that holds keys and values of other settings, as a dict."""
    return {"group": kind}


class Settings:
    """Base of every dataclass of settings; the constructor checks and converts the values.

    Raises:
        HparamsError: values have the wrong type, are out of range or contradict each other.
    """

    key_of: ClassVar[Mapping[str, str]] = {}
    """By field: its key in a file, if the two differ."""
    unknown_key_advice: ClassVar[str] = ""
    """Advice added to the error about an unknown key."""

    def __post_init__(self) -> None:
        self.check_values()

    def check_values(self) -> None:
        """Check and convert the values, as the constructor does; for attributes set since then."""
        given = {f.name: getattr(self, f.name) for f in _fields(type(self))}
        found, mistakes = _examined(type(self), given)
        if not mistakes:
            for name, value in found.items():
                object.__setattr__(self, name, value)  # also if the dataclass is frozen
            mistakes = list(self.conflicts())
        if mistakes:
            raise HparamsError(*mistakes)

    def conflicts(self) -> Iterator[str]:
        """Errors of values that contradict each other; each begins with a key."""
        yield from ()

    @classmethod
    def from_dict(cls: type[S], values: Mapping[str, Any], file: str | Path | None = None) -> S:
        """Build from keys and values.

        Args:
            file: where they were read, for errors.

        Raises:
            HparamsError: keys are unknown or missing, or values are wrong; all of them are named.
        """
        made, mistakes = _made(cls, values)
        if made is None:
            raise HparamsError(*mistakes, file=file)
        return made

    @classmethod
    def read(cls: type[S], config: str | Path | None, given: Mapping[str, Any]) -> S:
        """Build from a YAML file and from options, which override it.

        In the file, keys of a group may also stand outside it, as on the command line.

        Args:
            given: options by key; None keeps the file's value, and groups are merged key by key.

        Raises:
            HparamsError: the file cannot be read, or something in it or in ``given`` is wrong.
        """
        values, twice = _grouped(cls, {} if config is None else read_yaml(Path(config)))
        if mistakes := twice + mistakes_in(cls, values):
            raise HparamsError(*mistakes, file=config)
        for key, value in given.items():
            if isinstance(value, Mapping):
                chosen = {k: v for k, v in value.items() if v is not None}
                values[key] = {**(values.get(key) or {}), **chosen}
            elif value is not None:
                values[key] = value
        return cls.from_dict(values)


def _grouped(kind: type[Settings], values: Mapping[Any, Any]) -> tuple[dict[Any, Any], list[str]]:
    """Values with the keys of groups moved into their groups; errors for keys given twice."""
    found, twice = dict(values), []
    own = _keyed(kind)
    for name, group_field in own.items():
        inner = group_field.metadata.get("group")
        if inner is None or not isinstance(found.get(name) or {}, Mapping):
            continue
        keys = set(_keyed(inner)) - set(own)
        for key in [key for key in found if key in keys]:
            inside = dict(found.get(name) or {})
            if key in inside:
                twice.append(f"{key} is given alone and as {name}.{key}; leave one out")
            found[name] = {**inside, key: found.pop(key)}
    return found, twice


def mistakes_in(kind: type[Settings], values: Mapping[Any, Any], within: str = "") -> list[str]:
    """The mistakes in some keys and values of a kind of settings; keys may be missing.

    Args:
        within: prefix of each key, as in ``protocol.every``.
    """
    known = _keyed(kind)
    unknown = [
        f"unknown key {f'{within}{key}'!r}{did_you_mean(str(key), known)}{kind.unknown_key_advice}"
        for key in values
        if key not in known
    ]
    return unknown + _examined(kind, by_field(kind, values), within)[1]


def by_field(kind: type[Settings], values: Mapping[Any, Any]) -> dict[str, Any]:
    """Values by field name, without unknown keys."""
    known = _keyed(kind)
    return {known[key].name: value for key, value in values.items() if key in known}


def _made(kind: type[S], values: Mapping[Any, Any], within: str = "") -> tuple[S | None, list[str]]:
    """Settings of a kind, or the mistakes in their values; ``within`` is put before each key."""
    given = by_field(kind, values)
    mistakes = mistakes_in(kind, values, within)
    missing = [
        f"{within}{key}"
        for key, f in _keyed(kind).items()
        if f.default is f.default_factory is MISSING and f.name not in given
    ]
    if missing:
        mistakes.append(f"missing key(s) {', '.join(map(repr, missing))}")
    if mistakes:
        return None, mistakes
    try:
        return kind(**given), []
    except HparamsError as error:
        return None, [f"{within}{mistake}" for mistake in error.mistakes]


def _examined(
    kind: type[Settings], given: Mapping[str, Any], within: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """Values converted to the types of their fields, and the mistakes in the others."""
    found: dict[str, Any] = {}
    mistakes: list[str] = []
    for key, f in _keyed(kind).items():
        if f.name not in given:
            continue
        key, value = f"{within}{key}", given[f.name]
        try:
            if "group" in f.metadata:
                found[f.name] = _group(key, value, f.metadata["group"])
            else:
                hint = _hints(cast(Any, kind))[f.name]
                found[f.name] = _value(key, value, hint, f.metadata.get("range", Range()))
        except HparamsError as error:
            mistakes += error.mistakes
    return found, mistakes


def _group(key: str, value: Any, kind: type[Settings]) -> dict[str, Any]:
    """The keys and values of a valid group; null is an empty group."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        first = next(f for f in _fields(kind) if f.default is not None)
        example = f"{key}: {{{first.name}: {json.dumps(first.default)}}}"
        raise HparamsError(
            f"{key} is {_shown(value)}; it must be a group of keys with values, as in {example}"
        )
    mistakes = _made(kind, value, f"{key}.")[1]
    if mistakes:
        raise HparamsError(*mistakes)
    return dict(value)


def _value(key: str, value: Any, hint: Any, range_: Range) -> Any:
    """The value converted to the type of its field.

    Raises:
        HparamsError: it has another type, or is out of range.
    """
    if hint is Any:
        return value
    kinds = _kinds(hint)
    for kind in kinds:
        converted = _as(value, kind)
        if converted is _NOT:
            continue
        numbers = converted if isinstance(converted, (list, tuple)) else [converted]
        if all(range_.holds(n) for n in numbers if _is_number(n)):
            return converted
    allowed = " or ".join(_in_words(kind, range_) for kind in kinds)
    choices = [str(choice) for kind in kinds for choice in _choices(kind)]
    near = did_you_mean(str(value), choices) if len(choices) > 1 else ""
    plain = str in kinds and isinstance(value, (int, float))
    quotes = f"; put it in quotes, '{value}', if it is one" if plain else ""
    raise HparamsError(f"{key} is {_shown(value)}; it must be {allowed}{near}{quotes}")


_NOT = object()
"""Marks a value that cannot be converted to a type."""


def _as(value: Any, kind: Any) -> Any:
    """A value converted to a type, e.g. a text of the command line to a number; else ``_NOT``."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return next((c for c in inner if c == value and type(c) is type(value)), _NOT)
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            return _NOT
        items = [_first_of(item, _kinds(inner[0])) for item in value]
        return _NOT if any(item is _NOT for item in items) else origin(items)
    if origin is not None or kind in (Mapping, dict):
        return value if isinstance(value, Mapping) else _NOT
    if kind in (int, float) and isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value) if set(value) & set(".eE") else int(value)
    if kind is float and _is_number(value):
        return float(value) if abs(value) < 1e308 or isinstance(value, float) else math.inf
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) and kind is not bool:
        return _NOT
    return value if isinstance(value, kind) else _NOT


def _first_of(value: Any, kinds: tuple[Any, ...]) -> Any:
    return next((found for kind in kinds if (found := _as(value, kind)) is not _NOT), _NOT)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types of a union, in the order in which they are tried."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _choices(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _in_words(kind: Any, range_: Range) -> str:
    """What a value of a type may be: ``a number above 0``."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        some = ["null" if c is None else "false" if c is False else repr(c) for c in inner]
        return some[0] if len(some) == 1 else f"one of {', '.join(some)}"
    if origin in (list, tuple):
        return {
            int: "a list of whole numbers, e.g. [1, 2]",
            float: "a list of numbers, e.g. [0.5, 1.5]",
            str: "a list of texts, e.g. [first, second]",
        }.get(inner[0], "a list, e.g. [[5, 10], [10, 10]]")
    if origin is not None or kind in (Mapping, dict):
        return "a group of keys with values"
    return _IN_WORDS[kind] + (str(range_) if kind in (int, float) else "")


def _shown(value: Any) -> str:
    """A value as errors show it, cut if it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


@functools.cache
def _hints(kind: type[Settings]) -> dict[str, Any]:
    """The types of the fields; cached, since evaluating them takes longer than all checks."""
    return typing.get_type_hints(kind)


def _keyed(kind: type[Settings]) -> dict[str, Field[Any]]:
    """The fields by their key in a file."""
    return {kind.key_of.get(f.name, f.name): f for f in _fields(kind)}


def _fields(kind: type[Settings]) -> tuple[Field[Any], ...]:
    return fields(cast(Any, kind))  # every class of settings is a dataclass
