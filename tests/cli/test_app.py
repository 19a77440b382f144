"""The command line itself: help, mistakes, signals, closed pipes, text that a terminal obeys."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass, fields

import pytest

from nse_plugin import cli
from nse_plugin.cli import output
from nse_plugin.cli.options import field_docs
from nse_plugin.errors import DataError
from nse_plugin.printable import printable
from nse_plugin.runs.settings import RunSettings
from nse_plugin.version import __version__

COMMANDS = ["edit", "demo", "run", "compare", "ask", "chat", "inspect", "overfit", "undo",
            "consolidate", "export", "stats", "doctor"]  # fmt: skip


def shown(text: str) -> str:
    """Help without colours, boxes and line breaks."""
    return " ".join(re.sub("\x1b\\[[0-9;]*m|[│─╭╮╰╯]", " ", text).split())


def test_help_names_every_command_and_imports_no_torch():
    code = (
        "import sys; from nse_plugin import cli; cli.main(['--help']); "
        "sys.exit(len({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f" {name} " in shown(done.stdout) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_examples(name, capsys):
    assert cli.main([name, "--help"]) == 0
    text = shown(capsys.readouterr().out)
    assert f"Usage: nse {name}" in text and f"Examples: nse {name}" in text


def test_options_of_settings_show_docstring_and_default(capsys):
    assert cli.main(["run", "--help"]) == 0
    text = shown(capsys.readouterr().out)
    assert field_docs(RunSettings)["round_size"] in text and "[default: 100]" in text


def test_every_setting_of_a_run_is_described():
    assert {field.name for field in fields(RunSettings)} <= set(field_docs(RunSettings))


def test_docs_are_found_in_base_classes_too():
    @dataclass
    class Base:
        size: int = 1
        """Size of ``x``,
        in bytes."""

    @dataclass
    class Derived(Base):
        name: str = ""
        """Name."""

    assert field_docs(Derived) == {"size": "Size of x, in bytes.", "name": "Name."}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], "Did you mean 'run'"),
        (["run", "--rond-size", "3"], "--round-size"),
        (["run", "--round-size", "1.5"], "'--round-size'"),
        (["run", "--on-bad", "undone"], "'undone' is not one of 'stop', 'skip'"),
        (["run", "--on-collapse", "undone"], "'undone' is not one of 'undo', 'stop', 'continue'"),
        (["export", "x", "--to", "y", "--out", "z"], "'y' is not one of 'peft', 'delta', 'full'"),
        (["undo", "run1"], "Missing option '--round'"),
        (["export", "run1"], "Missing option '--to'. Choose from: peft, delta, full"),
        (["models", "get"], "nse: get needs a name; nse models lists them"),
        (["models", "list"], "nse: there is no nse models list; give nse models alone"),
    ],
)
def test_a_mistyped_command_line_is_one_line(arguments, message, capsys):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "--help" in error and error.count("\n") == 1


def test_no_command_shows_the_help(capsys):
    assert cli.main([]) == 2
    both = capsys.readouterr()
    assert "Usage: nse" in both.out + both.err and "Traceback" not in both.err


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"nse_plugin {__version__}\n"


def raises(error: BaseException):
    def call() -> int:
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "message", "code"),
    [
        (DataError("no such file; give another"), "nse: no such file; give another\n", 1),
        (PermissionError(errno.EACCES, "Permission denied", "/proc/x"), "/proc/x", 1),
        (MemoryError(), "out of memory", 1),
        (KeyboardInterrupt(), "nse: interrupted\n", 130),
        (KeyboardInterrupt("2 rounds are on disk"), "nse: interrupted; 2 rounds", 130),
    ],
)
def test_errors_become_a_line_and_an_exit_code(error, message, code, capsys):
    assert output.exit_code(raises(error)) == code
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


def test_a_mistake_in_the_program_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        output.exit_code(lambda: 1 // 0)


ESCAPES = "\x1b[31mred\x1b[0m \x9b2J \r \u202eabc \ud800 Zürich 日本 \U0001f600"


def test_control_characters_are_spelled_out():
    safe = printable(ESCAPES)
    assert "\\x1b[31mred" in safe and "\\x9b2J" in safe and "\\r" in safe and "\\u202e" in safe
    assert safe.endswith("Zürich 日本 \U0001f600") and safe.encode()
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in safe)
    assert printable("a\tb\nc") == "a\tb\nc"
    assert printable("a\tb\nc", one_line=True) == "a\\tb\\nc"


def test_output_errors_and_logs_are_made_safe(capsys):
    output.show(ESCAPES)
    output.complain(ESCAPES)
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "%s", (ESCAPES,), None)
    text = output._Formatter("%(message)s").format(record)
    both = capsys.readouterr()
    assert all("\x1b" not in part and "\x9b" not in part for part in (both.out, both.err, text))


def test_a_closed_pipe_ends_quietly():
    done = subprocess.run(  # nobody reads any more when the command has been imported
        f"{sys.executable} -m nse_plugin.cli models | true; echo code ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("code 141\n", "")


def test_closed_output_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["doctor"]) == 0


def test_closed_standard_error_is_no_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["ask", "no-such-folder", "Where?"]) != 0
    with output.working() as listener:
        listener("phase", {"name": "working"})
    assert capsys.readouterr().out == ""


def test_an_interrupt_before_the_command_begins_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("nse_plugin.cli.app.command_group", raises(KeyboardInterrupt()))
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "nse: interrupted\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_command_with_their_exit_code(number, monkeypatch, capsys):
    def interrupted() -> int:
        os.kill(os.getpid(), number)
        signal.pause()
        return 0

    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("the tests were started with this signal ignored, as nohup does")
    monkeypatch.setattr("nse_plugin.runs.doctor.report", lambda _folder: interrupted())
    assert cli.main(["doctor"]) == 128 + number
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(number) is signal.SIG_DFL
