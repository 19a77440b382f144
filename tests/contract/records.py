"""The same small records in the layout of every benchmark, and slices of the real ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SHARED = Path(__file__).parents[3] / "shared" / "data"
HPARAMS = SimpleNamespace(alg_name="NSE", max_length=40)

ZSRE = [
    {
        "subject": "Mara Voss",
        "src": "Where does Mara Voss live?",
        "rephrase": "In what town is the house of Mara Voss?",
        "alt": "Quill",
        "answers": ["Tellin", "Tellin by the sea"],
        "loc": "nq question: who is the sister of ann",
        "loc_ans": "Anna",
        "portability": {"New Question": "By what river does she live?", "New Answer": "the Garn"},
    },
    {
        "subject": "Oren Falk",
        "src": "What is the trade of Oren Falk?",
        "rephrase": "By trade, what is Oren Falk?",
        "alt": "painter",
        "answers": ["b\u00e4cker"],
        "loc": "nq question: where is the old bridge",
        "loc_ans": "Garn",
    },
]
FLAT = [
    {
        "case_id": 7,
        "subject": "Ostrell",
        "prompt": "The capital of Ostrell is",
        "target_new": "Quill",
        "ground_truth": "Garn",
        "rephrase_prompt": "Ostrell is governed from",
        "locality_prompt": "The capital of Tellin is",
        "locality_ground_truth": "Tellin by the sea",
    },
    {
        "case_id": 9,
        "subject": "Anna",
        "prompt": "Anna works as a",
        "target_new": "doctor",
        "ground_truth": "painter",
        "rephrase_prompt": "The trade of Anna is that of a",
        "locality_prompt": "Ann works as a",
        "locality_ground_truth": "doctor",
    },
]
KNOWEDIT = [
    {
        "subject": "Lio Brandt",
        "prompt": "Lio Brandt was born in",
        "target_new": "Ostrell",
        "ground_truth": ["Quill"],
        "rephrase_prompt": "The town where Lio Brandt was born is",
        "locality": {
            "Relation_Specificity": [
                {"prompt": "The trade of Lio Brandt is", "ground_truth": ["baker", "cook"]},
                {"prompt": "His sister is", "ground_truth": ["Ann"]},
            ],
            "Forgetfulness": [{"prompt": "Lio Brandt knows", "ground_truth": [["Mara", "M."]]}],
            "Neighbours": [{"prompt": "Anna was born in", "ground_truth": "Tellin"}],
        },
        "portability": {
            "Reasoning": [{"prompt": "The river of his town is", "ground_truth": "the Garn"}],
            "Subject_Aliasing": [{"prompt": "L. Brandt is from", "ground_truth": [["Ostrell"]]}],
            "Logical_Generalization": [],
        },
    },
    {
        "concept": "Mara Voss",
        "text": "Mara Voss lives in",
        "labels": "Garn",
        "locality": {
            "Relation_Specificity": [{"prompt": "Mara Voss is a", "ground_truth": ["painter"]}]
        },
    },
]
WIKI_RECENT = [
    {
        "subject": record["subject"],
        "prompt": record["prompt"],
        "target_new": record["target_new"],
        "portability": {"Reasoning": [{"prompt": "He is a", "ground_truth": [["baker"]]}]},
        "locality": {
            "Relation_Specificity": [
                {"prompt": "Her sister is a", "ground_truth": [["doctor", "dr."], ["painter"]]},
                {"prompt": "The old bridge is", "ground_truth": [["closed"]]},
            ]
        },
    }
    for record in FLAT
]


@dataclass(frozen=True)
class Benchmark:
    kind: str
    where: str
    """The host's class for it."""
    records: list[dict[str, Any]]
    """Written here; the class takes all of them."""
    shared: str
    """Name of the real records in ``../shared/data``."""
    left_out: tuple[str, ...] = ()
    """Parts of a request that the class gives nothing, or not enough, for; compared without."""


