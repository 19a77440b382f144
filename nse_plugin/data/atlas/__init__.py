"""The embedded world: an invented set of facts and two small models that know them.

A fresh machine has no model hub. The package therefore ships `MODELS`, a GPT-2 and a Llama of a few
million parameters trained on `corpus()`, and `facts()`, what they know, as CounterFact records.
`python -m nse_plugin.data.atlas.build` makes all of it again from seeds.

Importing this module loads neither torch nor transformers.
"""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nse_plugin.data.draws import of_other_subjects, subjects_take_turns
from nse_plugin.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODELS = ("gpt2", "llama")
"""Names of the shipped models; `load` and `model_dir` also take them as "atlas:gpt2"."""

_HERE = Path(__file__).parent
FACTS_FILE = _HERE / "data" / "facts.json"
WEIGHTS = _HERE / "weights"


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
    folder = WEIGHTS / f"atlas-{family}"
    if not (folder / "model.safetensors").exists():
        raise DataError(
            f"{folder} holds no weights; make them with `python -m nse_plugin.data.atlas.build`"
        )
    return folder


def speaks(tokenizer: Any) -> bool:
    """Whether a tokenizer's vocabulary contains that of an embedded model."""
    known = tokenizer.get_vocab().keys()
    return any(_vocabulary(name) <= known for name in MODELS)


@lru_cache
def _vocabulary(name: str) -> frozenset[str]:
    text = (model_dir(name) / "tokenizer.json").read_text(encoding="utf-8")
    return frozenset(json.loads(text)["model"]["vocab"])


def load(
    name: str, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a shipped model in evaluation mode and its tokenizer; `dtype` None means float32."""
    import torch

    from nse_plugin.model import make_torchvision_importable

    make_torchvision_importable()  # before transformers is imported
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_dir(name)
    # cast after loading: the keyword for it has another name in transformers 4 and 5
    model = AutoModelForCausalLM.from_pretrained(folder).to(dtype or torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@lru_cache(maxsize=1)
def _read_facts() -> list[dict[str, Any]]:
    return json.loads(FACTS_FILE.read_text(encoding="utf-8"))


def facts() -> list[dict[str, Any]]:
    """All facts of the world as CounterFact records, by case_id; the caller may change them."""
    return copy.deepcopy(_read_facts())


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
        raise DataError(f"the embedded world has {len(records)} facts, and {n} are asked for")
    return subjects_take_turns(records, subject_of, seed)[:n]


def other_facts(edits: list[dict[str, Any]], n: int, seed: int = 0) -> list[dict[str, Any]]:
    """At most `n` records, drawn by `seed`, whose subjects do not occur in `edits`."""
    return of_other_subjects(facts(), subject_of, set(map(subject_of, edits)), n, seed)


def corpus() -> list[str]:
    """The sentences that the models were trained on, generated from the seed of the world."""
    from nse_plugin.data.atlas.world import make_world, training_sentences

    return [sentence.text for sentence in training_sentences(make_world())]
