"""Strict hyperparameters: one dataclass per method, read from YAML, wrong ones refused.

``NSEHparams.from_hparams("NSE/gpt2-xl")`` finds a YAML that ships with the package,
``NSEHparams.from_hparams("my/settings.yaml")`` one of yours.  Keys that EasyEdit's own YAMLs have
keep their names and meaning.
"""

from __future__ import annotations

from nse_plugin.hparams.base import Hparams, find_yaml, read_method_yaml, read_yaml, yaml_dir
from nse_plugin.hparams.host_editors import MELOHparams, WISEHparams
from nse_plugin.hparams.locate import (
    AlphaEditHparams,
    LocateHparams,
    MEMITHparams,
    NSEHparams,
    ROMEHparams,
)
from nse_plugin.hparams.overtone import OvertoneHparams
from nse_plugin.hparams.training import FTHparams, GRACEHparams, LoRAHparams, TrainingHparams

NSEHyperParams = NSEHparams
"""The name in the toolkit's style."""

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
    "ROMEHparams",
    "TrainingHparams",
    "WISEHparams",
    "find_yaml",
    "read_method_yaml",
    "read_yaml",
    "yaml_dir",
]
