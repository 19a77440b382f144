"""``nse chat``: talk with the edited model, and edit it and undo edits meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from nse_plugin.cli.app import LOOK, command
from nse_plugin.cli.ask import not_shown
from nse_plugin.cli.options import DEVICE, FOLDER, examples
from nse_plugin.cli.output import complain, note, reason, show, show_result, working
from nse_plugin.errors import NSEPluginError, RequestError, did_you_mean
from nse_plugin.printable import counted, shortened

if TYPE_CHECKING:
    from nse_plugin.runs.edits import EditFolder

ARROW = "=>"
_HELP = f"""\
type a text, and the edited model answers it
/original          what the untouched model answers to the last text
/edit P {ARROW} T       change a fact: P has its subject in braces, T is the new answer, as in
                   /edit {{The Eiffel Tower}} is located in the city of {ARROW} Rome
/facts             the facts edited so far, by round
/undo [N]          undo the last round, or round N
/blame             the rounds with the largest effect on the answer to the last text
/plain             switch the chat template off, or on again
/new               forget the conversation so far
/help              this list
/quit              end, as do /exit and /q"""
_ENDS = ("/quit", "/exit", "/q")


@command(LOOK, examples("nse chat my-edits", "nse chat my-edits --plain"))
def chat(
    folder: FOLDER,
    plain: Annotated[
        bool, typer.Option("--plain", help="Continue texts without the model's chat template.")
    ] = False,
    tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 60,
    device: DEVICE = None,
) -> int:
    """Talk with the edited model, with commands such as /edit, /undo, /blame and /original.

    Edits and undos made here are written to the folder at once.
    """
    from nse_plugin.runs.reading import RunFiles

    RunFiles(folder)  # an error for a folder without edits
    with suppress(ImportError):  # it gives the prompt a history; Windows has none
        import readline  # noqa: F401
    with working() as listener:
        from nse_plugin.runs.edits import EditFolder

        edits = EditFolder(folder, device=device, listener=listener)
    rounds = counted(len(edits.session.ledger), "round")
    show(f"{edits.model_name} with {rounds} of edits; /help for commands, /quit to end")
    Chat(edits, tokens, plain or not edits.tokenizer.chat_template).loop()
    return 0


class Chat:
    """A conversation with the model of a folder of edits."""

    def __init__(self, edits: EditFolder, tokens: int, plain: bool) -> None:
        self._edits, self._tokens, self._plain = edits, tokens, plain
        self._turns: list[dict[str, str]] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "/original": self._original, "/edit": self._edit, "/facts": self._facts,
            "/undo": self._undo, "/blame": self._blame, "/plain": self._switch,
            "/new": self._forget, "/help": lambda _rest: show(_HELP),
        }  # fmt: skip

    def loop(self) -> None:
        """Read and answer until /quit or the end of the input; errors are shown."""
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                show()
                return
            if line.partition(" ")[0] in _ENDS:
                return
            try:
                self.take(line)
            except BrokenPipeError:
                raise
            except (NSEPluginError, OSError) as error:  # a full disk, say
                complain(reason(error))

    def take(self, line: str) -> None:
        """Answer a text, or execute a command."""
        if not line:
            return
        if not line.startswith("/"):
            self._say(line)
            return
        name, _, rest = line.partition(" ")
        if name not in self._commands:
            near = did_you_mean(name, (*self._commands, *_ENDS))
            raise RequestError(f"there is no {name}{near}; /help names what there is")
        self._commands[name](rest.strip())

    def _say(self, line: str) -> None:
        turns = [] if self._plain else self._turns
        turns = [*turns, {"role": "user", "content": line}]
        reply = self._edits.ask(
            turns, max_new_tokens=self._tokens, plain=self._plain, untouched=False
        )
        self._turns = [*turns, {"role": "assistant", "content": reply.edited}]
        show(reply.edited)
        for request in self._edits.missed(line, reply.edited):
            later = "; /new begins a new conversation" if len(turns) > 1 else ""
            note(not_shown(request) + later)

    def _asked(self) -> list[dict[str, str]]:
        """The conversation up to the last question."""
        if not self._turns:
            raise RequestError("nothing was asked yet; type a text first")
        return self._turns[:-1]

    def _original(self, _rest: str) -> None:
        reply = self._edits.ask(self._asked(), max_new_tokens=self._tokens, plain=self._plain)
        show(f"untouched: {reply.untouched}")

    def _edit(self, rest: str) -> None:
        prompt, arrow, target = rest.partition(ARROW)
        if not arrow:
            raise RequestError(f"give the new answer after {ARROW}; /help has an example")
        with working() as listener:
            self._edits.listener = listener
            report = self._edits.edit(prompt.strip(), target.strip())
        show_result(report.text())

    def _facts(self, _rest: str) -> None:
        for number, requests in self._edits.facts().items():
            for request in requests:
                show(f"round {number}: {request.text} -> {request.target_new}")

    def _undo(self, rest: str) -> None:
        from nse_plugin.session.records import active_rounds

        try:
            number = int(rest) if rest else None
        except ValueError:
            raise RequestError(
                f"round is {shortened(rest)!r}; give the number of a round, or none"
            ) from None
        active = self._edits.undo(number, "in chat")
        show(f"undone; {active_rounds(active)}")

    def _blame(self, _rest: str) -> None:
        found = self._edits.blame(self._asked(), plain=self._plain)
        if not len(found):
            show("no round is active")
        for row in found.head(5).itertuples():
            instead = f" instead of {row.top!r}" if row.top != row.top_without else ", too"
            show(
                f"round {row.round}: without it the next token is {row.top_without!r}{instead} "
                f"(divergence {row.kl:.3g} nats)"
            )

    def _switch(self, _rest: str) -> None:
        if self._plain and not self._edits.tokenizer.chat_template:
            raise RequestError("this model has no chat template; texts are continued as they are")
        self._plain = not self._plain
        self._turns = []
        show("texts are continued as they are" if self._plain else "the chat template is used")

    def _forget(self, _rest: str) -> None:
        self._turns = []
        show("a new conversation begins")
