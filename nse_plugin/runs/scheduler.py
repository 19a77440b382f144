"""The scheduler: rounds of edits, each measured, kept on disk, and taken back where it must be."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nse_plugin.errors import DataError, HparamsError, NotFiniteError, RequestError
from nse_plugin.evaluation.metrics import Answered
from nse_plugin.evaluation.protocol import (
    History,
    Protocol,
    Subject,
    freeze,
    measure_base,
    measure_checkpoint,
    measure_round,
)
from nse_plugin.files import checksum, explained
from nse_plugin.requests import EditRequest
from nse_plugin.runs.budget import check_disk, estimate
from nse_plugin.runs.directory import WAY_OUT, RunDirectory, differences
from nse_plugin.runs.engines import SessionEngine, engine_of
from nse_plugin.runs.frozen import FrozenAnswers
from nse_plugin.runs.identity import digest, hashed, model_identity, plain, versions
from nse_plugin.runs.listeners import Listener
from nse_plugin.runs.order import PlannedRound, Rounds
from nse_plugin.runs.result import RunResult
from nse_plugin.runs.stopping import StopRules, ends, status_of

log = logging.getLogger(__name__)


class SequentialScheduler:
    """Writes a stream of requests in rounds into one model.

    Args:
        editor_or_session: an :class:`EditSession` (give ``hparams`` too), or an editor of either
            host, whose ``apply_algo`` is used where the method is not ours.  Its model is to be
            untouched.
        requests: a list, or an iterator that need not be known in advance.  To resume, give the
            same stream from its beginning.
        run_dir: where the run is kept; one that holds the same run is gone on with.
        held_out: texts for the perplexity.
        listeners: told of everything that happens.
        max_rounds: end this call after so many rounds, to go on later.

    Raises:
        NSEPluginError: an argument is wrong; nothing was changed.
    """

    def __init__(
        self,
        editor_or_session: Any,
        requests: Iterable[EditRequest | Mapping[str, Any]],
        round_size: int,
        protocol: Protocol | None = None,
        run_dir: str | Path = "run",
        stop_rules: StopRules | None = None,
        *,
        hparams: Any = None,
        order: str = "given",
        seed: int = 0,
        held_out: Sequence[str] = (),
        listeners: Sequence[Listener] = (),
        max_rounds: int | None = None,
    ) -> None:
        self.protocol = protocol or Protocol()
        self.rules = stop_rules or StopRules()
        self.engine = engine_of(editor_or_session, hparams, seed)
        self.rounds = Rounds(requests, round_size, order, seed)
        self.run_dir = Path(run_dir)
        self.history = History(self._read_round)
        self._known = isinstance(requests, Sequence)
        self._round_size = round_size
        self._settings = {"round_size": round_size, "order": order, "seed": seed}
        self._held_out, self._listeners, self._max_rounds = held_out, listeners, max_rounds
        has = {"perplexity": bool(held_out and self.protocol.perplexity),
               "retention": bool(self.protocol.retention)}  # fmt: skip
        for needed in self.rules.needs():
            if not has[needed]:
                raise HparamsError(
                    f"a stop rule bounds {needed}, which is not measured; switch it on in the "
                    "protocol (perplexity also needs held-out text), or leave the rule out"
                )

    def run(self) -> RunResult:
        """Write and measure all rounds that are not on disk yet.

        Raises:
            DataError: the directory is in use, damaged, of another run, or cannot be written.
        """
        with RunDirectory(self.run_dir) as self._folder:
            plan = list(self.rounds) if self._known else None
            if plan == []:
                raise RequestError("the list of requests is empty; give at least one edit request")
            stream = iter(self.rounds if plan is None else plan)
            base = self._begin(plan)
            self._frozen = FrozenAnswers(self._folder.lines("frozen.jsonl"))
            self._log = self._folder.lines("rounds.jsonl")
            self._resume(stream)
            last = len(self._log)
            done = self._log[-1] if last else {"checkpoint": None, "stop": None}
            checkpoint, stop = done["checkpoint"], done["stop"]
            self._tell("start", rounds=None if plan is None else len(plan), done=last)
            for known in plan or []:
                self._freeze(known, f"freeze {known.number}")
            made = 0
            while not ends(stop):
                if self._max_rounds is not None and made >= self._max_rounds:
                    return RunResult("paused", self.run_dir, {})
                planned = next(stream, None)
                if planned is None:
                    break
                line = self._one_round(planned, base)
                checkpoint, stop, last = line["checkpoint"], line["stop"], planned.number
                made += 1
            return self._finish(last, checkpoint, stop)

    # --- the parts of a run ----------------------------------------------------------------------

    def _begin(self, plan: list[PlannedRound] | None) -> dict[str, Any]:
        """Claim the directory for this run, or see that it is this run's; returns the base."""
        identity = self._identity(plan)
        kept = self._folder.manifest()
        if kept is not None:
            found = differences(kept["run"], json.loads(json.dumps(identity)))
            if found:
                shown = "; ".join(found[:5]) + ("; ..." if len(found) > 5 else "")
                raise DataError(
                    f"{self.run_dir} is another run's: {shown}. Give another folder, or the same "
                    "settings to go on"
                )
            self.engine.prepare(kept["contexts"])
            self._per_round = kept["budget"]["disk_per_round"]
            return kept["base"]
        budget = estimate(
            self.engine.model,
            self.engine.hparams,
            self._round_size,
            None if plan is None else sum(len(planned.requests) for planned in plan),
            isinstance(self.engine, SessionEngine),
        )
        budget.check(self.run_dir)
        log.info("the run takes %s", budget.text())
        self._per_round = budget.disk_per_round
        self._tell("phase", name="untouched model")
        contexts = self.engine.prepare(None)
        base = measure_base(self.protocol, self._subject())
        self._folder.begin(
            {"run": identity, "contexts": contexts, "base": base, "budget": budget.to_dict()}
        )
        return base

    def _resume(self, stream: Iterator[PlannedRound]) -> None:
        """Put the rounds on disk back into model and history."""
        files = self._folder.round_files(self._log)
        for line in self._log:
            planned = next(stream, None)
            given = [digest(r) for r in planned.requests] if planned else []
            if planned is None or given != line["requests"]:
                raise DataError(
                    f"{self.run_dir} is another stream's: round {line['round']} wrote cases "
                    f"{line['case_ids'][:3]}, and now has "
                    f"{[r.case_id for r in planned.requests[:3]] if planned else 'no requests'}; "
                    "give the same stream from its beginning, or another folder"
                )
            self._freeze(planned)
            if line["file"] is not None:
                self.history.add(planned.number, planned.requests)
        if files:
            self.engine.load(files)
            log.info("%s: going on after round %d", self.run_dir, len(self._log))
        self._n_files = len(files)

    def _freeze(self, planned: PlannedRound, phase: str | None = None) -> None:
        """See that the untouched model's answers to a round's probes are on disk."""
        if self._frozen.holds(planned.number, planned.requests):
            return
        if planned.number <= len(self._frozen):
            if planned.number <= len(self._log) or self._known:
                raise DataError(
                    f"{self.run_dir}/frozen.jsonl: round {planned.number} is of other requests; "
                    "restore the file, or give another folder"
                )
            # frozen, not edited when the run was cut off, and the stream goes on differently
            self._frozen.keep(planned.number - 1)
        if phase is not None:
            self._tell("phase", name=phase)
        with self.engine.rewound():
            answered = freeze(
                self.protocol, self.engine.model, self.engine.tokenizer, planned.requests
            )
        self._frozen.append(planned.number, planned.requests, answered)

    def _read_round(self, number: int) -> tuple[list[EditRequest], list[Answered]]:
        return self._frozen.read(number)

    def _one_round(self, planned: PlannedRound, base: Mapping[str, Any]) -> dict[str, Any]:
        check_disk(self.run_dir, 2 * self._per_round)
        clock: dict[str, float] = {}
        number, requests = planned.number, planned.requests
        with self._phase("freeze", clock):
            self._freeze(planned)
        superseded, applied = 0, True
        scores = checkpoint = summary = problem = None
        with self._phase("edit", clock):
            try:
                summary = self.engine.edit(requests, number)
                problem = self.engine.problem()
            except NotFiniteError as error:
                if not self.rules.non_finite:
                    raise
                problem, applied = str(error), False  # the session has put everything back
        stop = self.rules.check(None, base, problem)
        if applied:
            superseded = self.history.add(number, requests)
            if problem is None:
                with self._phase("measure", clock):
                    scores = measure_round(self.protocol, self._subject(), self.history, number)
                    if self.protocol.is_due(number):
                        checkpoint = measure_checkpoint(
                            self.protocol, self._subject(), self.history, number
                        )
            stop = stop or self.rules.check(checkpoint, base, problem)
        kept = applied
        if stop is not None:
            log.warning("round %d: %s is %s, bound %s: %s", number, stop["rule"], stop["value"],
                        stop["bound"], self.rules.on_collapse)  # fmt: skip
            stop = {**stop, "action": self.rules.on_collapse}
            if applied and self.rules.on_collapse == "undo":
                self.engine.undo()
                self.history.take_back(number)
                kept = False
        line: dict[str, Any] = {
            "round": number,
            "file": self._n_files + 1 if kept else None,
            "requests": [digest(request) for request in requests],
            "case_ids": [request.case_id for request in requests],
            "edits": len(requests),
            "repeats": planned.repeats,
            "superseded": superseded,
            "scores": scores,
            "checkpoint": checkpoint,
            "edit": summary,
            "stop": stop,
            "sha256": None,
        }
        with self._phase("write", clock):
            if kept:
                with explained(self.run_dir, WAY_OUT):
                    path = self.engine.save(self.run_dir, self._n_files + 1)
                    line["sha256"] = checksum(path)
                    self._per_round = max(self._per_round, path.stat().st_size)
            line["seconds"] = {**clock, "total": sum(clock.values())}
            self._log.append(line)
        self._n_files += kept
        self._tell("round", **line)
        return line

    def _finish(
        self, last: int, checkpoint: dict[str, Any] | None, stop: Mapping[str, Any] | None
    ) -> RunResult:
        final = self._folder.final()
        status = status_of(stop)
        if final is None or final["rounds"] != last or final["status"] != status:
            self._tell("phase", name="final measurement")
            undone = status == "collapsed"
            if checkpoint is None or undone:
                bad = status == "stopped" and stop is not None and stop["rule"] == "non_finite"
                checkpoint = (
                    None
                    if bad
                    else measure_checkpoint(
                        self.protocol, self._subject(), self.history, last - undone
                    )
                )
            final = {
                "status": status,
                "rounds": last,
                "edits": len(self.history),
                "standing": len(self.history.standing()),
                "repeats": self.rounds.repeats,
                "stop": stop if ends(stop) else None,
                "checkpoint": checkpoint,
            }
            self._folder.finish(final)
        self._tell("end", **final)
        return RunResult(status, self.run_dir, final)

    # --- what they need ---------------------------------------------------------------------------

    def _subject(self) -> Subject:
        engine = self.engine
        return Subject(
            engine.model, engine.tokenizer, engine.originals(), engine.keys, self._held_out
        )

    def _identity(self, plan: list[PlannedRound] | None) -> dict[str, Any]:
        """What has to be equal for a run to go on."""
        digests = None if plan is None else [digest(r) for p in plan for r in p.requests]
        return {
            **versions(),
            "model": model_identity(self.engine.model),
            "method": self.engine.method,
            "hparams": plain(self.engine.hparams),
            **self._settings,
            "protocol": self.protocol.to_dict(),
            "stop_rules": asdict(self.rules),
            "held_out": hashed(list(self._held_out)),
            "stream": None if digests is None else {"edits": len(digests), "hash": hashed(digests)},
        }

    @contextmanager
    def _phase(self, name: str, clock: dict[str, float]) -> Iterator[None]:
        self._tell("phase", name=name)
        start = time.perf_counter()
        yield
        clock[name] = time.perf_counter() - start

    def _tell(self, event: str, **facts: Any) -> None:
        for listener in self._listeners:
            listener(event, facts)
