"""``nse inspect`` and ``nse overfit``: seeing what editing does."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_inspect(commands: argparse._SubParsersAction) -> None:
    """Add ``inspect`` to the subcommands."""
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
    from nse_plugin.report.inspection import inspect

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


def add_overfit(commands: argparse._SubParsersAction) -> None:
    """Add ``overfit`` to the subcommands."""
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
    from nse_plugin.report.overfit import overfit

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
