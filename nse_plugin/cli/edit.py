"""``nse edit``: change one fact, or a few, and show the answers before and after."""

from __future__ import annotations

import functools
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from nse_plugin.cli.app import EDIT, command
from nse_plugin.cli.options import AS_JSON, examples
from nse_plugin.cli.output import interrupt_says, note, show_result, working
from nse_plugin.errors import RequestError
from nse_plugin.printable import shortened
from nse_plugin.runs.schema import MANIFEST

NOT_IN_EFFECT = 3
_fact = functools.partial(typer.Option, rich_help_panel="The fact")
_how = functools.partial(typer.Option, rich_help_panel="How it is edited")


@command(
    EDIT,
    examples(
        "nse edit --model smollm2-135m --prompt '{The Eiffel Tower} is located in the city of' "
        "--target Rome --out my-edits",
        "nse edit --facts facts.yaml --out my-edits",
    ),
)
def edit(
    out: Annotated[
        Path, typer.Option(help="Folder of the edits; each call adds a round to it.")
    ] = Path("my-edits"),
    model: Annotated[
        str | None, _how(help="Short name, folder or hub id; only needed to begin a folder.")
    ] = None,
    prompt: Annotated[
        str | None, _fact(help="Text before the answer, its subject in braces.")
    ] = None,
    target: Annotated[str | None, _fact(help="The new answer.")] = None,
    subject: Annotated[
        str | None, _fact(help="The subject, if the prompt has {} in its place.")
    ] = None,
    paraphrase: Annotated[
        list[str] | None,
        _fact(help="Another text with the same answer; can be repeated. Some are made by default."),
    ] = None,
    neighbour: Annotated[
        list[str] | None,
        _fact(
            help="A text whose answer must not change; can be repeated. Two are found by default "
            "for a subject of the built-in facts."
        ),
    ] = None,
    facts: Annotated[
        Path | None,
        _fact(
            help="Instead of one fact, a YAML, CSV or JSON file with prompt, subject and target "
            "of each."
        ),
    ] = None,
    method: Annotated[str | None, _how(help="NSE by default; MEMIT, NSE:stable ...")] = None,
    hparams: Annotated[
        str | None,
        _how(help="Name or path of a YAML, instead of the one that ships for method and model."),
    ] = None,
    chat: Annotated[
        bool,
        _how(
            "--chat",
            help="Edit so that replies in chat begin with the answer (not recommended for facts, "
            "see docs/scores.md); only to begin a folder.",
        ),
    ] = False,
    device: Annotated[str | None, _how(help="cpu, or the number of a GPU.")] = None,
    stats_dir: Annotated[
        str | None,
        _how(
            help="Folder of the statistics; by default ./data/stats if it is there, else one in "
            "the cache."
        ),
    ] = None,
    as_json: AS_JSON = False,
) -> int:
    """Change a fact in a model, and show the model's answers before and after.

    The edits are kept in a folder: nse ask and nse chat ask the edited model, nse undo undoes a
    round, nse export writes the edits for other tools. The exit code is 3 if the edit is not in
    effect afterwards.
    """
    records = _records(facts, prompt, target, subject, paraphrase)
    with interrupt_says(lambda: _as_it_was(out)), working() as listener:
        from nse_plugin.runs.edits import EditFolder

        folder = EditFolder(
            out, model, method=method, hparams=hparams, chat=chat, device=device,
            stats_dir=stats_dir, listener=listener,
        )  # fmt: skip
        report = folder.edit_facts(
            records, neighbour or (), facts.name if facts is not None else "the fact"
        )
    show_result(report.to_dict() if as_json else report.text())
    if report.in_effect:
        question, folder_name = report.facts[0].prompt, quote(str(out))
        short = shortened(question) == question
        ask = f"nse ask {folder_name} {quote(question)}, or " if short else ""
        note(f"next: {ask}nse chat {folder_name}")
    return 0 if report.in_effect else NOT_IN_EFFECT


def _records(
    facts: Path | None,
    prompt: str | None,
    target: str | None,
    subject: str | None,
    paraphrases: list[str] | None,
) -> list[dict[str, Any]]:
    """The facts to edit, checked before a model is loaded."""
    from nse_plugin.data.facts import fact, parse_facts, read_facts

    one = {
        "--prompt": prompt,
        "--target": target,
        "--subject": subject,
        "--paraphrase": paraphrases,
    }
    if facts is not None:
        given = [name for name, value in one.items() if value]
        if given:
            raise RequestError(f"--facts and {', '.join(given)} were given; give one of them")
        return read_facts(facts)
    if prompt is None or target is None:
        missing = "--prompt" if prompt is None else "--target"
        raise RequestError(
            f"{missing} is missing; give --prompt and --target for one fact, or --facts FILE"
        )
    record = fact(prompt, target, subject, rephrase_prompts=paraphrases or None)
    parse_facts([record], warn=False)
    return [record]


def _as_it_was(out: Path) -> str:
    if not (out / MANIFEST).is_file():
        return "nothing was written; the same command begins again"
    return f"{out} is as it was before; the same command makes the edit"
