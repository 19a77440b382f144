"""``nse demo`` and ``nse run``: editing."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_demo(commands: argparse._SubParsersAction) -> None:
    """Add ``demo`` to the subcommands."""
    demo = commands.add_parser(
        "demo",
        help="edit the embedded world in rounds and measure",
        epilog="example: nse demo --model atlas:llama --edits 200 --rounds 10 --out run1",
    )
    demo.add_argument("--model", default="atlas:gpt2", help="atlas:gpt2 (default) or atlas:llama")
    demo.add_argument("--edits", type=int, default=100, help="how many facts (default 100)")
    demo.add_argument("--rounds", type=int, default=10, help="in how many rounds (default 10)")
    demo.add_argument("--seed", type=int, default=0, help="which facts (default 0)")
    demo.add_argument(
        "--out", type=Path, default=Path("run-demo"), help="folder of the run (default run-demo)"
    )
    demo.set_defaults(call=_demo)


def _demo(options: argparse.Namespace) -> int:
    from nse_plugin.runs.demo import Demo

    demo = Demo(options.model, options.edits, options.rounds, options.seed, options.out, print)
    summary = demo.run()
    print(
        f"\nafter {summary.rounds} rounds: efficacy {summary.efficacy:.1%}, "
        f"paraphrase {summary.paraphrase:.1%}, untouched facts {summary.untouched:.1%}, "
        f"first round {summary.retention_first:.1%}, {summary.seconds_per_edit:.3f} s per edit"
    )
    print(
        f"written to {options.out}: summary.json, rounds.jsonl, manifest.json, round-*.safetensors"
    )
    return 0


def add_run(commands: argparse._SubParsersAction) -> None:
    """Add ``run`` to the subcommands."""
    run = commands.add_parser(
        "run",
        help="edit a stream of facts in rounds; the same command goes on after an interrupt",
        epilog="example: nse run --hparams NSE/atlas-gpt2 --data atlas:200 --round-size 20 "
        "--every 2 --out run1",
    )
    run.add_argument("--config", type=Path, help="YAML with any of these; options go before it")
    run.add_argument("--hparams", help="name or path of a method's YAML")
    run.add_argument("--data", help="a benchmark's JSON file, atlas or atlas:200")
    run.add_argument("--round-size", type=int, help="edits per round (default 100)")
    run.add_argument("--out", help="folder of the run (default run)")
    run.add_argument("--model", help="another model than that of the hparams")
    run.add_argument("--order", help="given (default), shuffled or grouped")
    run.add_argument("--seed", type=int, help="of order, samples and atlas (default 0)")
    run.add_argument("--limit", type=int, help="the first so many records")
    run.add_argument("--every", type=int, help="measure all earlier edits every so many rounds")
    run.add_argument("--held-out", help="text file for the perplexity, atlas or none")
    run.add_argument("--on-collapse", help="undo (default), stop or continue")
    run.add_argument("--max-perplexity", type=float, help="a round past it is a collapse")
    run.add_argument("--min-retention", type=float, help="0 to 1; below it is a collapse")
    run.add_argument(
        "--tensorboard", action="store_true", default=None, help="scalars to OUT/tensorboard"
    )
    run.add_argument("--wandb", metavar="PROJECT", help="log to Weights & Biases")
    run.set_defaults(call=_run)


def _run(options: argparse.Namespace) -> int:
    from nse_plugin.runs.settings import RunSettings
    from nse_plugin.runs.start import run

    plain = ("hparams", "data", "round_size", "out", "model", "order", "seed", "limit",
             "held_out", "tensorboard", "wandb")  # fmt: skip
    rules = ("on_collapse", "max_perplexity", "min_retention")
    given = {name: getattr(options, name) for name in plain}
    given["protocol"] = {"every": options.every}
    given["stop"] = {name: getattr(options, name) for name in rules}
    settings = RunSettings.read(options.config, given)
    result = run(settings, print)
    final = result.final
    scores = (final["checkpoint"] or {}).get("all") or {}
    shown = ", ".join(
        f"{name} {scores[name]:.1%}"
        for name in ("efficacy", "paraphrase", "portability", "locality")
        if scores.get(name) is not None
    )
    print(f"{result.status}: {final['edits']} edits in {final['rounds']} rounds; {shown}")
    print(
        f"written to {settings.out}: final.json, rounds.jsonl, manifest.json, round-*.safetensors"
    )
    return 0 if result.status == "complete" else 3
