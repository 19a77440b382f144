"""The demo: a run that shows a table of its scores and some examples.

On an embedded model it edits facts of the embedded world; on a real one, real facts that the model
knows.  It is resumed, inspected and exported like any other run.  A listener adds what only the
demo has: it asks facts of other subjects after each round, and writes ``summary.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nse_plugin.data import atlas, earth
from nse_plugin.data.readers import parse_records
from nse_plugin.errors import RequestError
from nse_plugin.evaluation.questions import mean
from nse_plugin.files import write_json
from nse_plugin.model.answers import score_answers
from nse_plugin.model.generation import greedy_text
from nse_plugin.requests import EditRequest
from nse_plugin.runs.listeners import progress
from nse_plugin.runs.reading import RunFiles, RunResult
from nse_plugin.runs.schema import RoundLine
from nse_plugin.runs.settings import DemoSettings, RunSettings
from nse_plugin.runs.start import make_scheduler
from nse_plugin.session.session import EditSession
from nse_plugin.table import percent

N_OTHER = 200
"""How many facts about other subjects are asked after every round, at most."""
_N_EXAMPLES = 3
_PROTOCOL = {
    "every": 1, "portability": 0, "locality": 0, "generation": 0, "fluency": 0, "perplexity": 0,
    "key_space": 0, "retention": 2500,
}  # fmt: skip
"""The measurements that the table needs, after every round."""
_HEAD = """\
            |     this round      |      all so far       first | other |
round edits | efficacy paraphrase | efficacy paraphrase   round | facts | s/edit"""


@dataclass(frozen=True)
class Summary:
    """The scores after the last finished round, each from 0 to 1; None without edits."""

    method: str
    model: str
    seed: int
    edits: int
    """Edits made."""
    rounds: int
    """Rounds finished."""
    efficacy: float | None
    """Share of all edits that are in effect."""
    paraphrase: float | None
    """Share of the paraphrases that are answered with the target."""
    other_facts: float | None
    """Share of the known facts of other subjects that the model still knows."""
    retention_first: float | None
    """Share of the first round's edits that are in effect."""
    seconds_per_edit: float
    """Time of editing, without evaluation and statistics."""


