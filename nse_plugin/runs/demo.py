"""The demo: edit the embedded world in rounds, measure after each, write down what happened."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from nse_plugin.data import atlas
from nse_plugin.data.readers import parse_records
from nse_plugin.errors import DataError, RequestError
from nse_plugin.files import write_json, write_text
from nse_plugin.hparams import NSEHparams
from nse_plugin.methods.nse import edit_round
from nse_plugin.model.answers import score_answers
from nse_plugin.model.generation import greedy_text
from nse_plugin.requests import EditRequest
from nse_plugin.session.ledger_files import save_round
from nse_plugin.session.session import EditSession
from nse_plugin.version import __version__

log = logging.getLogger(__name__)

N_UNTOUCHED = 200
"""How many facts about other subjects are asked after every round."""
N_SHOWN = 3
_MARK = "nse demo"


@dataclass(frozen=True)
class Summary:
    """The scores of a run, each from 0 to 1."""

    method: str
    model: str
    seed: int
    edits: int
    """Edits made."""
    rounds: int
    """Rounds finished."""
    efficacy: float
    """Share of all edits whose new answer greedy decoding gives after the last round."""
    paraphrase: float
    """The same for other phrasings of their prompts."""
    untouched: float
    """Share of the facts of other subjects, known before, that are still given."""
    retention_first: float
    """Share of the first round's edits that are given after the last round."""
    seconds_per_edit: float
    """Time of editing, without evaluation and without what is made once per model."""


