"""The command ``nse``: parses, calls, prints; no logic of its own."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from nse_plugin.cli.compare import add_compare
from nse_plugin.cli.edit import add_demo, add_run
from nse_plugin.cli.keep import add_export, add_undo
from nse_plugin.cli.look import add_inspect, add_overfit
from nse_plugin.cli.machine import add_doctor, add_stats
from nse_plugin.errors import NSEPluginError
from nse_plugin.version import __version__


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
    from nse_plugin.easyedit.checkout import make_torchvision_importable

    call: Callable[[argparse.Namespace], int] = options.call
    try:
        make_torchvision_importable()  # EasyEdit may be the host; before transformers is imported
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
    for add in (
        add_demo,
        add_run,
        add_compare,
        add_inspect,
        add_overfit,
        add_undo,
        add_export,
        add_stats,
        add_doctor,
    ):
        add(commands)
    return parser
