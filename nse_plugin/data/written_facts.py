"""The names of fields in facts as people write them down, in those that the readers know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nse_plugin.data.schemas import SCHEMAS
from nse_plugin.errors import RequestError
from nse_plugin.request_fields import PLACE, is_missing

_SUBJECT = re.compile(r"\{([^{}]+)\}")
_READ_AS = {
    "target": "target_new",
    "paraphrase": "rephrase_prompts",
    "paraphrases": "rephrase_prompts",
}
NAMES = tuple(_READ_AS)
"""Fields that only facts have."""


def is_written(record: Mapping[str, Any]) -> bool:
    """Whether a record is a fact that :func:`completed` has to complete before it can be read."""
    prompt, subject = record.get("prompt"), record.get("subject")
    in_braces = isinstance(prompt, str) and bool(_SUBJECT.search(prompt)) and is_missing(subject)
    fits = any(schema.fits(record) for schema in SCHEMAS.values())
    return (
        "prompt" in record
        and (in_braces or not fits)
        and ("target" in record or "target_new" in record)
    )


def completed(record: Mapping[str, Any], number: int | None = None) -> dict[str, Any]:
    """A record with the names that readers know, its subject, and a number if one is given."""
    found = dict(record)
    if number is not None:
        found["case_id"] = number
    for name, read_as in _READ_AS.items():
        if name in found and is_missing(found.get(read_as)):
            found[read_as] = found.pop(name)
    prompt = found.get("prompt")
    if prompt is not None and not any(schema.fits(found) for schema in SCHEMAS.values()):
        raise RequestError(
            f"the fact {prompt!r} has no target; give its new answer as target (its fields are "
            f"{', '.join(map(str, record))})"
        )
    if isinstance(prompt, str) and is_missing(found.get("subject")):
        places = _SUBJECT.findall(prompt)
        if len(places) > 1:
            raise RequestError(
                f"{prompt!r} has {len(places)} texts in braces; put only the subject in braces"
            )
        if not places and PLACE in prompt:
            raise RequestError(
                f"the subject of {prompt!r} is not given; name what stands in place of {{}} as the "
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