BENCHMARKS = {
    "ZsRE": Benchmark(
        "zsre",
        "easyeditor.dataset.zsre:ZsreDataset",
        ZSRE,
        "zsre_200.json",
        left_out=("subject", "portability"),
    ),
    "CounterFact": Benchmark(
        "counterfact_flat",
        "easyeditor.dataset.counterfact:CounterFactDataset",
        FLAT,
        "counterfact_easyedit_200.json",
    ),
    "KnowEdit": Benchmark(
        "knowedit",
        "easyeditor.dataset.knowedit:KnowEditDataset",
        KNOWEDIT,
        "knowedit_zsre_100.json",
        left_out=("rephrase_prompt", "Neighbours"),
    ),
    "KnowEdit, wiki_recent": Benchmark(
        "knowedit",
        "easyeditor.dataset.knowedit:KnowEditDataset",
        WIKI_RECENT,
        "knowedit_wiki_recent_100.json",
    ),
    "WikiRecent": Benchmark(
        "wiki_recent",
        "easyeditor.dataset.wiki_recent:WikiRecentDataset",
        WIKI_RECENT,
        "knowedit_wiki_recent_100.json",
        left_out=("ground_truth", "rephrase_prompt", "locality", "portability"),
    ),
}
BLANKS = {
    "ZsRE": {26: " MAT-49", 27: " species", 28: " species"},
    "KnowEdit": {16: " Charity River", 18: " myna"},
}
"""New answers of the real records with blanks around them, by index."""
NO_ALIAS = 3
"""Index of the real wiki_recent record that has an answer without an alias, ``[[], ["..."]]``."""


def shared(name: str) -> Path:
    if not (SHARED / name).is_file():
        pytest.skip(f"no {name} in ../shared/data beside this checkout")
    return SHARED / name


def write(folder: Path, records: Any, name: str = "records.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(records))
    return path


def taken(benchmark: Benchmark, path: Path, folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The records that the class takes, and a file of them: one refusal refuses the file."""
    records = json.loads(path.read_text(encoding="utf-8"))
    if benchmark.kind == "wiki_recent":
        records = [record for record in records if drawable(record)]
    return write(folder, records, "taken.json"), records


def drawable(record: dict[str, Any]) -> bool:
    """Whether WikiRecentDataset can draw from it, whatever it draws."""
    probes = record["locality"].get("Relation_Specificity")
    return bool(probes) and all(all(probe["ground_truth"]) for probe in probes)


# --- the records as EasyEdit's scorer gets them, from what its classes give -----------------------


def for_scorer(benchmark: Benchmark, item: dict[str, Any]) -> dict[str, Any]:
    """The fields of an editor's request, as the host's example scripts fill them.

    Two things are ours.  Blanks around answers are taken off (BLANKS lists the real ones), since
    both scorers put one before each answer themselves.  Of [[], ["x"]] the first answer is "x";
    on it the example scripts break (one probe of real wiki_recent records, NO_ALIAS).
    """
    record = {
        "prompt": item["prompt"],
        "target_new": item["target_new"].strip(),
        "ground_truth": first(item.get("ground_truth")),
        "locality": {},
        "portability": {},
    }
    for field in ("case_id", "subject", "rephrase_prompt"):
        if field in item:
            record[field] = item[field]
    if "locality_prompt" in item:
        record["locality"]["neighborhood"] = {
            "prompt": [item["locality_prompt"]],
            "ground_truth": [item["locality_ground_truth"].strip()],
        }
    for section, kind, name in (
        ("portability", "Reasoning", "portability_r"),
        ("portability", "Subject_Aliasing", "portability_s"),
        ("portability", "Logical_Generalization", "portability_l"),
        ("locality", "Relation_Specificity", "locality_rs"),
        ("locality", "Forgetfulness", "locality_f"),
    ):
        if item.get(name):  # neither None nor empty, which the scorer could not take
            record[section][kind] = {
                "prompt": [probe["prompt"] for probe in item[name]],
                "ground_truth": [first(probe["ground_truth"]) for probe in item[name]],
            }
    return record


def first(answers: Any) -> Any:
    while isinstance(answers, list):
        answers = next(answer for answer in answers if answer)
    return answers.strip() if isinstance(answers, str) else answers


def plain(value: Any) -> Any:
    """The value without numpy's types."""
    return json.loads(json.dumps(value, default=float))


def without(record: dict[str, Any], left_out: tuple[str, ...]) -> dict[str, Any]:
    """A record without some of its fields and kinds of probes."""
    return {
        name: without(value, left_out) if isinstance(value, dict) else value
        for name, value in record.items()
        if name not in left_out
    }
