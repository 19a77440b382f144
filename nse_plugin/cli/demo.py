"""``nse demo``: a run with fixed settings, for a first impression."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

from nse_plugin.cli.app import EDIT, command
from nse_plugin.cli.options import AS_JSON, Group, examples, with_fields
from nse_plugin.cli.output import interrupt_says, show_result, teller
from nse_plugin.cli.run import exit_code_of, where_it_stands
from nse_plugin.printable import counted
from nse_plugin.runs.settings import DemoSettings


@command(
    EDIT,
    examples(
        "nse demo",
        "nse demo --model atlas:llama --edits 200 --out run1",
        "nse demo --model smollm2-135m --out run-smollm2",
    ),
)
@with_fields(Group("Options", DemoSettings, ("model", "edits", "rounds", "seed", "out")))
def demo(given: dict[str, Any], as_json: AS_JSON = False) -> int:
    """Edit facts of an embedded world, or real ones, in rounds, and measure after each.

    It is an nse run with fixed settings: the same command resumes it, and nse inspect, undo and
    export read its folder.
    """
    settings, show = DemoSettings(**given), teller(as_json)
    with interrupt_says(lambda: where_it_stands(Path(settings.out))):
        from nse_plugin.runs.demo import Demo

        result, summary = Demo(settings, show).run()
    scores = {
        "efficacy": summary.efficacy,
        "paraphrase": summary.paraphrase,
        "other facts": summary.other_facts,
        "first round": summary.retention_first,
    }
    shown = ", ".join(f"{name} {score:.1%}" for name, score in scores.items() if score is not None)
    show("")
    if as_json:
        show_result({"out": settings.out, "status": result.status, **asdict(summary)})
    else:
        show_result(
            f"after {counted(summary.rounds, 'round')}: {shown or 'no edit is left'}, "
            f"{summary.seconds_per_edit:.3f} s per edit"
        )
    show(f"written to {settings.out}; look at it with: nse inspect {quote(settings.out)}")
    return exit_code_of(result.status)
