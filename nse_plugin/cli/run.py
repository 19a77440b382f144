"""``nse run``: a stream of edits in rounds."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

from nse_plugin.cli.app import EDIT, command
from nse_plugin.cli.options import AS_JSON, Group, config_option, examples, with_fields
from nse_plugin.cli.output import interrupt_says, note, show_result, teller
from nse_plugin.evaluation.settings import Protocol
from nse_plugin.printable import counted
from nse_plugin.runs.schema import MANIFEST, ROUNDS
from nse_plugin.runs.settings import RunSettings
from nse_plugin.runs.stopping import StopRules

_STOP = ("on_collapse", "max_perplexity", "min_retention", "until_collapse", "max_change")
_EDITED, _MEASURED = "What is edited", "What is measured"


@command(
    EDIT,
    examples(
        "nse run --hparams NSE/atlas-gpt2 --data atlas:200 --round-size 20 --out run1",
        "nse run --method NSE --model path/to/model --data earth --known --limit 100 --out run1",
        "nse run --config run.yaml --out run2",
    ),
)
@with_fields(
    Group(
        _EDITED,
        RunSettings,
        ("hparams", "method", "model", "data", "schema", "on_bad_record", "limit", "known", "chat"),
    ),
    Group("Machine", RunSettings, ("device", "stats_dir")),
    Group("Rounds", RunSettings, ("round_size", "order", "seed", "out")),
    Group(_MEASURED, Protocol, ("every",)),
    Group(_MEASURED, RunSettings, ("held_out", "tensorboard", "wandb")),
    Group("When the run ends early", StopRules, _STOP),
)
def run(
    given: dict[str, Any],
    config: Annotated[Path | None, config_option(_EDITED)] = None,
    as_json: AS_JSON = False,
) -> int:
    """Edit a stream of facts in rounds.

    The same command resumes a run that was interrupted.
    """
    rules = {name: given.pop(name) for name in _STOP if name in given}
    protocol = {"every": given.pop("every", None)}
    settings = RunSettings.read(config, {**given, "protocol": protocol, "stop": rules})
    show = teller(as_json)
    with interrupt_says(lambda: where_it_stands(Path(settings.out))):
        from nse_plugin.evaluation.settings import percentages
        from nse_plugin.runs.consolidate import would_help
        from nse_plugin.runs.reading import RunFiles
        from nse_plugin.runs.start import run as run_rounds

        result = run_rounds(settings, show)
    final = result.final
    scores = (final["measurement"] or {}).get("all") or {}
    if as_json:
        show_result({"out": settings.out, "status": result.status, **final})
    else:
        made = f"{counted(final['edits'], 'edit')} in {counted(final['rounds'], 'round')}"
        shown = ", ".join(f"{name} {share}" for name, share in percentages(scores).items())
        show_result(f"{result.status}: {made}{shown and f'; {shown}'}")
    show(f"written to {settings.out}; look at it with: nse inspect {quote(settings.out)}")
    if would_help(RunFiles(settings.out), final):
        note(
            f"{1 - scores['efficacy']:.1%} of the edits are not in effect; nse consolidate "
            f"{quote(settings.out)} --repair-rounds 3 solves all of them jointly"
        )
    return exit_code_of(result.status)


def exit_code_of(status: str) -> int:
    """0 for a run that is complete, 3 for one that a stop rule ended or that wrote nothing."""
    return 0 if status == "complete" else 3


def where_it_stands(folder: Path) -> str:
    """The number of rounds on disk and the way to resume, in words."""
    if not (folder / MANIFEST).is_file():
        return "no run was started yet; the same command starts it"
    log = folder / ROUNDS
    done = log.read_bytes().count(b"\n") if log.is_file() else 0  # whole lines
    if not done:
        return f"no round was finished; the same command begins the run in {folder} again"
    rounds = "1 finished round is" if done == 1 else f"{done} finished rounds are"
    return f"{rounds} in {folder}; the same command resumes after round {done}"
