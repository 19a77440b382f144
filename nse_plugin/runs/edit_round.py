"""One round of a folder of edits: ask before, write, ask after, store."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

from nse_plugin.errors import DataError, ModelError, NotFiniteError, RequestError
from nse_plugin.evaluation.metrics import Answered, ask, asked_texts
from nse_plugin.evaluation.model_state import first_words
from nse_plugin.evaluation.neighbours import with_questions
from nse_plugin.evaluation.protocol import (
    History,
    MeasuredModel,
    measure_all,
    measure_answers,
    measure_round,
)
from nse_plugin.evaluation.settings import Protocol
from nse_plugin.model.chat import ChatTokenizer
from nse_plugin.requests import EditRequest
from nse_plugin.runs.backends import SessionBackend
from nse_plugin.runs.budget import estimate
from nse_plugin.runs.directory import RunDirectory, new_line, new_manifest
from nse_plugin.runs.edit_report import (
    FULL,
    Asked,
    Cost,
    Earlier,
    EditedFact,
    EditReport,
    Kind,
    about_subject,
    shows,
)
from nse_plugin.runs.frozen import FrozenAnswers
from nse_plugin.runs.identity import run_identity
from nse_plugin.runs.listeners import Listener
from nse_plugin.runs.reading import read_manifest
from nse_plugin.runs.schema import (
    BY_HAND,
    FROZEN,
    ROUNDS,
    Manifest,
    Measurement,
    RoundLine,
)
from nse_plugin.runs.stopping import StopRules, status_of
from nse_plugin.session.ledger_files import round_path

log = logging.getLogger(__name__)

_EDITS = 100
"""Edits for which there must be memory when a folder begins; few folders by hand have more."""


class EditRound:
    """Writes the next round of a folder: all of it or nothing, in the model and on disk.

    Args:
        directory: the folder, open for writing.
        backend: the folder's method and model, with the active rounds.
        listener: called at each phase.
    """

    def __init__(
        self,
        directory: RunDirectory,
        backend: SessionBackend,
        protocol: Protocol,
        listener: Listener,
    ) -> None:
        self._directory, self._backend, self._protocol = directory, backend, protocol
        self._prompts_alone = replace(  # of earlier edits, which may be hundreds
            protocol, paraphrases=0, portability=0, locality=0,
            negation=False, distractor=False, reversal=False, translation=False,
        )  # fmt: skip
        self._session, self._model = backend.session, backend.model
        self._tokenizer, self._listener = backend.tokenizer, listener
        self._lines = directory.rounds()
        self._frozen = FrozenAnswers(directory.frozen())
        self._number = len(self._lines) + 1
        self._history = History(self._frozen.read)
        self._drop_unfinished()

    def write(self, requests: Sequence[EditRequest], neighbours: Sequence[str]) -> EditReport:
        """Write the round and store it.

        Args:
            neighbours: texts whose answers must not change.

        Raises:
            NotFiniteError: the edit led to NaN or infinity.
        """
        started = time.perf_counter()
        edited = self._read_history()
        requests, answered, manifest = self._freeze(requests, neighbours, edited)
        before = self._said(requests)
        known = answered  # by the untouched model
        if len(self._session.ledger):
            known = ask(self._model, self._tokenizer, requests, self._prompts_alone)
        self._tell("computing statistics")
        self._backend.compute_statistics()
        active = self._session.ledger.numbers()
        try:
            self._frozen.append(self._number, requests, answered)
            line, now, answers = self._edit(requests)
            after = self._said(requests)
            line["seconds"]["total"] = time.perf_counter() - started
            path = self._save(line, answers, manifest)
        except BaseException:
            self._take_back(active, begun=manifest is not None)
            raise
        facts = _facts(requests, answered, before, after, known, now)
        cost = _cost(line, path.stat().st_size)
        number = cast(int, line["file"])
        past_sinks = (line["edit"] or {}).get("past_sinks", 0)
        return EditReport(
            str(self._directory.path), number, facts, self._earlier(line), cost, past_sinks
        )

    def _drop_unfinished(self) -> None:
        """Remove the leftovers of a process that was killed between two writes.

        Raises:
            DataError: a log has lost lines.
        """
        self._directory.round_files(self._lines)
        if len(self._frozen) - len(self._lines) not in (0, 1):
            raise DataError(
                f"{self._directory.path / ROUNDS} has {len(self._lines)} lines, and {FROZEN} has "
                f"{len(self._frozen)}; restore the shorter from a copy, or give another folder"
            )
        if len(self._frozen) > len(self._lines):
            self._frozen.keep(len(self._lines))

    def _take_back(self, active: Sequence[int], begun: bool) -> None:
        """Restore model and folder to their state before the round.

        Args:
            active: the numbers of the active rounds then.
            begun: the folder begins with this round.
        """
        folder = self._directory.path
        if (numbers := self._session.ledger.numbers()) != active:
            self._session.drop_last()
            round_path(folder, numbers[-1]).unlink(missing_ok=True)
        for log_of_rounds in (self._lines, self._frozen):
            if len(log_of_rounds) >= self._number:
                log_of_rounds.keep(self._number - 1)
        if begun:
            self._directory.discard()

    def _read_history(self) -> list[str]:
        """Read the active rounds into the history; returns the subjects of their facts."""
        active = set(self._session.ledger.numbers_in_effect())
        subjects = []
        for line in self._lines:
            if line["file"] in active:
                requests = self._frozen.read(line["round"])[0]
                self._history.add(line["round"], requests)
                subjects += [request.subject for request in requests]
        return subjects

    def _freeze(
        self, requests: Sequence[EditRequest], neighbours: Sequence[str], edited: Sequence[str]
    ) -> tuple[list[EditRequest], list[Answered], Manifest | None]:
        """The requests with their questions, the untouched model's answers, and the manifest if the
        folder is new."""
        self._tell("untouched model")
        kept = read_manifest(self._directory.path)
        hparams, n = self._backend.hparams, len(requests)
        budget = None if kept else estimate(self._model, hparams, n, max(n, _EDITS))
        if budget is not None:
            budget.check(self._directory.path)
        with self._session.rewound():
            asked = with_questions(self._model, self._tokenizer, requests, neighbours, edited)
            answered = ask(self._model, self._tokenizer, asked, self._protocol)
        contexts = self._backend.prepare(kept["contexts"] if kept else None)
        if budget is None:
            return asked, answered, None
        identity = run_identity(  # the folder is new, so the model is the untouched one
            self._backend, round_size=n, order=BY_HAND, seed=hparams.seed,
            protocol=self._protocol, rules=StopRules(),
        )  # fmt: skip
        manifest = new_manifest(identity, contexts, {}, budget)
        return asked, answered, manifest

    def _edit(
        self, requests: Sequence[EditRequest]
    ) -> tuple[RoundLine, list[Answered], Measurement]:
        """Write the round into the model and measure it.

        Returns:
            The round's line, not stored yet; the answers to the round's own questions; and the
            result of :func:`measure_answers`.
        """
        self._tell("edit")
        started = time.perf_counter()
        written = self._backend.edit(requests, self._number)
        if written.left_out:
            log.warning("%s", written.why_left_out())
        seconds = time.perf_counter() - started
        problem = self._backend.problem()
        if problem is not None:
            raise NotFiniteError(
                f"{problem} is not finite after the edit, which was taken back; lower v_lr or "
                "clamp_norm_factor in the method's YAML"
            )
        self._tell("measure")
        superseded = self._history.add(self._number, requests)
        own = MeasuredModel(self._model, self._tokenizer)
        scores = measure_round(self._protocol, own, self._history, self._number)
        edits = self._history.edits(self._history.of_round(self._number))
        now = own.answers(edits, self._protocol)
        originals, keys = self._backend.originals(), self._backend.keys
        everything = MeasuredModel(self._model, self._tokenizer, originals, keys)
        found = measure_all(self._prompts_alone, everything, self._history, self._number)
        answers = measure_answers(self._prompts_alone, everything, self._history, self._number)
        line = new_line(self._number, requests, written, self._session.ledger.numbers()[-1])
        line |= {"superseded": superseded, "scores": scores, "measurement": found}
        line["seconds"] = {"edit": seconds}
        return line, now, answers

    def _save(self, line: RoundLine, answers: Measurement, manifest: Manifest | None) -> Path:
        """Store the round, which counts once its line is written."""
        self._tell("write")
        directory = self._directory
        if manifest is not None:
            directory.begin(manifest)
        path, line["sha256"] = self._backend.save(directory.path, cast(int, line["file"]))
        self._lines.append(line)
        directory.finish({
            "status": status_of(None, any(each["changed"] for each in self._lines)),
            "rounds": self._number,
            "edits": len(self._history),
            "in_effect": len(self._history.in_effect()),
            "repeats": 0,
            "stop": None,
            "measurement": {**(line["measurement"] or {}), **answers},
        })  # fmt: skip
        return path

    def _earlier(self, line: RoundLine) -> Earlier:
        each = (line["measurement"] or {}).get("each") or []
        earlier = [row for row in each if row["round"] != self._number]
        lost = {(row["round"], row["case_id"]) for row in earlier if row["efficacy"] != 1}
        texts = [
            request.text
            for number in sorted({number for number, _ in lost})
            for request in self._frozen.read(number)[0]
            if (number, request.case_id) in lost
        ]
        return Earlier(len(earlier), tuple(texts))

    def _said(self, requests: Sequence[EditRequest]) -> _Said:
        """Ask the model; in chat only if the folder is in plain text and all answers are shown."""
        model, tokenizer = self._model, self._tokenizer
        in_chat = len(requests) <= FULL and not isinstance(tokenizer, ChatTokenizer)
        texts = [text for r in requests for text in asked_texts(r, self._protocol)]
        texts = list(dict.fromkeys([*texts, *map(about_subject, requests if in_chat else ())]))
        targets = [request.target_new for request in requests]
        continued = dict(zip(texts, first_words(model, tokenizer, texts, targets)))
        replies: list[str] = []
        if in_chat:
            prompts = [request.text for request in requests]
            with suppress(ModelError, RequestError):  # no template, or the prompts are too long
                replies = first_words(model, ChatTokenizer(tokenizer), prompts, targets)
        return _Said(continued, replies)

    def _tell(self, phase: str) -> None:
        self._listener("phase", {"name": phase})


class _Said(NamedTuple):
    """What the model says about the facts of a round."""

    texts: dict[str, str]
    """By prompt, paraphrase, neighbour and text about a subject: its continuation."""
    replies: list[str]
    """The replies to the prompts in chat; empty if they were not asked."""


_KINDS: dict[str, Kind] = {
    "rewrite": "prompt", "paraphrase": "paraphrase", "locality": "neighbour",
}  # fmt: skip


def _facts(
    requests: Sequence[EditRequest],
    frozen: Sequence[Answered],
    before: _Said,
    after: _Said,
    known: Sequence[Answered],
    now: Sequence[Answered],
) -> tuple[EditedFact, ...]:
    facts = []
    for number, request in enumerate(requests):
        asked = []
        for group, kind in _KINDS.items():
            for item, old in zip(now[number][group], frozen[number][group]):
                same = group == "locality" and item["predicted"] == old["predicted"]
                wanted = same if group == "locality" else item["exact"]
                text = item["prompt"]
                asked.append(Asked(kind, text, before.texts[text], after.texts[text], wanted))
        if (text := about_subject(request)) in before.texts:
            said = before.texts[text], after.texts[text]
            asked.append(Asked("subject", text, *said, as_wanted=said[0] == said[1]))
        if after.replies:
            reply = after.replies[number]
            wanted = shows(reply, request)
            asked.insert(1, Asked("in chat", request.text, before.replies[number], reply, wanted))
        facts.append(
            EditedFact(
                request.case_id,
                request.subject,
                request.text,
                request.target_new,
                in_effect=now[number]["rewrite"][0]["exact"],
                known_before=known[number]["rewrite"][0]["exact"],
                asked=tuple(asked),
            )
        )
    return tuple(facts)


def _cost(line: RoundLine, size: int) -> Cost:
    found = (line["measurement"] or {}).get("relative_change") or {}
    changes = [value for value in found.values() if value]
    seconds = line["seconds"]
    return Cost(seconds["edit"], seconds["total"], max(changes, default=None), len(changes), size)
