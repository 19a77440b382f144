"""The manifest of a run directory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nse_plugin.errors import DataError

_MAKER = "nse run"


@dataclass(frozen=True)
class Manifest:
    """Which model and method a run is of."""

    made_by: str
    model: Any
    """A name, or the fingerprints that ``nse_plugin.runs.identity.model_identity`` gives."""
    hparams: dict[str, Any]
    content: dict[str, Any]
    """The whole file."""

    @property
    def model_name(self) -> str | None:
        """The name by which the model can be loaded, where it is known."""
        name = self.model if isinstance(self.model, str) else self.hparams.get("model_name")
        return name if isinstance(name, str) else None

    @property
    def method(self) -> str:
        """The method's name, as EasyEdit and this package call it."""
        return str(self.hparams.get("alg_name", "")).removesuffix("-plugin")


def read_manifest(run: Path) -> Manifest:
    """Read ``manifest.json`` of a run directory.

    Raises:
        DataError: there is none, it is damaged, or something else made it.
    """
    path = run / "manifest.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        made_by = content["made_by"]
        if made_by == _MAKER:
            identity = content["run"]
            return Manifest(made_by, identity["model"], dict(identity["hparams"]), content)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{run} holds no manifest.json; give the folder of a run") from error
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}); restore it") from error
    raise DataError(
        f"{run} was made by {made_by!r} and is not a run directory of this version; give another"
    )
