"""The model card of an export: the edited facts, their scores, how to load and to undo them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from nse_plugin.data.published import MODELS, PROVENANCE
from nse_plugin.evaluation.settings import percentages
from nse_plugin.export.factors import Fit
from nse_plugin.files import read_json, write_text, write_whole
from nse_plugin.printable import counted
from nse_plugin.runs.facts import Fact, facts_of
from nse_plugin.runs.reading import RunFiles
from nse_plugin.session.records import were_undone
from nse_plugin.session.session import EditSession
from nse_plugin.table import Table
from nse_plugin.version import __version__

CARD = "README.md"
_MOST = 100
"""Facts that the card lists."""
_NOT_IN_MODEL = ("undone", "not written", "replaced")
"""Outcomes of requests that are not in the exported model."""
_WHOLE = ", with the whole change"
_LICENCES = {"Apache 2.0": "apache-2.0", "Gemma Terms of Use": "gemma", "MIT": "mit"}
"""Identifiers of the model hub, by the beginning of a licence's name."""
_WHAT = {
    "peft": "A LoRA adapter that changes facts in the base model.",
    "delta": "The changed matrices of the base model, and their change.",
    "full": "The base model with changed facts.",
}
_LOAD = {
    "peft": """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = BASE
tokenizer = AutoTokenizer.from_pretrained(base)
untouched = AutoModelForCausalLM.from_pretrained(base, dtype="DTYPE")
model = PeftModel.from_pretrained(untouched, "this-folder")""",
    "delta": """from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

base = BASE
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base, dtype="DTYPE")
model.load_state_dict(load_file("this-folder/weights.safetensors"), strict=False)""",
    "full": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("this-folder", dtype="auto")
tokenizer = AutoTokenizer.from_pretrained("this-folder")""",
}
_UNDO = {
    "peft": "Switch the adapter off (`with model.disable_adapter():`), or load the base model "
    "without it.",
    "delta": "Load the base model again: the folder holds edited matrices only.",
    "full": "The edits cannot be told from the rest of this model; load the base model instead.",
}


def metadata_of(session: EditSession) -> dict[str, str]:
    """The metadata of an export's safetensors files."""
    return {
        "format": "pt",
        "made_by": f"nse_plugin {__version__}",
        "base_model": base_name(session),
        "methods": methods_of(session),
        "rounds": str(len(session.ledger)),
        "edits": str(session.ledger.edits()),
    }


def methods_of(session: EditSession) -> str:
    """Names of the methods of the active rounds."""
    return ", ".join(sorted({entry.method for entry in session.ledger.active()}))


def add_metadata(path: Path, session: EditSession) -> None:
    """Add :func:`metadata_of` the session to a safetensors file."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        header["__metadata__"] = {**header.get("__metadata__", {}), **metadata_of(session)}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8

        def write(temporary: Path) -> None:
            with temporary.open("wb") as copy:
                copy.write(len(text).to_bytes(8, "little") + text)
                shutil.copyfileobj(file, copy, 1 << 20)

        write_whole(path, write)


def write_card(
    folder: Path,
    session: EditSession,
    kind: str,
    files: RunFiles | None = None,
    fits: Mapping[int, Fit] | None = None,
    of_rank: str = "",
) -> None:
    """Write the card of an export.

    Args:
        files: the session's run, which has the facts and the scores.
        fits: by layer, the rank and the error of an adapter.
        of_rank: what was measured with an adapter that holds a part of the change only.
    """
    in_part = any(fit.rank < fit.full_rank for fit in (fits or {}).values())
    base = base_name(session)
    rounds = len(session.ledger)
    facts = facts_of(files) if files is not None else None
    in_model = [fact for fact in facts or () if fact.outcome not in _NOT_IN_MODEL]
    edited = (
        counted(session.ledger.edits(), "edit") if facts is None  # a fact may have several
        else counted(len(in_model), "edited fact")
    )  # fmt: skip
    parts = [
        _front_matter(session, kind),
        f"# {base} with {edited}\n",
        f"{_WHAT[kind]} It was edited with {methods_of(session)} in "
        f"{counted(rounds, 'round')} by nse_plugin {__version__}. "
        "Prompts unlike those below, and answers that follow from the facts, may be the old ones.",
    ]
    if files is not None:
        if "chat" in files.manifest["run"]:
            parts.append("The prompts were edited in the model's chat template: ask them in chat.")
        replaced = sum(fact.outcome == "replaced" for fact in facts or ())
        parts += [_facts(in_model, replaced, in_part), _scores(files, in_part, of_rank)]
    dtype = str(session.model.dtype).removeprefix("torch.")
    code = _LOAD[kind].replace("BASE", _place(session)).replace("DTYPE", dtype)
    parts.append(f"## Load it\n\n```python\n{code}\n```")
    if fits:
        parts.append(_ranks(fits.values()))
    parts.append(f"## Undo\n\n{_UNDO[kind]} Single rounds are undone in the folder of edits that "
                 "this was exported from (`nse undo FOLDER --round N`).")  # fmt: skip
    if files is not None:
        parts.append(_settings(files, base))
    parts.append(f"## Licence\n\nThat of the base model: {licence_of(session)}.")
    write_text(folder / CARD, "\n\n".join(parts) + "\n")


def _front_matter(session: EditSession, kind: str) -> str:
    """The head that the model hub reads."""
    licence = licence_of(session)
    head = {
        "base_model": base_name(session),
        "license": next((i for n, i in _LICENCES.items() if licence.startswith(n)), "other"),
        "library_name": "peft" if kind == "peft" else "transformers",
        "tags": ["knowledge-editing", "nse_plugin"],
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n"


def _settings(files: RunFiles, base: str) -> str:
    """The hyperparameters of the run."""
    settings = {name: value for name, value in files.hparams.items() if value is not None}
    settings["model_name"] = base
    if "chat" in files.manifest["run"]:  # this key is of EasyEdit's evaluation
        settings.pop("use_chat_template", None)
    text = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=96)
    return f"## Method and settings\n\n```yaml\n{text}```"


def base_name(session: EditSession) -> str:
    """The base model's name: its hub id or short name, or the last part of its path."""
    name = session.layout.loaded_from
    for model in MODELS.values():
        if Path(name).name == model.folder:
            return model.name
    return Path(name).name if Path(name).exists() else name or session.layout.model_type


def _place(session: EditSession) -> str:
    """The place of the base model, as code and without paths of this machine."""
    name = base_name(session)
    if name in MODELS:
        return f'"path/to/{MODELS[name].folder}"  # printed by: nse models get {name}'
    local = Path(session.layout.loaded_from).exists()
    return f'"path/to/{name}"' if local else f'"{name}"'


def licence_of(session: EditSession) -> str:
    """The licence of the base model, if its folder or the table of models has it."""
    published = MODELS.get(base_name(session))
    if published is not None:
        return published.licence
    provenance = Path(session.layout.loaded_from) / PROVENANCE
    found = read_json(provenance).get("licence") if provenance.is_file() else None
    return str(found or "not known here; see the base model")


def _ranks(fits: Iterable[Fit]) -> str:
    """The table of the layers of an adapter."""
    table = Table.of_numbers(
        "",
        ("layer", "rank", "rank of the whole change", "relative error"),
        ((str(f.layer), str(f.rank), str(f.full_rank), f"{f.relative_error:.1e}") for f in fits),
        names=0,
    )
    return table.markdown()


def _facts(rows: list[Fact], replaced: int, in_part: bool) -> str:
    """The table of the edited facts.

    Args:
        replaced: the number of earlier edits of these facts.
        in_part: the export holds a part of the change only.
    """
    cells = ((fact.prompt, fact.old or "not known", fact.new, fact.state) for fact in rows[:_MOST])
    table = Table(
        "Edited facts",
        ("prompt", "old answer", "new answer", f"at the end{_WHOLE if in_part else ''}"),
        tuple(tuple(" ".join(cell.split()) for cell in row) for row in cells),
        note=f"and {len(rows) - _MOST} more" if len(rows) > _MOST else "",
    )
    text = f"## {table.caption}\n\n{table.markdown()}"
    if replaced:
        text += (
            "\n\nEach fact is listed once, with its last edit. Left out: "
            f"{counted(replaced, 'earlier edit')} of these facts."
        )
    return text


def _scores(files: RunFiles, in_part: bool, of_rank: str) -> str:
    final = files.final
    measured: Mapping[str, Any] = (final["measurement"] if final else None) or {}
    shown = [f"{name} {share}" for name, share in percentages(measured.get("all")).items()]
    if measured.get("perplexity") is not None:
        shown.append(f"perplexity {measured['perplexity']:.2f}")
    text = ", ".join(shown) or "not measured"
    tested = measured.get("tested", 0)
    if since := files.undone_since(tested):
        text += f" (measured before {were_undone(since)})"
    consolidated = files.consolidated()
    if consolidated is not None and consolidated["after"] >= tested:
        text += " (measured before the edits were consolidated)"
    text = f"After the last round, over all edits in effect{_WHOLE if in_part else ''}: {text}."
    if in_part:
        text = f"**This adapter holds a part of the change**, see the ranks below. {text}"
        text += f" {of_rank[:1].upper()}{of_rank[1:]}." if of_rank else ""
    return f"## Scores\n\n{text}"
