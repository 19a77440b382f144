"""``nse ask``: one question to the edited model, and to the untouched one."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from nse_plugin.cli.app import LOOK, command
from nse_plugin.cli.options import AS_JSON, DEVICE, FOLDER, examples
from nse_plugin.cli.output import note, show_result, working
from nse_plugin.errors import RequestError

if TYPE_CHECKING:
    from nse_plugin.requests import EditRequest


@command(
    LOOK,
    examples(
        'nse ask my-edits "Where is the Eiffel Tower?"',
        'nse ask my-edits --plain "The Eiffel Tower is located in the city of"',
    ),
)
def ask(
    folder: FOLDER,
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="A question, or a text to continue.")
    ],
    plain: Annotated[
        bool, typer.Option("--plain", help="Continue the text without the model's chat template.")
    ] = False,
    tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 40,
    device: DEVICE = None,
    as_json: AS_JSON = False,
) -> int:
    """Ask the edited model and the untouched one, side by side.

    The question goes through the model's chat template if it has one.
    """
    from nse_plugin.runs.reading import RunFiles

    RunFiles(folder)  # an error for a folder without edits
    if not question.strip():
        raise RequestError(f"QUESTION is {question!r}; give a question, or a text to continue")
    with working() as listener:
        from nse_plugin.model.chat import ChatTokenizer
        from nse_plugin.runs.edits import EditFolder

        edits = EditFolder(folder, device=device, listener=listener)
        listener("phase", {"name": "answering"})
        reply = edits.ask(question, max_new_tokens=tokens, plain=plain)
    show_result(asdict(reply) if as_json else str(reply))
    missed = edits.missed(question, reply.edited)
    made_in_chat = isinstance(edits.session.tokenizer, ChatTokenizer)
    asked_in_chat = edits.tokenizer.chat_template and not (plain or made_in_chat)
    for request in missed:
        note(not_shown(request))
    if missed:
        note(
            f"next: ask with its prompt{' and --plain' if asked_in_chat else ''}, or edit the fact "
            "again, with the beginning of the answer that you expect as its prompt"
        )
    return 0


def not_shown(request: EditRequest) -> str:
    """The note that an answer about an edit's subject does not contain the target."""
    return (
        f"the edit {request.text!r} -> {request.target_new!r} does not show in this answer: the "
        "question may be about something else, or too unlike the edit's prompt"
    )
