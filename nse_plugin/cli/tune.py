"""``nse tune``: find settings for a model without a YAML."""

from __future__ import annotations

from typing import Any

from nse_plugin.cli.app import EDIT, command
from nse_plugin.cli.options import AS_JSON, Group, examples, with_fields
from nse_plugin.cli.output import interrupt_says, show_result, teller
from nse_plugin.tune.settings import TuneSettings


@command(
    EDIT,
    examples(
        "nse tune --model smollm2-135m --out my.yaml",
        "nse tune --model path/to/model --method NSE,MEMIT --minutes 30 --out settings",
    ),
)
@with_fields(
    Group("What is searched", TuneSettings, ("model", "method", "minutes", "out")),
    Group("Facts", TuneSettings, ("data", "edits", "known", "limit", "schema")),
    Group("Facts", TuneSettings, ("on_bad_record", "seed")),
    Group("Machine", TuneSettings, ("device", "source", "stats_dir")),
)
def tune(given: dict[str, Any], as_json: AS_JSON = False) -> int:
    """Find settings for a model that has no YAML.

    Layers, values and the weight of the covariance are tried in stages, and tested on a stream of
    edits. The same command resumes a search that was interrupted.
    """
    settings = TuneSettings.read(None, given)
    with interrupt_says(lambda: "finished trials are kept; the same command resumes the search"):
        from nse_plugin.tune.start import run

        found = run(settings, teller(as_json))
    if as_json:
        show_result([one.to_dict() for one in found])
    return 0 if found and all(one.yaml for one in found) else 3