class Demo:
    """The run of the demo.

    Args:
        show: prints a line for people.

    Raises:
        RequestError: there are fewer facts than edits asked for.
        DataError: there is no such embedded model.
    """

    def __init__(self, settings: DemoSettings, show: Callable[[str], None]) -> None:
        world = atlas if settings.embedded else earth
        n_facts = len(world.facts())
        if settings.edits > n_facts:
            raise RequestError(
                f"edits is {settings.edits}; give 1 to {n_facts}, the number of facts of the world"
            )
        self.settings, self._show = settings, show
        if settings.embedded:
            where: dict[str, Any] = dict(
                hparams=f"NSE/{atlas.model_dir(settings.model).name}",
                data=f"atlas:{settings.edits}",
                stats_dir=str(Path(settings.out) / "stats"),
            )
        else:
            where = dict(method="NSE", model=settings.model, data="earth", known=True)
        self._run = RunSettings(
            **where,
            limit=settings.edits,
            round_size=-(-settings.edits // settings.rounds),
            out=settings.out,
            seed=settings.seed,
            held_out="none",
            protocol=_PROTOCOL,
        )

    def run(self) -> tuple[RunResult, Summary]:
        """Run the demo, or resume it; an interrupt keeps the finished rounds."""
        with progress(self._show, rounds=False) as self._told:
            scheduler = make_scheduler(self._run, [self._told, self])
            self.requests = [r for planned in scheduler.rounds for r in planned.requests]
            self.others = self._other_facts()
            self.session: EditSession = scheduler.backend.session  # type: ignore[attr-defined]
            self.hparams = scheduler.backend.hparams
            result = scheduler.run()
        summary = self._write_summary(mean(self._still_true()))
        self._show_examples()
        return result, summary

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Handle the run's events: ask the other facts, show the table, write the summary."""
        if event == "start":
            with self.session.rewound():
                known = self._still_true()
            self.others = [fact for fact, exact in zip(self.others, known) if exact]
            self._print(
                f"{len(self.requests)} edits in {facts['rounds']} rounds with "
                f"{self.hparams.alg_name} on {self.settings.model}; scores in percent\n{_HEAD}"
            )
            for line in self._lines():  # of an interrupted run, whose other facts are not known
                self._print(_row(line, None))
        elif event == "round":
            others = mean(self._still_true())
            self._print(_row(facts, others))
            self._write_summary(others)

    def _other_facts(self) -> list[EditRequest]:
        """Facts about subjects that are not edited."""
        edited = {request.case_id for request in self.requests}
        if self.settings.embedded:
            records = atlas.edit_set(self.settings.edits, seed=self.settings.seed)
            return parse_records(atlas.other_facts(records, N_OTHER, self.settings.seed))
        records = [r for r in earth.facts(self.settings.seed) if r["case_id"] in edited]
        return parse_records(earth.other_facts(records, N_OTHER, self.settings.seed))

    def _still_true(self) -> list[bool]:
        """For each fact of other subjects, whether the model still knows it."""
        return score_answers(
            self.session.model,
            self.session.tokenizer,
            [fact.text for fact in self.others],
            [str(fact.ground_truth) for fact in self.others],
        ).exact

    def _write_summary(self, others: float | None) -> Summary:
        """Write ``summary.json``: the scores after the last finished round."""
        lines = self._lines()
        edits = sum(line["edits"] for line in lines)
        last = lines[-1]["measurement"] or {}
        everything = last.get("all") or {}
        summary = Summary(
            method=self.hparams.method,
            model=self.settings.model,
            seed=self.settings.seed,
            edits=edits,
            rounds=len(lines),
            efficacy=everything.get("efficacy"),
            paraphrase=everything.get("paraphrase"),
            other_facts=others,
            retention_first=_first_round(last),
            seconds_per_edit=sum(line["seconds"]["edit"] for line in lines) / edits,
        )
        write_json(Path(self.settings.out) / "summary.json", asdict(summary))
        return summary

    def _lines(self) -> tuple[RoundLine, ...]:
        return RunFiles(self.settings.out).lines

    def _show_examples(self) -> None:
        """Show the continuations of a few edited prompts, before and after all edits."""
        requests = self.requests[:: max(1, len(self.requests) // _N_EXAMPLES)][:_N_EXAMPLES]
        now = self._continuations(requests)
        with self.session.rewound():
            before = self._continuations(requests)
        self._show("")
        for request, old, new in zip(requests, before, now):
            self._show(f"  {request.text} ...")
            self._show(f"    before:{_sentence(old)}")
            self._show(f"    after: {_sentence(new)}    (edit: {request.target_new})")

    def _continuations(self, requests: Sequence[EditRequest]) -> list[str]:
        prompts = [request.text for request in requests]
        return greedy_text(self.session.model, self.session.tokenizer, prompts, 8)

    def _print(self, text: str) -> None:
        with tqdm.external_write_mode():  # above the bars, if there are any
            self._show(text)


def _row(line: Mapping[str, Any], others: float | None) -> str:
    """A line of the table."""
    scores, point = line["scores"] or {}, line["measurement"] or {}
    everything = point.get("all") or {}
    columns = (
        f"{line['round']:5d} {line['edits']:5d} |",
        f"{percent(scores.get('efficacy')):>8s} {percent(scores.get('paraphrase')):>10s} |",
        f"{percent(everything.get('efficacy')):>8s}",
        f"{percent(everything.get('paraphrase')):>10s} {percent(_first_round(point)):>7s} |",
        f"{percent(others):>5s} | {line['seconds']['edit'] / line['edits']:6.3f}",
    )
    return " ".join(columns)


def _sentence(text: str) -> str:
    """The text up to its first full stop; dots if there is none."""
    sentence, stop, _ = text.partition(".")
    return sentence if stop else f"{sentence} ..."


def _first_round(point: Mapping[str, Any]) -> float | None:
    retention = point.get("retention") or []
    return next((row["efficacy"] for row in retention if row["edited"] == 1), None)
