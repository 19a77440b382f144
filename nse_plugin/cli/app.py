"""The command ``nse``: registration of its subcommands, their calls and exit codes."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer

from nse_plugin.cli.options import with_parameters
from nse_plugin.cli.output import (
    INTERRUPTED,
    be_quiet,
    complain,
    exit_code,
    set_up_logging,
    show_result,
)
from nse_plugin.version import __version__

EDIT, LOOK, KEEP, MACHINE = "Edit", "Look", "Keep or undo", "Prepare"
"""Groups of commands in the help."""

_COMMANDS = ("edit", "demo", "run", "tune", "compare", "ask", "chat", "inspect", "overfit", "undo",
             "consolidate", "export", "models", "stats", "doctor")  # fmt: skip
"""Modules of this folder, in the order of the help."""

# typer.BadParameter is a UsageError, and that a ClickException; where typer keeps them varies
_ClickException: Any = typer.BadParameter.__mro__[2]

_HELP_NAMES = ["-h", "--help"]
_ALIASES = {"on-bad": "on-bad-record"}
"""Shorter names of options, which the help leaves out."""

app = typer.Typer(
    context_settings={
        "help_option_names": _HELP_NAMES,
        "token_normalize_func": lambda name: _ALIASES.get(name, name),
    },
    rich_markup_mode="rich",
)


def command(group: str, epilog: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Make a function a subcommand of its name, with the options ``--quiet`` and ``--no-color``.

    The function returns its exit code; errors that it raises become a line and an exit code.
    """

    def added(function: Callable[..., int]) -> Callable[..., int]:
        paragraphs = [" ".join(text.split()) for text in (function.__doc__ or "").split("\n\n")]

        @app.command(help="\n\n".join(paragraphs), epilog=epilog, rich_help_panel=group)
        @_with_common
        @functools.wraps(function)
        def guarded(**options: Any) -> int:
            # transformers reads this when a command first imports it; we draw our own bars
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
            return exit_code(lambda: function(**options))

        return function

    return added


def command_group() -> Any:
    """The command with all its subcommands."""
    for name in _COMMANDS:
        importlib.import_module(f"nse_plugin.cli.{name}")
    group: Any = typer.main.get_command(app)
    context = typer.Context(group, help_option_names=_HELP_NAMES)
    for each in (group, *group.commands.values()):
        for parameter in (*each.params, each.get_help_option(context)):
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""  # newer versions of typer show a type, as if it took a value
    return group


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (see :func:`nse_plugin.cli.output.exit_code`).

    2 means an invalid command line; 128 + N means that signal N ended the command.
    """
    with signals_interrupt() as came:
        try:
            group = command_group()
            code = int(group.main(arguments, prog_name="nse", standalone_mode=False) or 0)
        except _ClickException as error:
            code = _usage(error)
        except KeyboardInterrupt:  # before a command began, which reports its own
            complain("interrupted")
            code = INTERRUPTED
    return 128 + came[0] if came and code == INTERRUPTED else code


@contextmanager
def signals_interrupt() -> Iterator[list[int]]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does, so that files are closed and child
    processes end; yields the list of signals received.

    Ignored signals (``nohup``) and signals that already have a handler are left alone.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came  # only the main thread may handle signals
        return
    known = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]  # Windows has one
    taken = [n for n in known if n is not None and signal.getsignal(n) is signal.SIG_DFL]

    def end(number: int, _frame: FrameType | None) -> None:
        for other in taken:  # a second signal must not interrupt the cleanup
            signal.signal(other, signal.SIG_IGN)
        came.append(number)
        raise KeyboardInterrupt

    for number in taken:
        signal.signal(number, end)
    try:
        yield came
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _with_common(guarded: Callable[..., int]) -> Callable[..., int]:
    """Add ``--quiet`` and ``--no-color`` to a command's options."""

    def called(quiet: bool, no_color: bool, **options: Any) -> int:
        if quiet:
            be_quiet()
        if no_color:
            os.environ["NO_COLOR"] = "1"  # which the libraries that draw read
        return guarded(**options)

    common = {
        "quiet": typer.Option("--quiet", "-q", help="Print only results and errors."),
        "no_color": typer.Option("--no-color", help="Print without colours, as with NO_COLOR=1."),
    }
    added = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option]
        )
        for name, option in common.items()
    ]
    own = inspect.signature(guarded, eval_str=True).parameters.values()
    return with_parameters(called, guarded, (*own, *added))


def _usage(error: Any) -> int:
    """Print in one line what is wrong with a command line."""
    where = error.ctx.command_path if getattr(error, "ctx", None) is not None else "nse"
    message = error.format_message().removeprefix("Invalid value: ")
    message = " ".join(message.rstrip(".").split())
    if message:  # without a command there is none, and the help is shown already
        complain(f"{message}; see {where} --help")
    return int(error.exit_code)


def _version(wanted: bool) -> None:
    if wanted:
        show_result(f"nse_plugin {__version__}")
        raise typer.Exit


@app.callback(no_args_is_help=True)
def _nse(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every step.")] = False,
) -> None:
    """Edit facts in language models again and again without wrecking the models."""
    set_up_logging(verbose)
