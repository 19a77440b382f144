"""The command ``nse``: parses, calls, prints; no logic of its own."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nse_plugin.cli_compare import add_compare
from nse_plugin.errors import NSEPluginError
from nse_plugin.version import __version__

_DEFAULT_STATS = "./data/stats"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 is success, 1 an error that was explained, 130 an interrupt.

    3 is a run that a stop rule ended.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    # read when transformers is first imported, which the commands do: its bars are not ours
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    call: Callable[[argparse.Namespace], int] = options.call
    try:
        return call(options)
    except NSEPluginError as error:
        print(f"nse: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nse: interrupted; what was finished is on disk", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nse", description="Edit facts in language models again and again."
    )
    parser.add_argument("--version", action="version", version=f"nse_plugin {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is done")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_run(commands)
    add_compare(commands)
    _add_inspect(commands)
    _add_overfit(commands)
    _add_undo(commands)
    _add_export(commands)
    _add_stats(commands)
    _add_doctor(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction) -> None:
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
    from nse_plugin.commands.demo import Demo

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


def _add_run(commands: argparse._SubParsersAction) -> None:
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
    from nse_plugin.commands.run import RunSettings, run

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


def _add_inspect(commands: argparse._SubParsersAction) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="look at a run: tables, figures, and one page of HTML; needs no model",
        epilog="examples: nse inspect run1 --html run1.html; nse inspect run1 --layer 2; "
        "nse inspect run1 --layer 2 --neuron 42; nse inspect run1 --request 1050",
    )
    inspect.add_argument("run", type=Path, metavar="RUN", help="folder of nse demo or nse run")
    inspect.add_argument("--layer", type=int, help="the neurons of this layer that changed most")
    inspect.add_argument("--neuron", type=int, help="with --layer: who wrote this neuron")
    inspect.add_argument("--request", metavar="CASE_ID", help="what became of it, what it wrote")
    inspect.add_argument("--plot", type=Path, metavar="DIR", help="write the figures as PNG")
    inspect.add_argument(
        "--html", type=Path, metavar="FILE", help="write one page, for offline too"
    )
    inspect.set_defaults(call=_inspect)


def _inspect(options: argparse.Namespace) -> int:
    from nse_plugin.commands.inspect import inspect

    inspect(
        options.run,
        print,
        layer=options.layer,
        neuron=options.neuron,
        request=options.request,
        plot=options.plot,
        html=options.html,
    )
    return 0


def _add_overfit(commands: argparse._SubParsersAction) -> None:
    overfit = commands.add_parser(
        "overfit",
        help="how evenly an edit learns its target's tokens, with and without OVERTONE",
        epilog="examples: nse overfit --hparams NSE/atlas-gpt2; "
        "nse overfit --hparams OVERTONE/NSE/atlas-gpt2 --data atlas:30 --plot tokens.png",
    )
    overfit.add_argument("--hparams", required=True, help="name or path of a method's YAML")
    overfit.add_argument(
        "--against", help="of another; default OVERTONE around it, or OVERTONE's base"
    )
    overfit.add_argument("--data", default="atlas:10", help="atlas:10 (default), or a JSON file")
    overfit.add_argument("--limit", type=int, help="the first so many records")
    overfit.add_argument("--seed", type=int, default=0, help="of the embedded world's draw")
    overfit.add_argument("--model", help="another model than that of the hparams")
    overfit.add_argument("--shown", type=int, default=3, help="edits listed by token (default 3)")
    overfit.add_argument("--plot", type=Path, metavar="FILE", help="PNG of the first edit's tokens")
    overfit.set_defaults(call=_overfit)


def _overfit(options: argparse.Namespace) -> int:
    from nse_plugin.commands.overfit import overfit

    overfit(
        options.hparams,
        print,
        against=options.against,
        data=options.data,
        limit=options.limit,
        seed=options.seed,
        model=options.model,
        shown=options.shown,
        plot=options.plot,
    )
    return 0


def _add_undo(commands: argparse._SubParsersAction) -> None:
    undo = commands.add_parser(
        "undo",
        help="take one round of a run directory back, whichever it is",
        epilog="example: nse undo run1 --round 7 --reason 'wrong source'",
    )
    undo.add_argument("run", type=Path, help="folder of nse demo or nse run")
    undo.add_argument("--round", type=int, required=True, help="number of its round-*.safetensors")
    undo.add_argument("--reason", default="", help="kept in undone.json")
    undo.set_defaults(call=_undo)


def _undo(options: argparse.Namespace) -> int:
    from nse_plugin.commands.undo import undo_round, undone_text

    print(undone_text(options.run, undo_round(options.run, options.round, options.reason)))
    return 0


def _add_export(commands: argparse._SubParsersAction) -> None:
    export = commands.add_parser(
        "export",
        help="write a run's edits as a LoRA adapter, as changed matrices or as a model",
        epilog="example: nse export run1 --to peft --out adapter1 --rank 32",
    )
    export.add_argument("run", type=Path, metavar="RUN", help="folder of nse demo or nse run")
    export.add_argument("--to", required=True, choices=("peft", "delta", "full"))
    export.add_argument("--out", type=Path, required=True, help="a new folder")
    export.add_argument("--rank", type=int, help="upper bound for the adapter's rank")
    export.add_argument("--device", help="cpu, or the number of a GPU, instead of the run's")
    export.set_defaults(call=_export)


def _export(options: argparse.Namespace) -> int:
    from nse_plugin.commands.export import export

    export(options.run, options.to, options.out, print, rank=options.rank, device=options.device)
    return 0


def _add_stats(commands: argparse._SubParsersAction) -> None:
    stats = commands.add_parser(
        "stats",
        help="compute the covariance statistics that hparams ask for",
        epilog="example: nse stats --hparams NSE/gpt2-xl --source self --samples 10000 --npz",
    )
    stats.add_argument("--hparams", required=True, help="name or path of an NSE YAML")
    stats.add_argument("--model", help="model to load instead of the YAML's model_name")
    stats.add_argument("--device", help="cpu, or the number of a GPU, instead of the YAML's")
    stats.add_argument("--source", help="self, atlas, a text file or a datasets name")
    stats.add_argument("--samples", type=int, help="number of texts")
    stats.add_argument("--stats-dir", help="folder of the statistics")
    stats.add_argument("--npz", action="store_true", help="also write EasyEdit's .npz files")
    stats.add_argument("--recompute", action="store_true", help="do not read what is there")
    stats.set_defaults(call=_stats)


def _stats(options: argparse.Namespace) -> int:
    from nse_plugin.commands.stats import make_statistics
    from nse_plugin.hparams import NSEHparams

    moments = make_statistics(
        NSEHparams.from_hparams(options.hparams),
        npz=options.npz,
        recompute=options.recompute,
        model_name=options.model,
        device=options.device,
        mom2_dataset=options.source,
        mom2_n_samples=options.samples,
        stats_dir=options.stats_dir,
    )
    for layer, moment, path in moments:
        where = f", written to {path}" if path else ""
        print(f"layer {layer}: {moment.count} tokens of {moment.n_samples} texts{where}")
    return 0


def _add_doctor(commands: argparse._SubParsersAction) -> None:
    doctor = commands.add_parser("doctor", help="say what was found on this machine")
    doctor.add_argument("--stats-dir", default=_DEFAULT_STATS, help="folder of the statistics")
    doctor.set_defaults(call=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from nse_plugin.commands.doctor import report

    rows = report(options.stats_dir)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}s}  {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
