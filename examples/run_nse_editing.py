"""Edit facts of a benchmark file with NSE and measure before and after, as EasyEdit's examples do.

    python examples/run_nse_editing.py                     # the embedded model and its own facts
    python examples/run_nse_editing.py --sequential_edit   # keep every edit; ask again at the end

    python examples/run_nse_editing.py --hparams_dir NSE/llama3-8b --data_dir counterfact.json \\
        --ds_size 100 --output_dir outputs --sequential_edit

It runs inside EasyEdit where there is one (importable, or EASYEDIT_ROOT names a checkout), else on
the embedded host.  Two scores stand side by side: the share of answer tokens that are the first
choice under teacher forcing (EasyEdit's ``rewrite_acc``), and the share of answers that greedy
decoding gives in full.  The first is high before any edit where answers begin alike.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pandas import DataFrame

from nse_plugin import BaseEditor, EditRequest, NSEHparams, __version__
from nse_plugin.data import atlas
from nse_plugin.data.readers import parse_records
from nse_plugin.errors import DataError, NSEPluginError
from nse_plugin.files import write_json
from nse_plugin.host import host, read_records
from nse_plugin.model.answers import Answers, score_answers

Score = tuple[float, float]
"""Of one question: token accuracy, and 1.0 where the whole answer is right."""
Scores = dict[str, list[Score]]
"""By metric, e.g. ``rewrite`` or ``locality.neighborhood``."""


def main() -> None:
    """Read, edit, measure, write."""
    options = parse_arguments()
    hparams = NSEHparams.from_hparams(options.hparams_dir)
    requests = read_requests(options.data_dir, options.ds_size)
    make_folder(options.output_dir)
    results = run(hparams, requests, options.sequential_edit)
    path = options.output_dir / f"{Path(options.hparams_dir).stem}-results.json"
    write_json(path, results)
    print(table(results["means"]))
    print(f"written to {path}")


def parse_arguments() -> argparse.Namespace:
    """The arguments of EasyEdit's example scripts, with defaults that run anywhere."""
    parser = argparse.ArgumentParser(description="Edit facts with NSE and measure.")
    parser.add_argument(
        "--hparams_dir", default="NSE/atlas-gpt2", help="a shipped YAML by name, or a path"
    )
    parser.add_argument(
        "--data_dir", type=Path, help="JSON file, or a folder with one (default: embedded facts)"
    )
    parser.add_argument("--ds_size", type=int, default=10, help="how many edits (default 10)")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("run-nse-editing"), help="folder of the results"
    )
    parser.add_argument(
        "--sequential_edit", action="store_true", help="keep every edit; else each is taken back"
    )
    return parser.parse_args()


def read_requests(data: Path | None, size: int) -> list[EditRequest]:
    """The first requests of a file, of the only JSON file of a folder, or of the embedded world."""
    if size < 1:
        raise DataError(f"--ds_size is {size}; give a number of edits above 0")
    if data is None:
        return parse_records(atlas.edit_set(size))
    if data.is_dir():
        files = sorted(path for path in data.iterdir() if path.suffix in (".json", ".jsonl"))
        if len(files) != 1:
            names = ", ".join(path.name for path in files) or "none"
            raise DataError(f"{data} is a folder with {len(files)} JSON files ({names}); name one")
        data = files[0]
    return read_records(data, limit=size)[:size]


def make_folder(folder: Path) -> None:
    """Make the folder before the work, so that an error comes first."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--output_dir {folder} cannot be made ({error.strerror})") from error


def run(hparams: NSEHparams, requests: Sequence[EditRequest], sequential: bool) -> dict[str, Any]:
    """Edit by the host's ``edit`` and gather all scores."""
    editor = BaseEditor.from_hparams(hparams)
    before = ask(editor.model, editor.tok, requests)
    start = time.perf_counter()
    metrics, model, _ = editor.edit(
        **edit_arguments(requests), sequential_edit=sequential, verbose=False
    )
    seconds = time.perf_counter() - start
    columns = {
        "before": scores(before),
        "after its own edit": host_scores(metrics),
    }
    if sequential:  # otherwise the host has put the original weights back
        end = ask(model, editor.tok, requests)
        columns["after the last edit"] = scores(end, compared_with=before)
    return {
        "run_info": {
            "version": __version__,
            "host": host(),
            "sequential_edit": sequential,
            "edits": len(requests),
            "seconds": seconds,
            "hparams": hparams.to_dict(),
        },
        "means": {
            column: {metric: mean_score(values) for metric, values in found.items()}
            for column, found in columns.items()
        },
        "cases": json.loads(json.dumps(metrics, default=float)),  # numpy's numbers as plain ones
    }


