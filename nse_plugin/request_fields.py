"""Read the fields of edit requests from files and scripts: texts, answers, probes, subjects.

Missing values have many forms: None, NaN (in a table with gaps), empty texts, empty lists.  All of
them count as missing; none becomes a text.
"""

from __future__ import annotations

import math
import numbers
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

PLACE = "{}"
"""The subject's placeholder in a template."""
_BLANKS_AT_END = re.compile(r"[^\S\r\n]+\Z")
_SPACELESS = ("CJK", "HIRAGANA", "THAI", "LAO", "KHMER", "MYANMAR")
"""Prefixes of Unicode names of letters in scripts without spaces between words."""


class FieldError(ValueError):
    """A field cannot be used; callers add the name of the request."""


def is_missing(value: Any) -> bool:
    """Whether a value is missing: None, NaN, pandas' NA, an empty text, or a list of such."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, numbers.Real):  # numpy's numbers, too
        return bool(value != value)
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, (list, tuple)):
        return all(map(is_missing, value))
    return isinstance(value, Mapping) and not value


def listed(value: Any) -> list[Any]:
    """The values of a field that may hold one or several; empty for None."""
    if value is None:
        return []
    several = isinstance(value, Iterable) and not isinstance(value, (str, Mapping))
    return list(value) if several else [value]


def checked_text(value: Any, name: str) -> str:
    """The value, if it is a non-empty, valid text.

    Raises:
        FieldError: it is no text, empty, or contains half of a UTF-16 pair.
    """
    if not isinstance(value, str) or not value.strip():
        raise FieldError(f"{name} is {value!r}; give a text that is not empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise FieldError(
            f"{name} is {value!r}, which is not valid Unicode ({error.reason}); correct the text"
        ) from None
    return value


def without_blanks_at_end(text: str) -> str:
    """A prompt without blanks at its end; line breaks stay.

    An answer comes one space after its prompt; after two spaces, models write another token.
    """
    return _BLANKS_AT_END.sub("", text)


def first_text(value: Any, name: str) -> str | None:
    """The first answer, if a benchmark lists several or their aliases, at any depth.

    Raises:
        FieldError: the first entry that is not missing is no text.
    """
    if is_missing(value):
        return None
    if isinstance(value, (list, tuple)):
        found = (first_text(entry, name) for entry in value)
        return next((text for text in found if text is not None), None)
    if isinstance(value, float) and math.isinf(value):
        raise FieldError(f"{name} is {value}; give a text that is not empty")
    if isinstance(value, (int, float)) and not isinstance(value, bool):  # a year, say
        return str(int(value)) if value == int(value) else str(value)
    return checked_text(value, name).strip()


def all_texts(value: Any, name: str) -> tuple[str, ...]:
    """One text or a list of texts, without missing ones.

    Raises:
        FieldError: an entry is neither a text nor missing.
    """
    entries = value if isinstance(value, (list, tuple)) else [value]
    found = (first_text(entry, name) for entry in entries)
    return tuple(text for text in found if text is not None)


def questions(groups: Any, name: str) -> Iterator[tuple[str, str, str | None]]:
    """(kind, prompt, answer or None) of each question in ``locality`` or ``portability``.

    A kind has ``{"prompt": ..., "ground_truth": ...}``, each a text or a list, or a list of such
    objects (KnowEdit).  If one prompt has a list of answers, these are an answer and its aliases.

    Raises:
        FieldError: the structure is another one, or prompts and answers differ in number.
    """
    if is_missing(groups):
        return
    if not isinstance(groups, Mapping):
        raise FieldError(
            f"{name} is {groups!r:.80}; give {{kind: {{'prompt': ..., 'ground_truth': ...}}}}"
        )
    for kind, group in groups.items():
        where = f"{name}[{kind!r}]"
        for entry in group if isinstance(group, (list, tuple)) else [group]:
            for prompt, answers in _paired(entry, where):
                answer = first_text(answers, f"an answer of {where}")
                if answer is not None and isinstance(answers, str):
                    answer = answers  # EasyEdit's scores count the blanks around it
                yield str(kind), checked_text(prompt, f"a prompt of {where}"), answer


def _paired(entry: Any, where: str) -> list[tuple[Any, Any]]:
    if is_missing(entry):
        return []
    if not isinstance(entry, Mapping) or "prompt" not in entry or "ground_truth" not in entry:
        raise FieldError(f"{where} holds {entry!r:.80}; give 'prompt' and 'ground_truth'")
    prompts, answers = entry["prompt"], entry["ground_truth"]
    if is_missing(prompts):
        return []
    if not isinstance(prompts, (list, tuple)):
        return [(prompts, answers)]
    if not isinstance(answers, (list, tuple)):
        answers = [answers]
    if len(prompts) != len(answers):
        raise FieldError(
            f"{where} has {len(prompts)} prompts and {len(answers)} answers; "
            "give one answer per prompt"
        )
    return [pair for pair in zip(prompts, answers) if not is_missing(pair[0])]


def subject_at(prompt: str, subject: str, *, whole_words: bool = False) -> int:
    """Index of the subject in a full prompt; -1 if it is not there.

    Of several occurrences the last one counts: it is nearest to the answer, and tokens before it
    cannot attend to it.  An occurrence inside a longer word counts only if there is no other, and
    never with ``whole_words``.
    """
    places = [found.start() for found in re.finditer(f"(?={re.escape(subject)})", prompt)]
    whole = [
        start
        for start in places
        if not inside_a_word(prompt, start) and not inside_a_word(prompt, start + len(subject))
    ]
    return (whole or ([] if whole_words else places) or [-1])[-1]


def inside_a_word(text: str, place: int) -> bool:
    """Whether this character continues a word."""
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    if unicodedata.category(after).startswith("M"):  # an accent or vowel sign
        return True
    return _in_word(before) and _in_word(after) and not (_spaceless(before) or _spaceless(after))


def filled(prompt: Any, subject: Any) -> Any:
    """A record's prompt, with the subject in place of ``{}`` if it is a template."""
    if not (isinstance(prompt, str) and isinstance(subject, str) and subject.strip()):
        return prompt
    is_template = prompt.count(PLACE) == 1 and place_of(prompt, subject.strip()) < 0
    return prompt.replace(PLACE, subject.strip()) if is_template else prompt


