"""``nse stats`` and ``nse doctor``: what a machine has."""

from __future__ import annotations

import argparse

_DEFAULT_STATS = "./data/stats"


def add_stats(commands: argparse._SubParsersAction) -> None:
    """Add ``stats`` to the subcommands."""
    stats = commands.add_parser(
        "stats",
        help="compute the covariance statistics that hparams ask for",
        epilog="example: nse stats --hparams NSE/gpt2-xl --source self --samples 10000 --npz",
    )
    stats.add_argument(
        "--hparams", required=True, help="name or path of the YAML of a method that asks for them"
    )
    stats.add_argument("--model", help="model to load instead of the YAML's model_name")
    stats.add_argument("--device", help="cpu, or the number of a GPU, instead of the YAML's")
    stats.add_argument("--source", help="self, atlas, a text file or a datasets name")
    stats.add_argument("--samples", type=int, help="number of texts")
    stats.add_argument("--stats-dir", help="folder of the statistics")
    stats.add_argument("--npz", action="store_true", help="also write EasyEdit's .npz files")
    stats.add_argument("--recompute", action="store_true", help="do not read what is there")
    stats.set_defaults(call=_stats)


def _stats(options: argparse.Namespace) -> int:
    from nse_plugin.cli.stats import make_statistics

    moments = make_statistics(
        options.hparams,
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


def add_doctor(commands: argparse._SubParsersAction) -> None:
    """Add ``doctor`` to the subcommands."""
    doctor = commands.add_parser("doctor", help="say what was found on this machine")
    doctor.add_argument("--stats-dir", default=_DEFAULT_STATS, help="folder of the statistics")
    doctor.set_defaults(call=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from nse_plugin.cli.doctor import report

    rows = report(options.stats_dir)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}s}  {value}")
    return 0
