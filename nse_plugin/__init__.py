"""nse_plugin: sequential knowledge editing of language models without damage to the model.

NSE (neuron-level sequential editing, arXiv 2410.04045) as an EasyEdit-style method, with a host and
a model of its own for use without EasyEdit.  Importing this package changes nothing and loads
neither torch nor the host; the names below are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nse_plugin.data import texts as _texts  # noqa: F401  (registers texts for statistics)
from nse_plugin.version import __version__

if TYPE_CHECKING:
    from nse_plugin.data.defaults import hparams_for
    from nse_plugin.easyedit.register import register, unregister
    from nse_plugin.host import BaseEditor
    from nse_plugin.hparams import (
        AlphaEditHparams,
        FTHparams,
        GRACEHparams,
        LoRAHparams,
        MEMITHparams,
        NSEHparams,
        NSEHyperParams,
        OvertoneHparams,
        OvertoneHyperParams,
        ROMEHparams,
        UltraEditHparams,
    )
    from nse_plugin.methods.registry import apply_nse_to_model
    from nse_plugin.requests import EditRequest
    from nse_plugin.runs.edits import EditFolder
    from nse_plugin.session.session import EditSession

__all__ = [
    "AlphaEditHparams",
    "BaseEditor",
    "EditFolder",
    "EditRequest",
    "EditSession",
    "FTHparams",
    "GRACEHparams",
    "LoRAHparams",
    "MEMITHparams",
    "NSEHparams",
    "NSEHyperParams",
    "OvertoneHparams",
    "OvertoneHyperParams",
    "ROMEHparams",
    "UltraEditHparams",
    "__version__",
    "apply_nse_to_model",
    "hparams_for",
    "register",
    "unregister",
]

_HOME = {
    "BaseEditor": "host",
    "EditFolder": "runs.edits",
    "EditRequest": "requests",
    "EditSession": "session.session",
    "apply_nse_to_model": "methods.registry",
    "hparams_for": "data.defaults",
    "register": "easyedit.register",
    "unregister": "easyedit.register",
}
"""The module of each name that is not in ``hparams``."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'nse_plugin' has no attribute {name!r}")
    return getattr(importlib.import_module(f"nse_plugin.{_HOME.get(name, 'hparams')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
