"""The scheduler: writes rounds of edits, measures and stores them, and applies the stop rules."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nse_plugin.errors import DataError, NotFiniteError, RequestError
from nse_plugin.evaluation.metrics import Answered, ask
from nse_plugin.evaluation.protocol import (
    History,
    MeasuredModel,
    Protocol,
    measure_all,
    measure_answers,
    measure_model,
    measure_round,
)
from nse_plugin.files import explained
from nse_plugin.requests import EditRequest
from nse_plugin.runs.backends import backend_of
from nse_plugin.runs.budget import check_disk, estimate
from nse_plugin.runs.differences import refuse_another
from nse_plugin.runs.directory import WAY_OUT, new_line, new_manifest, run_directory
from nse_plugin.runs.frozen import FrozenAnswers
from nse_plugin.runs.identity import run_identity
from nse_plugin.runs.listeners import Listener
from nse_plugin.runs.order import PlannedRound, Rounds
from nse_plugin.runs.reading import RunFiles, RunResult, read_final, read_manifest
from nse_plugin.runs.schema import ROUNDS, Identity, Manifest, Measurement, RoundLine, RunStatus
from nse_plugin.runs.stopping import StopRules, ends, status_of
from nse_plugin.session.records import Written

log = logging.getLogger(__name__)


class SequentialScheduler:
    """Writes a stream of requests in rounds into one model.

    Args:
        editor_or_session: an :class:`EditSession` (give ``hparams`` too), or an editor of either
            host, whose ``apply_algo`` is used if the method is not ours.  Its model has to be the
            untouched one.
        requests: a list, or an iterator whose requests need not be known in advance.  To resume,
            give the same stream from its beginning.
        run_dir: folder of the run; if it holds the same run, that is resumed.
        held_out: texts for the perplexity.
        listeners: called at each event.
        frozen: the untouched model's answers to rounds that another run has asked already, by the
            digests of their requests.

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
        frozen: Mapping[tuple[str, ...], Sequence[Answered]] | None = None,
    ) -> None:
        self.protocol = protocol or Protocol()
        self.rules = stop_rules or StopRules()
        self.backend = backend_of(editor_or_session, hparams, seed)
        self.rounds = Rounds(requests, round_size, order, seed)
        self.run_dir = Path(run_dir)
        self.history = History(lambda number: self._frozen.read(number))
        self._known = isinstance(requests, Sequence)
        self._round_size, self._order, self._seed = round_size, order, seed
        self._held_out, self._listeners = held_out, listeners
        self._frozen_elsewhere = frozen or {}
        self._base: Measurement = {}  # of the untouched model
        self._state: MeasuredModel | None = None  # after the last round, if it was measured
        self._frozen_in: dict[int, float] = {}  # by round: seconds to ask the untouched model
        self.rules.refuse_unmeasured(self.protocol, bool(held_out))

    def run(self) -> RunResult:
        """Write and measure all rounds that are not on disk yet.

        Raises:
            DataError: the directory is in use, damaged, of another run, or cannot be written.
        """
        with run_directory(self.run_dir) as self._folder:
            plan = list(self.rounds) if self._known else None
            if plan == []:
                raise RequestError("the list of requests is empty; give at least one edit request")
            stream = iter(self.rounds if plan is None else plan)
            new = read_manifest(self.run_dir) is None
            self._begin(plan)
            try:
                return self._rounds(plan, stream)
            except Exception:  # an interrupt keeps the folder, as the same command resumes
                if new and not len(self._log) and not any(self.run_dir.glob("round-*")):
                    self._folder.discard()
                raise

    # --- the parts of a run ----------------------------------------------------------------------

    def _rounds(self, plan: list[PlannedRound] | None, stream: Iterator[PlannedRound]) -> RunResult:
        """Resume the run, and write the remaining rounds."""
        self._resume(stream)
        self._tell("start", rounds=None if plan is None else len(plan), done=len(self._log))
        for known in plan or []:
            self._freeze(known, f"freeze {known.number}")
        last, ready = self._log[-1] if len(self._log) else None, False
        while last is None or not ends(last["stop"]):
            planned = next(stream, None)
            if planned is None:
                break
            if not ready:  # so that they do not count to the time of a round
                self._tell("phase", name="computing statistics")
                self.backend.compute_statistics()
                ready = True
            last = self._one_round(planned, plan is not None and planned is plan[-1])
        return self._finish(last)

    def _begin(self, plan: list[PlannedRound] | None) -> None:
        """Begin the run, or check that the directory holds it."""
        self._log, frozen = self._folder.rounds(), self._folder.frozen()
        self._frozen = FrozenAnswers(frozen)
        requests = None if plan is None else [r for planned in plan for r in planned.requests]
        identity = run_identity(
            self.backend, round_size=self._round_size, order=self._order, seed=self._seed,
            protocol=self.protocol, rules=self.rules, held_out=self._held_out, requests=requests,
        )  # fmt: skip
        manifest = read_manifest(self.run_dir)
        if manifest is None:
            manifest = self._new_manifest(identity, None if requests is None else len(requests))
            self._folder.begin(manifest)
        else:
            settings = {
                "hparams": self.backend.hparams, "protocol": self.protocol, "stop_rules": self.rules
            }  # fmt: skip
            refuse_another(self.run_dir, manifest["run"], identity, frozen, requests, settings)
            self.backend.prepare(manifest["contexts"])
        self._base = manifest["base"]
        self._per_round = manifest["budget"]["disk_per_round"]

    def _new_manifest(self, identity: Identity, n_requests: int | None) -> Manifest:
        """The manifest of a new run, for which disk and memory are there."""
        budget = estimate(self.backend.model, self.backend.hparams, self._round_size, n_requests)
        budget.check(self.run_dir)
        log.info("the run takes %s", budget.text())
        self._tell("phase", name="untouched model")
        contexts = self.backend.prepare(None)
        base = measure_model(self.protocol, self._measured(untouched=True))
        return new_manifest(identity, contexts, base, budget)

    def _resume(self, stream: Iterator[PlannedRound]) -> None:
        """Load the rounds on disk into model and history."""
        files = self._folder.round_files(self._log)
        self._changed = False
        for line in self._log:
            planned = next(stream, None)
            given = [r.digest() for r in planned.requests] if planned else []
            if planned is None:
                raise DataError(
                    f"{self.run_dir} has round {line['round']}, which the stream does not have: it "
                    "is shorter now, or nse edit added the round, and then the run cannot be "
                    "resumed; give the whole stream, or another folder"
                )
            if given != line["requests"]:
                raise DataError(
                    f"{self.run_dir} holds a run of another stream: round {line['round']} wrote "
                    f"cases {line['case_ids'][:3]}, and now has "
                    f"{[r.case_id for r in planned.requests[:3]]}; "
                    "give the same stream from its beginning, or another folder"
                )
            self._freeze(planned)
            self._changed |= line["changed"]
            if line["file"] is not None:
                self.history.add(planned.number, planned.requests)
        if files:
            self.backend.load(files)
            log.info("%s: resumed after round %d", self.run_dir, len(self._log))
        self._n_files = len(files)

    def _freeze(self, planned: PlannedRound, phase: str | None = None) -> None:
        """Store the untouched model's answers to a round's probes, unless they are on disk."""
        if self._frozen.holds(planned.number, planned.requests):
            return
        if planned.number <= len(self._frozen):
            if planned.number <= len(self._log) or self._known:
                raise DataError(
                    f"{self.run_dir}/frozen.jsonl: round {planned.number} is of other requests; "
                    "restore the file, or give another folder"
                )
            # asked, but not edited when the run was interrupted; the stream now continues otherwise
            self._frozen.keep(planned.number - 1)
        if phase is not None:
            self._tell("phase", name=phase)
        start = time.perf_counter()
        digests = tuple(request.digest() for request in planned.requests)
        answered = self._frozen_elsewhere.get(digests)
        if answered is None:
            backend = self.backend
            with backend.rewound():
                answered = ask(backend.model, backend.tokenizer, planned.requests, self.protocol)
        self._frozen.append(planned.number, planned.requests, answered)
        self._frozen_in[planned.number] = time.perf_counter() - start

    def _edit(
        self, planned: PlannedRound, last: bool, clock: dict[str, float]
    ) -> tuple[Written | None, str | None]:
        """Write a round; returns it, and a description of what is not finite afterwards."""
        with self._phase("edit", clock):
            try:
                written = self.backend.edit(planned.requests, planned.number, last)
                return written, self.backend.problem()
            except NotFiniteError as error:
                if not self.rules.non_finite:
                    raise
                return None, str(error)  # the session has restored the model

    def _one_round(self, planned: PlannedRound, last: bool) -> RoundLine:
        check_disk(self.run_dir, 2 * self._per_round)
        clock: dict[str, float] = {}
        number, requests = planned.number, planned.requests
        self._freeze(planned, "freeze")
        clock["freeze"] = self._frozen_in.pop(number, 0.0)
        written, problem = self._edit(planned, last, clock)
        superseded, scores, measurement = 0, None, None
        stop = self.rules.check_write(problem, written.change if written else None)
        if written is not None:
            if written.left_out:
                log.warning("round %d: %s", number, written.why_left_out())
            superseded = self.history.add(number, requests)
            self._state = None  # what was measured before this round
            if problem is None:
                untouched = not self._changed and not written.changed
                self._state = measured = self._measured(untouched)
                with self._phase("measure", clock):
                    scores = measure_round(self.protocol, measured, self.history, number)
                    if self.protocol.is_due(number):
                        measurement = measure_all(self.protocol, measured, self.history, number)
            if measurement and not stop:
                first = next((x["measurement"] for x in self._log if x["measurement"]), None)
                stop = self.rules.check_scores(measurement, self._base, first)
        kept = written is not None
        if stop is not None:
            log.warning("round %d: %s is %s, bound %s: %s", number, stop["rule"], stop["value"],
                        stop["bound"], stop["action"])  # fmt: skip
            if kept and stop["action"] == "undo":
                self.backend.undo()
                self.history.take_back(number)
                kept, self._state = False, None
        line = new_line(number, requests, written, self._n_files + 1 if kept else None)
        line |= {
            "repeats": planned.repeats, "superseded": superseded, "scores": scores,
            "measurement": measurement, "stop": stop,
        }  # fmt: skip
        with self._phase("write", clock):
            if kept:
                with explained(self.run_dir, WAY_OUT):
                    path, line["sha256"] = self.backend.save(self.run_dir, self._n_files + 1)
                    self._per_round = max(self._per_round, path.stat().st_size)
            line["seconds"] = {**clock, "total": sum(clock.values())}
            self._log.append(line)
        self._n_files += kept
        self._changed |= line["changed"]
        self._tell("round", **line)
        return line

    def _finish(self, last: RoundLine | None) -> RunResult:
        number = last["round"] if last else 0
        stop = last["stop"] if last else None
        status = status_of(stop, self._changed)
        final = read_final(self.run_dir)
        if final is None or final["rounds"] != number or final["status"] != status:
            final = {
                "status": status,
                "rounds": number,
                "edits": len(self.history),
                "in_effect": len(self.history.in_effect()),
                "repeats": self.rounds.repeats,
                "stop": stop if ends(stop) else None,
                "measurement": self._final_measurement(last, status),
            }
            self._folder.finish(final)
        if status == "nothing_written" and self.backend.changes_model:
            known = ((final["measurement"] or {}).get("all") or {}).get("efficacy") == 1
            why = (
                "All edits were in effect before"
                if known
                else "Settings of another model seldom carry over: nse tune finds some for this one"
            )
            log.warning("%s: no round changed the model; the requests of each round are in %s with "
                        "their outcomes. %s", self.run_dir, ROUNDS, why)  # fmt: skip
        self._tell("end", **final)
        return RunResult(status, final, RunFiles(self.run_dir))

    def _final_measurement(self, last: RoundLine | None, status: RunStatus) -> Measurement | None:
        """The measurement after the last round; None if that left a value that is not finite."""
        self._tell("phase", name="final measurement")
        number = last["round"] if last else 0
        stop = last["stop"] if last else None
        if status == "stopped" and stop is not None and stop["rule"] == "non_finite":
            return None
        tested = number - (status == "collapsed")  # whose last round was undone
        state = self._as_measured(tested)
        measurement = last["measurement"] if last else None
        if measurement is None or tested < number:
            measurement = measure_all(self.protocol, state, self.history, tested)
        return {**measurement, **measure_answers(self.protocol, state, self.history, tested)}

    # --- helpers ----------------------------------------------------------------------------------

    def _as_measured(self, number: int) -> MeasuredModel:
        """The model after the last round, with the answers from which its own scores are made."""
        if self._state is not None:
            return self._state
        measured = self._measured(untouched=not self._changed)
        # in the same batches as in an uninterrupted run, so that the results agree to the bit
        measured.answers(self.history.edits(self.history.of_round(number)), self.protocol)
        return measured

    def _measured(self, untouched: bool) -> MeasuredModel:
        backend = self.backend
        return MeasuredModel(
            backend.model, backend.tokenizer, backend.originals(), backend.keys, self._held_out,
            untouched, self._base,
        )  # fmt: skip

    @contextmanager
    def _phase(self, name: str, clock: dict[str, float]) -> Iterator[None]:
        self._tell("phase", name=name)
        start = time.perf_counter()
        yield
        clock[name] = time.perf_counter() - start

    def _tell(self, event: str, **facts: Any) -> None:
        for listener in self._listeners:
            listener(event, facts)