def edit_arguments(requests: Sequence[EditRequest]) -> dict[str, Any]:
    """The parallel lists that ``edit`` takes; a request without some probe has None there."""
    arguments: dict[str, Any] = {
        "prompts": [request.text for request in requests],
        "subject": [request.subject for request in requests],
        "target_new": [request.target_new for request in requests],
        "ground_truth": [request.ground_truth for request in requests],
        "locality_inputs": probe_columns([request.locality for request in requests]),
        "portability_inputs": probe_columns([request.portability for request in requests]),
    }
    if all(request.rephrase_prompts for request in requests):
        arguments["rephrase_prompts"] = [request.rephrase_prompts[0] for request in requests]
    return arguments


def probe_columns(groups: Sequence[Any]) -> dict[str, dict[str, list[Any]]]:
    """``{kind: {"prompt": one entry per request, "ground_truth": the same}}``."""
    return {
        kind: {
            "prompt": [[p.prompt for p in g[kind]] if kind in g else None for g in groups],
            "ground_truth": [[p.answer for p in g[kind]] if kind in g else None for g in groups],
        }
        for kind in sorted({kind for group in groups for kind in group})
    }


def ask(model: Any, tokenizer: Any, requests: Sequence[EditRequest]) -> dict[str, Answers]:
    """Score every question of the requests, by metric."""
    questions: dict[str, list[tuple[str, str]]] = {"rewrite": [], "rephrase": []}
    for request in requests:
        questions["rewrite"].append((request.text, request.target_new))
        for prompt in request.rephrase_prompts[:1]:
            questions["rephrase"].append((prompt, request.target_new))
        for section in ("locality", "portability"):
            for kind, probes in getattr(request, section).items():
                pairs = [(probe.prompt, probe.answer) for probe in probes]
                questions.setdefault(f"{section}.{kind}", []).extend(pairs)
    return {
        metric: score_answers(model, tokenizer, *map(list, zip(*pairs)))
        for metric, pairs in questions.items()
        if pairs
    }


def scores(answers: dict[str, Answers], compared_with: dict[str, Answers] | None = None) -> Scores:
    """Scores by metric; locality compares with the answers before the edits, not with the truth."""
    found: Scores = {}
    for metric, now in answers.items():
        if not metric.startswith("locality"):
            found[metric] = list(zip(now.token_accuracy, map(float, now.exact)))
        elif compared_with is not None:
            pairs = zip(compared_with[metric].predicted, now.predicted)
            same = [[a == b for a, b in zip(*pair)] for pair in pairs]
            found[metric] = [(fmean(hits), float(all(hits))) for hits in same if hits]
    return found


def host_scores(metrics: Iterable[dict[str, Any]]) -> Scores:
    """The host's token accuracies after each edit.

    Where all of an answer's tokens are the first choice under teacher forcing, greedy decoding
    writes just that answer, so the second score follows from the first.
    """
    found: Scores = {}
    for metric in metrics:
        post = metric["post"]
        values = {name: post.get(f"{name}_acc", []) for name in ("rewrite", "rephrase")}
        for section in ("locality", "portability"):
            for key, value in post.get(section, {}).items():
                if key.endswith("_acc"):
                    values[f"{section}.{key.removesuffix('_acc')}"] = value
        for name, shares in values.items():
            if len(shares):
                found.setdefault(name, []).extend((float(x), float(x == 1)) for x in shares)
    return found


def mean_score(values: Sequence[Score]) -> dict[str, float]:
    """Means over the questions; those whose answer has no token are left out."""
    return DataFrame(values, columns=["tokens", "exact"]).dropna().mean().to_dict()


def table(means: dict[str, dict[str, dict[str, float]]]) -> str:
    """A row per metric and a column per time: token accuracy / exact, in percent."""
    metrics = list(dict.fromkeys(metric for column in means.values() for metric in column))
    lines = [" " * 28 + "".join(f"{column:>21s}" for column in means)]
    lines.append(f"{'percent':28s}" + f"{'tokens / exact':>21s}" * len(means))
    for metric in metrics:
        cells = [
            f"{100 * s['tokens']:.1f} / {100 * s['exact']:.1f}" if s else "-"
            for s in (column.get(metric) for column in means.values())
        ]
        lines.append(f"{metric:28s}" + "".join(f"{cell:>21s}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except NSEPluginError as error:
        sys.exit(f"run_nse_editing.py: {error}")
