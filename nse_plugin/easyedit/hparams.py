"""Hyperparameters of EasyEdit's own methods, as its own objects."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from nse_plugin.easyedit.checkout import import_easyedit, method_table
from nse_plugin.errors import HostError, did_you_mean


def hparams_of(values: dict[str, Any]) -> Any:
    """Hyperparameters of one of EasyEdit's own methods, from the keys of its YAML.

    EasyEdit's own reader is used, since for some methods it does more than fill in fields.

    Raises:
        HostError: there is no EasyEdit, it has no such method, or the keys do not fit it.
    """
    kind = hparams_class(str(values.get("alg_name")))
    name = values.get("model_name")
    texts = {**values, "model_name": str(name) if isinstance(name, str) else "(ready model)"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hparams.yaml"
        path.write_text(yaml.safe_dump(texts))
        try:
            hparams = kind.from_hparams(str(path))
        except KeyError as error:
            raise HostError(f"EasyEdit's {kind.__name__}: missing key {error}") from error
        except (TypeError, AssertionError) as error:
            raise HostError(
                f"EasyEdit's {kind.__name__}: {error}; correct the YAML, or write alg_name: "
                f"{values.get('alg_name')}-plugin for the method of nse_plugin, if it has one"
            ) from error
    if name is not None:
        hparams.model_name = name
    return hparams


def hparams_class(name: str) -> Any:
    """EasyEdit's class of hyperparameters for one of its own methods.

    Raises:
        HostError: there is no EasyEdit, or it has no such method.
    """
    import_easyedit()
    package = sys.modules["easyeditor"]
    short = name.replace("-", "").replace("_", "").lower()
    classes = {key.lower().replace("_", ""): value for key, value in vars(package).items()}
    for candidate in (f"{short}hyperparams", f"{short}hparams"):
        if candidate in classes:
            return classes[candidate]
    raise HostError(f"EasyEdit has no method {name!r}{did_you_mean(name, method_table())}")
