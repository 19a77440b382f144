"""Which edits of a long stream fail, and when: read from finished runs or a comparison's cells.

    nse compare --methods NSE,NSE:repair,MEMIT:previous-keys --models smollm2-135m --out streams \\
        --data counterfact.json --limit 300 --rounds 15
    python benchmarks/real_streams.py streams/cells/smollm2-135m/*/0

With ``--solve`` the model of each run is loaded, and all edits are tested again: as they are, after
a consolidation, and after consolidations with ``--repairs``, for every ``consolidation_weight`` of
``--weights`` and ``other_token_weight`` of ``--other-tokens``; also with h *set* to each edit's
value, where a failure is one of the value and not of the write.  Rows in the results file are not
measured again.

With ``--by-place``, the final efficacy is also shown by the position of the subject's last token,
for runs with scores of each edit, such as the cells of comparisons.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from nse_plugin.compare.specs import UNTOUCHED
from nse_plugin.data.models import model_place
from nse_plugin.data.streams import held_out_texts
from nse_plugin.errors import DataError
from nse_plugin.evaluation.metrics import Answered, ask, summarise
from nse_plugin.evaluation.model_state import perplexity, relative_change
from nse_plugin.evaluation.questions import mean
from nse_plugin.evaluation.settings import GROUPS, Protocol
from nse_plugin.files import write_json
from nse_plugin.locate.keys import Lookups
from nse_plugin.locate.rows import Rows
from nse_plugin.methods.bookkeeping import rows_of
from nse_plugin.methods.consolidate import consolidate
from nse_plugin.methods.registry import hparams_from
from nse_plugin.model.hooks import quiet
from nse_plugin.model.prompts import encode_request
from nse_plugin.requests import EditRequest
from nse_plugin.runs.reading import RunFiles
from nse_plugin.runs.reopen import open_run

Row = tuple[int | None, float, float]
"""``repair_rounds``, ``consolidation_weight`` and ``other_token_weight`` of a consolidation; None
repairs: edits as they are."""


def settings_of_rows(
    weights: Sequence[float], others: Sequence[float], repairs: Sequence[int]
) -> dict[str, Row]:
    """The settings of every row, by its name."""
    found: dict[str, Row] = {"as run": (None, 1.0, 0.0)}
    for other in others:
        name = f"consolidated, other tokens {other:g}" if other else "consolidated"
        found[name] = (0, 1.0, other)
        for weight in weights:
            found |= {f"{name}, lambda x {weight:g}, repairs: {n}": (n, weight, other)
                      for n in repairs}  # fmt: skip
    return found


class Run:
    """A finished run, its model and its edits."""

    def __init__(
        self, folder: Path, device: str | None, stats_dir: str | None, held_out: str
    ) -> None:
        self.files = RunFiles(folder)
        place = {} if stats_dir is None else {"stats_dir": stats_dir}
        self.hparams = hparams_from(folder, {**self.files.hparams, **place})
        self.model, self.session = open_run(folder, device)
        self.session.untouched.use_contexts(self.hparams, self.files.manifest["contexts"])
        protocol = Protocol.from_dict(self.files.manifest["run"]["protocol"])
        self.protocol = replace(protocol, negation=False, distractor=False)
        self.requests: list[EditRequest] = []
        self.frozen: list[Answered] = []
        for line in self.files.lines:
            requests, answers = self.files.frozen.read(line["round"])
            self.requests += requests
            self.frozen += [{group: each[group] for group in GROUPS} for each in answers]
        texts = held_out_texts(held_out, str(self.files.model_name), self.requests)
        self.texts = texts[: protocol.perplexity]

    def row(self, repairs: int | None, weight: float, other: float) -> dict[str, Any]:
        """One row; the session is as before."""
        start = time.process_time()
        if repairs is not None:
            settings = replace(self.hparams, consolidation_weight=weight, other_token_weight=other)
            consolidate(self.session, settings, repairs)
        seconds = time.process_time() - start
        found = self.measured() | {"cpu_seconds": seconds}
        if repairs is not None:
            self.session.undo_last()
        return found

    def measured(self) -> dict[str, Any]:
        """Scores of all edits and of the first and last tenth, and how far the values are."""
        session, n = self.session, len(self.requests)
        answers = ask(self.model, session.tokenizer, self.requests, self.protocol)
        texts = {request.text for request in self.requests}

        def efficacy(some: slice) -> Any:
            return summarise(answers[some], self.frozen[some])["efficacy"]

        outcomes = [outcome for record in session.ledger for outcome in record.outcomes]
        return {
            **summarise(answers, self.frozen, texts),
            "first_tenth": efficacy(slice(0, n // 10)),
            "last_tenth": efficacy(slice(n - n // 10, n)),
            "repaired": sum(outcome.repairs > 0 for outcome in outcomes),
            **self._of_values(),
            "perplexity": (
                perplexity(self.model, session.tokenizer, self.texts) if self.texts else None
            ),
            "relative_change": {
                name: relative_change(session.weights.original(name), weight)
                for name, weight in self.model.named_parameters()
                if name in session.weights.names()
            },
        }

    def _of_values(self) -> dict[str, float]:
        """Residuals at the end, and the share of edits that are in effect where h is the value."""
        session = self.session
        of = {r.digest(): z for record in session.ledger for r, z in zip(record.requests, record.z)}
        chosen = [r for r in self.requests if r.without_probes().digest() in of]
        z = torch.stack([of[r.without_probes().digest()] for r in chosen])
        z_layer = self.hparams.layers[-1]
        rows = rows_of(session, chosen, self.hparams)
        lookups = Lookups.of(session.layout, rows, 8192)
        h = lookups.activations(z_layer)
        with session.rewound():
            h_original = lookups.activations(z_layer)
            in_original = self._given_with(rows, z)
        residual = ((z - h).norm(dim=1) / (z - h_original).norm(dim=1)).mean()
        return {
            "residual": float(residual),
            "given_with_h_set_to_z": self._given_with(rows, z),
            "given_with_h_set_to_z_in_the_original": in_original,
        }

    @torch.no_grad()
    def _given_with(self, rows: list[Rows], z: torch.Tensor) -> float:
        """Share of edits given where the z-layer's output at the edited token is z [n, d_model]."""
        session = self.session
        block = session.layout.blocks[self.hparams.layers[-1]]
        given = 0
        for one, value in zip(rows, z):
            encoded = one.rewriting[0]

            def put(_module: Any, _inputs: Any, output: Any) -> None:
                hidden = output[0] if isinstance(output, tuple) else output
                hidden[0, encoded.subject_last] = value  # noqa: B023  (called in this turn)

            handle = block.register_forward_hook(put)
            try:
                with quiet(self.model):
                    logits = self.model(torch.tensor([encoded.ids])).logits[0]
            finally:
                handle.remove()
            said = logits[encoded.n_prompt - 1 : -1].argmax(dim=1).tolist()
            given += said == list(encoded.target_ids)
        return given / len(rows)


