"""A stream of one-fact rounds on a tiny random model: do memory and time per round stay flat?

    python -m benchmarks.stream [--rounds 2000] [--d-ff 256] [--merge-subjects] [--out FILE.json]

With ``--merge-subjects`` every second fact is one more about the subject before it.  Times are CPU
times, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

from nse_plugin.evaluation.protocol import Protocol
from nse_plugin.requests import EditRequest
from nse_plugin.runs.scheduler import SequentialScheduler
from nse_plugin.session.session import EditSession
from tests.tiny import tiny_hparams, tiny_model, tiny_tokenizer

WORDS = ["Quill", "Garn", "Tellin", "Ostrell", "a baker", "the river", "a doctor"]
WARM = 200
"""Rounds left out of the slopes: allocator and caches settle."""


def facts(n: int, in_pairs: bool) -> Iterator[EditRequest]:
    """An endless kind of stream: no subject twice, or each subject in two rounds."""
    for i in range(n):
        subject = f"Anna {i - i % 2 if in_pairs else i:05d}"
        prompt = "{} knows" if in_pairs and i % 2 else "{} lives in"
        yield EditRequest(i, prompt, subject, WORDS[i % len(WORDS)], WORDS[(i + 1) % 7])


def resident() -> dict[str, float]:
    """Memory of this process in MiB: all of it, and without the mapped files of finished rounds.

    Mapped pages are the system's cache: it takes them back when memory is short.
    """
    status = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in status if line.startswith("VmR")}
    anon = next(line.split()[1] for line in status if line.startswith("RssAnon"))
    return {"all": int(found["VmRSS"]) / 1024, "own": int(anon) / 1024}


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--d-ff", type=int, default=256)
    parser.add_argument("--merge-subjects", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    time.perf_counter = time.process_time  # read by the clocks of the package
    model = tiny_model("gpt2", n_layer=2, n_inner=options.d_ff)
    memory: dict[str, list[float]] = {"all": [], "own": []}
    seconds: dict[str, list[float]] = {}

    def note(event: str, line: Any) -> None:
        if event == "round":
            for kind, value in resident().items():
                memory[kind].append(value)
            for part, value in line["seconds"].items():
                seconds.setdefault(part, []).append(value)
            for part, value in line["edit"]["seconds"].items():
                seconds.setdefault(f"edit.{part}", []).append(value)

    with tempfile.TemporaryDirectory() as folder:
        hparams = tiny_hparams(
            layers=[0, 1], v_num_grad_steps=4, n_contexts=1, max_iterations=1,
            mom2_n_samples=200, stats_dir=f"{folder}/stats",
            merge_subjects=options.merge_subjects,
        )  # fmt: skip
        scheduler = SequentialScheduler(
            EditSession.of(model, tiny_tokenizer()),
            facts(options.rounds, options.merge_subjects),
            1,
            Protocol(every=100, retention=50, generation=5, fluency=2, key_space=128),
            Path(folder) / "run",
            hparams=hparams,
            listeners=[note],
        )
        start = time.perf_counter()
        result = scheduler.run()
        total = time.perf_counter() - start
        disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    warm = min(WARM, options.rounds // 4)
    report = {
        "status": result.status,
        "rounds": result.final["rounds"],
        "d_ff": options.d_ff,
        "seconds": total,
        "disk_mib": disk / 2**20,
        "memory_mib": {
            kind: {
                "first": values[warm],
                "last": values[-1],
                "slope_kib_per_round": slope(values[warm:]) * 1024,
            }
            for kind, values in memory.items()
        },
        "time_ms": {
            part: {
                **{
                    f"round_{n}": 1000 * median(values[n - 10 : n + 10])
                    for n in (20, 500)
                    if n <= options.rounds
                },
                "first_100": 1000 * median(values[warm : warm + 100]),
                "last_100": 1000 * median(values[-100:]),
                "slope_us_per_round": slope(clipped(values[warm:])) * 1e6,
            }
            for part, values in seconds.items()
        },
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def slope(values: list[float]) -> float:
    """Least squares, per round."""
    return linear_regression(range(len(values)), values).slope


def clipped(values: list[float]) -> list[float]:
    """Outliers (another process on the machine) cut to three medians."""
    bound = 3 * median(values)
    return [min(value, bound) for value in values]


if __name__ == "__main__":
    main()