def place_of(prompt: str, subject: str) -> int:
    """Index of the subject in a prompt; -1 if it is not there or the prompt is a template."""
    return subject_at(prompt, subject, whole_words=PLACE in prompt)


def as_template(prompt: Any, subject: Any, start: Any) -> tuple[str, int | None]:
    """The prompt with ``{}`` in the subject's place, and the index of the ``{}`` if known.

    Args:
        start: index of the subject in the prompt, also as the text or the float of a table, or a
            missing value.

    Raises:
        FieldError: the subject is not in the prompt, or not at that index.
    """
    prompt, subject = checked_text(prompt, "prompt"), checked_text(subject, "subject").strip()
    if is_missing(start):
        place = place_of(prompt, subject)
    else:
        number = re.fullmatch(r"\s*(\d+)(\.0)?\s*", str(start))
        place = int(number[1]) if number else -1
        if place < 0 or not prompt.startswith(subject, place):
            raise FieldError(
                f"subject_start is {start!r}, and subject {subject!r} is not at that index of "
                f"prompt {prompt!r}; correct it, or leave it out to take the last occurrence"
            )
    if place >= 0:
        return prompt[:place] + PLACE + prompt[place + len(subject) :], place
    if PLACE in prompt:
        return prompt, None
    raise FieldError(
        f"subject {subject!r} is not in prompt {prompt!r}; "
        "write it exactly as the prompt does, or put '{}' in its place"
    )


def without_blanks_around(before: str, subject: str, after: str) -> tuple[str, str, str]:
    """The subject without blanks around it; they move to the texts beside it."""
    bare = subject.strip()
    if subject[0].isspace() and before and not before[-1].isspace():
        before += " "
    if subject[-1].isspace() and after and not after[0].isspace():
        after = " " + after
    return before, bare, after


def checked_case_id(value: Any) -> int | str:
    """A record's ``case_id``: a number or a text.

    Raises:
        FieldError: it is neither.
    """
    if type(value).__module__ == "numpy" and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and value.is_integer():  # from a table with gaps
        return int(value)
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        return value
    raise FieldError(f"case_id is {value!r:.80}; give a number or a text")


def _in_word(character: str) -> bool:
    kind = unicodedata.category(character)
    return character == "_" or kind[0] in "LMN"


def _spaceless(character: str) -> bool:
    return unicodedata.name(character, "").startswith(_SPACELESS)