@dataclass
class Demo:
    """One run of the demo.

    Raises:
        RequestError: there cannot be so many edits, or so many rounds of them.
        DataError: ``out`` holds files of something else.
    """

    model_name: str
    edits: int
    rounds: int
    seed: int
    out: Path
    show: Callable[[str], None]
    """Takes the lines meant for people."""
    progress: bool | None = None
    """Show a bar; by default only on a terminal."""
    done: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        n_facts = len(atlas.facts())
        if not 1 <= self.edits <= n_facts:
            raise RequestError(f"edits is {self.edits}; the world has 1 to {n_facts} facts to edit")
        if not 1 <= self.rounds <= self.edits:
            raise RequestError(f"rounds is {self.rounds}; give 1 to {self.edits}, the edits")
        shipped = NSEHparams.from_hparams(f"NSE/{atlas.model_dir(self.model_name).name}")
        self.hparams = replace(shipped, stats_dir=str(self.out / "stats"))
        self._claim_folder()

    def run(self) -> Summary:
        """Edit, measure and write.  An interrupt leaves the rounds so far, and is raised again."""
        model, tokenizer = atlas.load(self.model_name)
        self.session = EditSession.of(model, tokenizer)
        records = atlas.edit_set(self.edits, seed=self.seed)
        self.requests = parse_records(records)
        others = atlas.untouched(records, N_UNTOUCHED, self.seed)
        self.untouched = self._known(parse_records(others))
        shown = self.requests[:: max(1, len(self.requests) // N_SHOWN)][:N_SHOWN]
        before = self._continuations(shown)
        self._write_manifest("running")
        status = "interrupted"
        try:
            self.session.untouched.covariances(self.hparams)
            self._all_rounds()
            status = "complete"
        finally:
            # a second interrupt may come while this is written; what is on disk is whole anyway
            with suppress(KeyboardInterrupt):
                self._write_manifest(status)
                if self.done:
                    write_json(self.out / "summary.json", asdict(self.summary()))
        self._show_continuations(shown, before)
        return self.summary()

    def summary(self) -> Summary:
        """The scores after the last finished round."""
        last = self.done[-1]
        edits = sum(entry["edits"] for entry in self.done)
        return Summary(
            method=self.hparams.method,
            model=self.model_name,
            seed=self.seed,
            edits=edits,
            rounds=len(self.done),
            efficacy=last["efficacy_all"],
            paraphrase=last["paraphrase_all"],
            untouched=last["untouched"],
            retention_first=last["retention_first"],
            seconds_per_edit=sum(entry["seconds"] for entry in self.done) / edits,
        )

    def _all_rounds(self) -> None:
        self.show(f"{self.edits} edits in {self.rounds} rounds with {self.hparams.alg_name} "
                  f"on {self.model_name}; scores in percent")  # fmt: skip
        self.show("round  edits | this round: efficacy  paraphrase | all so far: efficacy  "
                  "paraphrase  first round | untouched | s/edit")  # fmt: skip
        hidden = None if self.progress is None else not self.progress
        with tqdm(total=self.edits, unit="edit", disable=hidden) as bar:
            for requests in _cut(self.requests, self.rounds):
                self._one_round(requests)
                bar.update(len(requests))
                with bar.external_write_mode():
                    self.show(_line(self.done[-1]))

    def _one_round(self, requests: list[EditRequest]) -> None:
        start = time.perf_counter()
        record = edit_round(self.session, requests, self.hparams)
        seconds = time.perf_counter() - start
        so_far = self.requests[: sum(e["edits"] for e in self.done) + len(requests)]
        efficacy = self._given(so_far)
        paraphrase = self._given_paraphrased(so_far)
        first = self.done[0]["edits"] if self.done else len(requests)
        entry = {
            "round": record.number,
            "edits": len(requests),
            "efficacy": _mean(efficacy[-len(requests) :]),
            "paraphrase": _mean(self._given_paraphrased(requests)),
            "efficacy_all": _mean(efficacy),
            "paraphrase_all": _mean(paraphrase),
            "retention_first": _mean(efficacy[:first]),
            "untouched": _mean(self._still_true()),
            "seconds": seconds,
            "ledger": record.summary(),
        }
        self.done.append(entry)
        save_round(self.out, record)
        lines = "".join(json.dumps(e) + "\n" for e in self.done)
        write_text(self.out / "rounds.jsonl", lines)

    def _given(self, requests: Sequence[EditRequest]) -> list[bool]:
        return self._exact([r.text for r in requests], [r.target_new for r in requests])

    def _given_paraphrased(self, requests: Sequence[EditRequest]) -> list[bool]:
        pairs = [(text, r.target_new) for r in requests for text in r.rephrase_prompts]
        return self._exact([p for p, _ in pairs], [a for _, a in pairs])

    def _still_true(self) -> list[bool]:
        return self._exact(
            [r.text for r in self.untouched], [str(r.ground_truth) for r in self.untouched]
        )

    def _known(self, requests: list[EditRequest]) -> list[EditRequest]:
        """Those whose true answer the untouched model gives."""
        exact = self._exact([r.text for r in requests], [str(r.ground_truth) for r in requests])
        return [request for request, known in zip(requests, exact) if known]

    def _exact(self, prompts: list[str], answers: list[str]) -> list[bool]:
        session = self.session
        return score_answers(session.model, session.tokenizer, prompts, answers).exact

    def _continuations(self, requests: Sequence[EditRequest]) -> list[str]:
        session = self.session
        prompts = [request.text for request in requests]
        return greedy_text(session.model, session.tokenizer, prompts, 8)

    def _show_continuations(self, requests: Sequence[EditRequest], before: list[str]) -> None:
        self.show("")
        for request, old, new in zip(requests, before, self._continuations(requests)):
            self.show(f"  {request.text} ...")
            self.show(f"    before:{_sentence(old)}")
            self.show(f"    after: {_sentence(new)}    (edit: {request.target_new})")

    def _claim_folder(self) -> None:
        """Take an empty folder, or that of an earlier demo, whose files are replaced."""
        manifest = self.out / "manifest.json"
        if self.out.exists() and not self.out.is_dir():
            raise DataError(f"{self.out} is a file; give a folder with --out")
        if self.out.is_dir() and any(self.out.iterdir()):
            try:
                ours = json.loads(manifest.read_text(encoding="utf-8"))["made_by"] == _MARK
            except (OSError, ValueError, KeyError, TypeError):
                ours = False
            if not ours:
                raise DataError(
                    f"{self.out} holds files that are not of a demo; give another folder with --out"
                )
            for name in ("round-*.safetensors", "rounds.jsonl", "summary.json"):
                for path in self.out.glob(name):
                    path.unlink()
            shutil.rmtree(self.out / "stats", ignore_errors=True)

    def _write_manifest(self, status: str) -> None:
        manifest = {
            "made_by": _MARK,
            "status": status,
            "version": __version__,
            "torch": torch.__version__,
            "model": self.model_name,
            "seed": self.seed,
            "edits": self.edits,
            "rounds": self.rounds,
            "hparams": self.hparams.to_dict(),
            "contexts": list(self.session.untouched.contexts(self.hparams)),
            "requests": [request.digest() for request in self.requests],
        }
        write_json(self.out / "manifest.json", manifest)


def _cut(requests: list[EditRequest], rounds: int) -> list[list[EditRequest]]:
    """Rounds of equal size, the first ones one larger where it does not come out even."""
    size, more = divmod(len(requests), rounds)
    edges = [i * size + min(i, more) for i in range(rounds + 1)]
    return [requests[a:b] for a, b in pairwise(edges)]


def _line(entry: dict[str, Any]) -> str:
    percent = {name: f"{100 * value:.1f}" for name, value in entry.items() if name not in
               ("round", "edits", "seconds", "ledger")}  # fmt: skip
    return (
        f"{entry['round']:5d} {entry['edits']:6d} | {percent['efficacy']:>20s} "
        f"{percent['paraphrase']:>11s} | {percent['efficacy_all']:>20s} "
        f"{percent['paraphrase_all']:>11s} {percent['retention_first']:>12s} | "
        f"{percent['untouched']:>9s} | {entry['seconds'] / entry['edits']:6.3f}"
    )


def _mean(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else float("nan")


def _sentence(text: str) -> str:
    return text.partition(".")[0]
