"""Strict hyperparameters: one dataclass per method, read from YAML; invalid values are refused.

``NSEHparams.from_hparams("NSE/gpt2-xl")`` reads a YAML that ships with the package,
``NSEHparams.from_hparams("my/settings.yaml")`` one of yours; ``"NSE:stable/gpt2-xl"`` is the first
with a named change (:mod:`~nse_plugin.hparams.variants`).  Keys of EasyEdit's YAMLs keep their
names and meaning.
"""

from __future__ import annotations

from nse_plugin.hparams.base import Hparams
from nse_plugin.hparams.host_editors import MELOHparams, WISEHparams
from nse_plugin.hparams.locate import (
    AlphaEditHparams,
    LocateHparams,
    MEMITHparams,
    NSEHparams,
    ROMEHparams,
    SpreadHparams,
)
from nse_plugin.hparams.overtone import OvertoneHparams
from nse_plugin.hparams.training import (
    FTHparams,
    GRACEHparams,
    LoRAHparams,
    TrainingHparams,
    UltraEditHparams,
)

NSEHyperParams = NSEHparams
OvertoneHyperParams = OvertoneHparams
"""The names in EasyEdit's style."""

__all__ = [
    "AlphaEditHparams",
    "FTHparams",
    "GRACEHparams",
    "Hparams",
    "LoRAHparams",
    "LocateHparams",
    "MELOHparams",
    "MEMITHparams",
    "NSEHparams",
    "NSEHyperParams",
    "OvertoneHparams",
    "OvertoneHyperParams",
    "ROMEHparams",
    "SpreadHparams",
    "TrainingHparams",
    "UltraEditHparams",
    "WISEHparams",
]
