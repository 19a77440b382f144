"""Retention of 200 edits in 10 and 40 rounds on both embedded models.

Writes end scores, perplexity and the retention matrices to a file; docs/retention.md has a part.

    python benchmarks/retention.py [--edits 200] [--rounds 10 40] [--models gpt2 llama] [--out FILE]
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from pathlib import Path

import torch

from nse_plugin.files import write_text
from nse_plugin.runs.reading import RunResult
from nse_plugin.runs.settings import RunSettings
from nse_plugin.runs.start import run
from nse_plugin.version import __version__

N_SHOWN = 10
"""Rows and columns of a matrix that are shown, at most."""


def one_run(model: str, edits: int, rounds: int, folder: Path) -> tuple[RunResult, float]:
    """A run in a fresh folder, and its editing seconds."""
    settings = RunSettings(
        hparams=f"NSE/atlas-{model}",
        data=f"atlas:{edits}",
        round_size=-(-edits // rounds),
        out=str(folder),
        protocol={"every": max(1, rounds // N_SHOWN)},
    )
    result = run(settings, print)
    return result, sum(line["seconds"]["edit"] for line in result.files.lines)


def end_scores(results: dict[tuple[str, int], tuple[RunResult, float]]) -> str:
    """The table of the scores after the last round, over all edits."""
    names = ("efficacy", "paraphrase", "portability", "locality")
    lines = [
        "| model | rounds x edits | " + " | ".join(names)
        + " | new likelier than true | free text: exact | contains | natural stop"
        " | perplexity, before -> after | key space used | seconds per edit |",
        "|---" * 13 + "|",
    ]  # fmt: skip
    for (model, rounds), (result, seconds) in results.items():
        point = result.final["measurement"]
        scores, text = point["all"], point["generation"]
        before = result.files.manifest["base"]["perplexity"]
        cells = [
            f"atlas:{model}",
            f"{rounds} x {result.final['edits'] // rounds}",
            *(percent(scores[name]) for name in names),
            percent(scores["efficacy_probability"]),
            *(percent(text[name]) for name in ("exact", "contains", "natural_stop")),
            f"{before:.3f} -> {point['perplexity']:.3f}",
            ", ".join(f"layer {k}: {percent(v)}" for k, v in point["key_share"].items()),
            f"{seconds / result.final['edits']:.3f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def matrix(result: RunResult, score: str) -> str:
    """Rounds edited down, rounds tested across, in percent; of many, some at even distances."""
    table = result.files.retention_matrix(score)
    tested = evenly(sorted(table))
    edited = evenly(sorted(table[tested[-1]]))
    lines = [
        "| edited in \\ after | " + " | ".join(map(str, tested)) + " |",
        "|---" * (len(tested) + 1) + "|",
    ]
    for row in edited:
        cells = [percent(table[column][row]) if row in table[column] else "" for column in tested]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def evenly(values: list[int]) -> list[int]:
    """At most ``N_SHOWN`` of them, the last one always."""
    step = -(-len(values) // N_SHOWN)
    return values[::-1][::step][::-1]


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return "-" if value is None else f"{100 * value:.1f}"


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--edits", type=int, default=200)
    parser.add_argument("--rounds", type=int, nargs="+", default=[10, 40])
    parser.add_argument("--models", nargs="+", default=["gpt2", "llama"])
    parser.add_argument("--out", type=Path, default=Path("retention.md"))
    options = parser.parse_args()
    start = time.perf_counter()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            for rounds in options.rounds:
                place = Path(folder) / f"{model}-{rounds}"
                results[model, rounds] = one_run(model, options.edits, rounds, place)
        page = [
            "# Retention: how much of the earlier edits remains after later rounds",
            "",
            f"{options.edits} edits of the embedded world with NSE, where every earlier edit is "
            "tested again after later rounds. Scores are in percent, over all edits, after the "
            "last round; they are defined in `nse_plugin/evaluation/metrics.py`.",
            "",
            end_scores(results),
        ]
        for (model, rounds), (result, _) in results.items():
            for score in ("efficacy", "paraphrase", "locality"):
                page += ["", f"## atlas:{model}, {rounds} rounds: {score}", ""]
                page += [matrix(result, score)]
    page += [
        "",
        "Made by `python benchmarks/retention.py` in "
        f"{(time.perf_counter() - start) / 60:.1f} minutes on {torch.get_num_threads()} CPU "
        f"thread(s), nse_plugin {__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}.",
    ]
    write_text(options.out, "\n".join(page) + "\n")
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
