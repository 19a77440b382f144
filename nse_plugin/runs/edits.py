"""A folder of edits: a run directory to which each edit adds a round.

``nse edit``, ``nse ask`` and ``nse chat`` use it, and it is the shortest way to edit in Python::

    edits = EditFolder("my-edits", model="smollm2-135m")
    report = edits.edit("{The Eiffel Tower} is located in the city of", "Rome")
    print(report.text())
    print(edits.ask("Where is the Eiffel Tower?").edited)
    edits.undo()

The folder holds the files that ``nse run`` writes, so inspect, undo and export can read it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nse_plugin.data.facts import fact, parse_facts, refuse_empty
from nse_plugin.data.models import load_model
from nse_plugin.errors import DataError, RequestError
from nse_plugin.evaluation.protocol import Protocol
from nse_plugin.model.chat import ChatTokenizer
from nse_plugin.model.conversation import Turn, rendered, reply
from nse_plugin.model.prompts import encode_request
from nse_plugin.requests import EditRequest, check_round
from nse_plugin.runs.backends import SessionBackend
from nse_plugin.runs.consolidate import consolidate_run
from nse_plugin.runs.directory import run_directory
from nse_plugin.runs.edit_report import EditReport, shows
from nse_plugin.runs.edit_round import EditRound
from nse_plugin.runs.edit_settings import edit_hparams
from nse_plugin.runs.listeners import Listener
from nse_plugin.runs.reading import RunFiles
from nse_plugin.runs.reopen import session_of
from nse_plugin.runs.schema import MANIFEST, Consolidation
from nse_plugin.runs.undo import undo_round
from nse_plugin.session.session import EditSession

if TYPE_CHECKING:
    from pandas import DataFrame

_PROTOCOL = Protocol(
    every=1, paraphrases=8, portability=0, locality=8, generation=0, fluency=0, perplexity=0,
    key_space=0, each=True,
)  # fmt: skip


@dataclass(frozen=True)
class Reply:
    """One question, answered by the edited model and by the untouched one."""

    question: str
    edited: str
    untouched: str | None
    """None if only the edited model was asked."""

    def __str__(self) -> str:
        """The answers, a line each."""
        untouched = "" if self.untouched is None else f"\nuntouched: {self.untouched}"
        return f"edited:    {self.edited}{untouched}"


class EditFolder:
    """A model with the edits of a folder in it; the folder need not exist yet.

    Args:
        model: as in a method's YAML: a short name, a folder, a hub id.  Only for a new folder.
        method: NSE by default, with the YAML that ships for the model.  Only for a new folder.
        hparams: name or path of a YAML instead.  Only for a new folder.
        chat: edit in the model's chat template, so that replies begin with the answer.  Edits in
            plain text show in chat too, within sentences.  Only for a new folder.
        device: instead of the device that the folder was started on.
        stats_dir: folder of the covariance statistics; by default ``./data/stats`` if it is there,
            else one in the cache.
        listener: called at each phase of the work.

    Raises:
        DataError: the folder holds something else, or was started with other settings.
        HparamsError: there is no YAML for the model, or a setting is wrong.
        ModelError: the model cannot be loaded.
    """

    def __init__(
        self,
        folder: str | Path,
        model: str | None = None,
        *,
        method: str | None = None,
        hparams: str | Path | None = None,
        chat: bool = False,
        device: int | str | None = None,
        stats_dir: str | None = None,
        listener: Listener = lambda _event, _facts: None,
    ) -> None:
        self.folder, self.listener = Path(folder), listener
        files = RunFiles(self.folder) if (self.folder / MANIFEST).is_file() else None
        self.hparams = edit_hparams(
            self.folder, files, model, method, hparams, chat, device=device, stats_dir=stats_dir
        )
        if files is None:
            with run_directory(self.folder):  # an error now, not after the model is loaded
                pass
        listener("phase", {"name": "loading the model"})
        self.model, self.tokenizer, self.model_name = load_model(self.hparams)
        if files is None:
            tokenizer = ChatTokenizer(self.tokenizer) if chat else self.tokenizer
            self.session, self._protocol = EditSession.of(self.model, tokenizer), _PROTOCOL
        else:
            self.session = session_of(files, self.model, self.tokenizer)
            self._protocol = replace(  # the answers on disk are those of its bounds
                Protocol.from_dict(files.manifest["run"]["protocol"]),
                each=True, generation=0, fluency=0, perplexity=0, ability=0, harness_tasks=(),
            )  # fmt: skip
        self._backend = SessionBackend(self.session, self.hparams)

    def edit(
        self,
        prompt: str,
        target: str,
        subject: str | None = None,
        *,
        paraphrases: Sequence[str] = (),
        neighbours: Sequence[str] = (),
    ) -> EditReport:
        """Change one fact, as a round of the folder.

        Args:
            prompt: with the subject in braces: ``{The Eiffel Tower} is located in the city of``.
            target: the new answer.
            subject: needed if the prompt has ``{}`` in its place.
            paraphrases: other texts with the same answer; some are made by default.
            neighbours: texts whose answers must not change; some are found by default
                for a subject that the built-in facts know.

        Raises:
            RequestError: a text is missing, or the subject is not in the prompt.
            DataError, NotFiniteError: as :meth:`edit_facts`.
        """
        self._check_texts("paraphrases", paraphrases, self._protocol.paraphrases)
        record = fact(prompt, target, subject, rephrase_prompts=list(paraphrases) or None)
        return self.edit_facts([record], neighbours)

    def edit_facts(
        self,
        facts: Sequence[EditRequest | Mapping[str, Any]],
        neighbours: Sequence[str] = (),
        source: str = "the list",
    ) -> EditReport:
        """Change some facts together, as one round of the folder, which is written whole or not at
        all.

        Args:
            facts: requests, or records as :func:`nse_plugin.data.facts.parse_facts` reads them.
            neighbours: texts whose answers must not change.
            source: what messages call the facts, e.g. the name of their file.

        Raises:
            RequestError: a fact cannot be used, or two contradict each other.
            DataError: the folder is in use, was changed by another process, or cannot be written.
            NotFiniteError: the edit led to NaN or infinity.
        """
        self._check_texts("neighbours", neighbours, self._protocol.locality)
        if not _is_list_of(facts, (EditRequest, Mapping)):
            raise RequestError(
                f"facts is {facts!r}; give a list of requests or records, each with prompt, "
                "subject and target"
            )
        with run_directory(self.folder, resumes=False) as directory:
            self._refuse_changed()
            first = 1 + sum(line["edits"] for line in directory.rounds())
            records = [f.to_dict() if isinstance(f, EditRequest) else f for f in facts]
            requests = parse_facts(records, first, source)
            check_round(requests)
            longest = self.session.layout.max_positions
            for request in requests:
                encode_request(
                    self.session.tokenizer, request, with_target=True, max_positions=longest
                )
            one = EditRound(directory, self._backend, self._protocol, self.listener)
            return one.write(requests, neighbours)

    def undo(self, number: int | None = None, reason: str = "") -> list[int]:
        """Undo a round, by default the last one; returns the numbers of the active rounds.

        Raises:
            DataError: there is no such round, it was undone already, or cannot be undone alone.
            SessionError: the weights were changed outside the session; nothing is undone.
        """
        if number is not None and type(number) is not int:
            raise DataError(f"number is {number!r}; give the number of a round, or none")
        self._refuse_changed()
        self.session.check()  # before the folder is changed
        active = self.session.ledger.numbers()
        if not active:
            raise DataError(f"no round of {self.folder} is active, so there is nothing to undo")
        number = active[-1] if number is None else number
        left = undo_round(self.folder, number, reason)
        self.session.undo(number, reason)
        return left

    def consolidate(
        self, repair_rounds: int | None = None, *, without: Collection[int] = ()
    ) -> Consolidation:
        """Solve all edits in effect jointly, as one round in place of the active ones.

        Args:
            repair_rounds: how often edits not in effect afterwards are repaired; by default the
                number in the folder's hyperparameters.
            without: numbers of rounds in effect, also inside a consolidation, whose edits are left
                out.

        Raises:
            HparamsError, SessionError: as :func:`nse_plugin.methods.consolidate.consolidate`.
            DataError: the folder is in use, was changed by another process, or cannot be written.
        """
        with run_directory(self.folder, resumes=False):
            self._refuse_changed()
            self._backend.prepare(RunFiles(self.folder).manifest["contexts"])
            self.listener("phase", {"name": "consolidating"})
            return consolidate_run(self.folder, self._backend, repair_rounds, without)

    def ask(
        self,
        question: str | Sequence[Turn],
        *,
        max_new_tokens: int = 40,
        plain: bool = False,
        untouched: bool = True,
    ) -> Reply:
        """The answers of the edited and of the untouched model.

        Args:
            question: a text, or the turns of a conversation.
            plain: continue the text without the model's chat template.
            untouched: ask the untouched model too.

        Raises:
            RequestError: the question has no tokens, or is longer than the model's context.
        """
        if type(max_new_tokens) is not int or max_new_tokens < 1:
            raise RequestError(f"max_new_tokens is {max_new_tokens!r}; give a number of at least 1")
        asked, text, tokenizer = self._asked(question, plain)
        edited = reply(self.model, tokenizer, text, max_new_tokens)
        original = None
        if untouched:
            with self.session.rewound():
                original = reply(self.model, tokenizer, text, max_new_tokens)
        return Reply(asked, edited, original)

    def missed(self, question: str, answer: str) -> list[EditRequest]:
        """The facts about a subject in the question whose new answer is not in the answer."""
        for name, text in (("question", question), ("answer", answer)):
            if not isinstance(text, str):
                raise RequestError(f"{name} is {text!r}; give a text")
        asked = question.casefold()
        latest = {request.fact: request for found in self.facts().values() for request in found}
        return [
            request
            for request in latest.values()
            if request.subject.casefold() in asked and not shows(answer, request)
        ]

    def blame(self, question: str | Sequence[Turn], *, plain: bool = False) -> DataFrame:
        """The rounds with the largest effect on an answer: :meth:`EditSession.blame`."""
        _, text, tokenizer = self._asked(question, plain)
        return self.session.blame(text, tokenizer)

    def facts(self) -> dict[int, list[EditRequest]]:
        """The facts of the active rounds, by the number of the round's file."""
        if not (self.folder / MANIFEST).is_file():
            return {}
        return RunFiles(self.folder).requests_of(self.session.ledger.numbers_in_effect())

    def _asked(self, question: str | Sequence[Turn], plain: bool) -> tuple[str, str, Any]:
        """The question, the text that the model continues, and the tokenizer for it."""
        turns = [{"role": "user", "content": question}] if isinstance(question, str) else question
        if not _is_list_of(turns, Mapping) or not all(
            isinstance(t.get("content"), str) for t in turns
        ):
            raise RequestError(
                f"question is {question!r}; give a text, or a list of turns such as "
                "{'role': 'user', 'content': 'Where is it?'}"
            )
        last = turns[-1]["content"]
        if plain:
            return last, last, self.tokenizer
        return last, *rendered(self.session.tokenizer, turns)

    def _check_texts(self, name: str, given: Sequence[str], most: int) -> None:
        """Raise :class:`RequestError` if one is empty, or there are more than the folder asks."""
        refuse_empty(name, given)
        if len(given) > most:
            raise RequestError(
                f"{len(given)} {name} are given, and {self.folder} asks {most} of an edit at most; "
                "give fewer"
            )

    def _refuse_changed(self) -> None:
        """Raise :class:`DataError` if another process added or undid rounds meanwhile."""
        begun = (self.folder / MANIFEST).is_file()
        there = RunFiles(self.folder).ledger.numbers() if begun else []
        here = self.session.ledger.numbers()
        if there != here:
            raise DataError(
                f"{self.folder} was changed by another process: rounds {there} are active on disk "
                f"and {here} in this model; open it again"
            )


def _is_list_of(given: Any, kinds: type | tuple[type, ...]) -> bool:
    """Whether it is a sequence of these types only, and not empty."""
    listed = isinstance(given, Sequence) and not isinstance(given, (str, bytes))
    return listed and bool(given) and all(isinstance(each, kinds) for each in given)
