"""Hand-written facts in the field names of the benchmarks, so that the same readers take them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nse_plugin.data.schemas import schema_of
from nse_plugin.errors import RequestError
from nse_plugin.request_fields import PLACE, is_missing

_SUBJECT = re.compile(r"\{([^{}]+)\}")
_READ_AS = {
    "target": "target_new",
    "paraphrase": "rephrase_prompts",
    "paraphrases": "rephrase_prompts",
}
NAMES = tuple(_READ_AS)
"""Fields that only hand-written facts have."""


def is_written(record: Mapping[str, Any]) -> bool:
    """Whether a record is a fact that has to be :func:`completed` before it can be read."""
    if "prompt" not in record or not ("target" in record or "target_new" in record):
        return False
    prompt = record["prompt"]
    in_braces = isinstance(prompt, str) and _SUBJECT.search(prompt) is not None
    subject = record.get("subject")
    unread = is_missing(subject) or f"{{{subject}}}" in str(prompt)
    return (in_braces and unread) or schema_of(record) is None


def completed(record: Mapping[str, Any], case_id: int | None = None) -> dict[str, Any]:
    """A fact with the readers' field names, its subject, and a case_id if one is given.

    Raises:
        RequestError: it has no target, or its subject is not clear.
    """
    found = dict(record)
    if case_id is not None:
        found["case_id"] = case_id
    for name, read_as in _READ_AS.items():
        if name in found and is_missing(found.get(read_as)):
            found[read_as] = found.pop(name)
    prompt = found.get("prompt")
    if prompt is not None and schema_of(found) is None:
        raise RequestError(
            f"the fact {prompt!r} has no target; give its new answer as target (its fields are "
            f"{', '.join(map(str, record))})"
        )
    subject = found.get("subject")
    if isinstance(prompt, str) and isinstance(subject, str) and prompt.count(f"{{{subject}}}") == 1:
        found["prompt"] = prompt.replace(f"{{{subject}}}", PLACE)  # given twice, in braces too
    elif isinstance(prompt, str) and is_missing(subject):
        places = _SUBJECT.findall(prompt)
        if len(places) > 1:
            raise RequestError(
                f"{prompt!r} has {len(places)} texts in braces; put only the subject in braces"
            )
        if not places and PLACE in prompt:
            raise RequestError(
                f"the subject of {prompt!r} is not given; give the text that replaces {{}} as the "
                "subject (--subject, or subject: in a file)"
            )
        if not places:
            raise RequestError(
                f"the subject of {prompt!r} is not given; put it in braces, as in "
                "'{The Eiffel Tower} is located in the city of', or put {} in its place and give "
                "it as the subject"
            )
        found["subject"], found["prompt"] = places[0].strip(), _SUBJECT.sub(PLACE, prompt)
    return found
