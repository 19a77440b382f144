"""The embedded world: an invented set of facts and two small models that know them.

A fresh machine has no model hub. The package therefore ships `MODELS`, a GPT-2 and a Llama of a few
million parameters trained on `corpus()`, and `facts()`, what they know, as CounterFact records.
`python -m benchmarks.atlas.build`, in a checkout, makes all of it again from seeds.

Importing this module loads neither torch nor transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nse_plugin.data.draws import of_other_subjects, subjects_take_turns
from nse_plugin.errors import DataError, did_you_mean

MODELS = ("gpt2", "llama")
"""Names of the shipped models, which are loaded as "atlas:gpt2"."""

FACTS_FILE = Path(__file__).parent / "data" / "facts.json"
CORPUS_FILE = FACTS_FILE.with_name("corpus.txt")


def model_dir(name: str) -> Path:
    """The folder of a shipped model, in the layout that `from_pretrained` reads.

    Its base name contains the family name, since EasyEdit tells families apart by it.
    """
    family = name.removeprefix("atlas:")
    if family not in MODELS:
        raise DataError(
            f"unknown atlas model {name!r}; there are: {', '.join(MODELS)}"
            f"{did_you_mean(family, MODELS)}"
        )
    return Path(__file__).parent / "weights" / f"atlas-{family}"


def speaks(tokenizer: Any) -> bool:
    """Whether a tokenizer's vocabulary contains that of the embedded models, which share one."""
    file = model_dir("gpt2") / "tokenizer.json"
    vocabulary = json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
    return vocabulary.keys() <= tokenizer.get_vocab().keys()


def facts() -> list[dict[str, Any]]:
    """All facts of the world as CounterFact records, by case_id."""
    return json.loads(FACTS_FILE.read_text(encoding="utf-8"))


def subject_of(record: dict[str, Any]) -> str:
    """The subject of a record."""
    return record["requested_rewrite"]["subject"]


def edit_set(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """`n` records of mixed relations, drawn by `seed`.

    No subject repeats before every subject has occurred once; a smaller `n` with the same seed
    gives the beginning of the same list.
    """
    records = facts()
    if not 0 <= n <= len(records):
        raise DataError(
            f"atlas:{n} asks for more than the {len(records)} facts of the embedded world; give a "
            "smaller number"
        )
    return subjects_take_turns(records, subject_of, seed)[:n]


def other_facts(edits: list[dict[str, Any]], n: int, seed: int = 0) -> list[dict[str, Any]]:
    """At most `n` records, drawn by `seed`, whose subjects do not occur in `edits`."""
    return of_other_subjects(facts(), subject_of, set(map(subject_of, edits)), n, seed)


def corpus() -> list[str]:
    """The sentences that the models were trained on."""
    return CORPUS_FILE.read_text(encoding="utf-8").splitlines()