def thirds(folder: Path) -> dict[str, Any]:
    """Efficacy of each third of the rounds, right after their write and at the end."""
    files = RunFiles(folder)
    final = files.final
    if final is None or final["measurement"] is None:
        raise DataError(f"{folder} is not finished; resume it first")
    at_end = {row["edited"]: row for row in final["measurement"]["retention"]}
    lines = [line for line in files.lines if line["scores"] is not None]
    size = -(-len(lines) // 3)
    found: dict[str, Any] = {"method": files.manifest["run"]["method"]}
    for name, some in zip(
        ("first", "middle", "last"), (lines[:size], lines[size : 2 * size], lines[2 * size :])
    ):
        n = sum(line["edits"] for line in some)
        after = sum(line["edits"] * line["scores"]["efficacy"] for line in some) / n
        end = sum(line["edits"] * at_end[line["round"]]["efficacy"] for line in some) / n
        found[name] = {"right_after": after, "at_the_end": end}
    edits = [line["edit"] for line in lines if line["edit"]]
    for name in ("repaired", "written_again"):
        found[name] = sum(edit.get(name, 0) for edit in edits)
    found["all"] = final["measurement"]["all"]
    found["perplexity"] = final["measurement"].get("perplexity")
    found["seconds_per_edit"] = {
        name: sum(edit["seconds"].get(name, 0.0) for edit in edits) / final["edits"]
        for name in sorted({name for edit in edits for name in edit["seconds"]})
    }
    return found


def by_place(folder: Path) -> dict[str, tuple[int, float]]:
    """Edits, and efficacy at the end, by the number of tokens up to the subject's last."""
    files = RunFiles(folder)
    measured = (files.final or {})["measurement"]
    given = {row["case_id"]: row["efficacy"] for row in measured["each"]}
    tokenizer = AutoTokenizer.from_pretrained(
        model_place(str(files.model_name)), trust_remote_code=False
    )
    found: dict[int, list[float]] = {2: [], 3: [], 4: [], 5: []}
    for request in (r for requests in files.requests().values() for r in requests):
        if request.case_id in given:
            place = len(encode_request(tokenizer, request).up_to_subject)
            found[min(max(place, 2), 5)].append(given[request.case_id])
    names = ("2 and fewer", "3", "4", "5 and more")
    return {name: (len(some), mean(some) or 0.0) for name, some in zip(names, found.values())}


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    parser.add_argument("--solve", action="store_true", help="also with all edits solved jointly")
    parser.add_argument("--weights", type=float, nargs="+", default=[10.0], metavar="X",
                        help="factors of lambda in a consolidation that repairs")  # fmt: skip
    parser.add_argument("--other-tokens", type=float, nargs="+", default=[0.0], metavar="W",
                        help="weights of the prompts' other tokens; 0 is without")  # fmt: skip
    parser.add_argument("--repairs", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--by-place", action="store_true", help="also by where the subject ends")
    parser.add_argument("--out", type=Path, default=Path("real-streams.json"))
    parser.add_argument("--stats-dir", help="instead of the usual place")
    parser.add_argument("--held-out", default="none", help="texts for the perplexity with --solve")
    parser.add_argument("--device")
    options = parser.parse_args()
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    print("| run | first third | middle | last | paraphrase | locality | perplexity | repaired |")
    print("|---|---|---|---|---|---|---|---|")
    for folder in (run for run in options.runs if run.parent.name != UNTOUCHED):
        name = "/".join(folder.parts[-2:]) if folder.name.isdigit() else folder.name
        rows = found.setdefault(name, {})
        rows["thirds"] = thirds(folder)
        print(f"| {name} | " + " | ".join(cells(rows["thirds"])) + " |", flush=True)
        if options.by_place:
            rows["by_place"] = by_place(folder)
            places = rows["by_place"].items()
            shares = [f"{place}: {n} edits, {100 * share:.1f}%" for place, (n, share) in places]
            print(name, "tokens up to the subject's last", *shares, sep=" | ", flush=True)
        run = None
        wanted = settings_of_rows(options.weights, options.other_tokens, options.repairs)
        for row, settings in wanted.items() if options.solve else ():
            if row not in rows:
                run = run or Run(folder, options.device, options.stats_dir, options.held_out)
                rows[row] = run.row(*settings)
                write_json(options.out, found)
            print(name, row, *shown(rows[row]), sep=" | ", flush=True)
    write_json(options.out, found)


def cells(row: dict[str, Any]) -> list[str]:
    """Cells of the table."""
    halves = [f"{100 * row[n]['right_after']:.1f} -> {100 * row[n]['at_the_end']:.1f}" for n in
              ("first", "middle", "last")]  # fmt: skip
    scores = [f"{100 * row['all'][name]:.1f}" for name in ("paraphrase", "locality")]
    perplexity = "-" if row["perplexity"] is None else f"{row['perplexity']:.2f}"
    return [*halves, *scores, perplexity, str(row["repaired"] + row["written_again"])]


def shown(row: dict[str, Any]) -> list[str]:
    """Cells of a solved row."""
    names = ("efficacy", "paraphrase", "locality", "first_tenth", "last_tenth", "residual",
             "given_with_h_set_to_z", "given_with_h_set_to_z_in_the_original")  # fmt: skip
    changes = " ".join(f"{value:.2f}" for value in row["relative_change"].values())
    ppl = "-" if row["perplexity"] is None else f"{row['perplexity']:.2f}"
    return [*(f"{row[name]:.3f}" for name in names), str(row["repaired"]), ppl, changes]


if __name__ == "__main__":
    main()
