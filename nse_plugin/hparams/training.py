"""Hyperparameters of methods that train on target tokens: FT, LoRA, GRACE, UltraEdit.

Keys of the first three are those of EasyEdit's YAMLs.  Some keys have the same value in all of its
YAMLs, or no effect in its code; other values of these are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from nse_plugin.hparams.base import Hparams, LayersHparams
from nse_plugin.hparams.validation import bounded


@dataclass(kw_only=True)
class TrainingHparams(Hparams):
    """What these methods share."""

    stop_loss: float = bounded(0.0, low=0)
    """Training of a round ends when its mean loss is below this; 0 uses all steps."""

    def _only(self, name: str, value: Any, why: str) -> Iterator[str]:
        """An error for any other value of this key."""
        if getattr(self, name) != value:
            yield (f"{name} is {getattr(self, name)!r}, and {why}; write {value!r} or leave it out")


@dataclass(kw_only=True)
class _EpochHparams(TrainingHparams):
    """Training in passes over the requests, as FT and LoRA do."""

    num_steps: int = bounded(25, low=1)
    """Maximum number of passes over a round's requests, in mini-batches of batch_size."""
    lr: float = bounded(5e-4, above=0)
    """Adam's learning rate."""
    weight_decay: float = bounded(0.0, low=0)
    """Adam's weight decay."""
    beta1: float = bounded(0.9, low=0, high=0.9999)
    """Adam's decay of the mean gradient: with 0, a step follows the last gradient alone."""
    beta2: float = bounded(0.999, low=0, high=0.9999)
    """Adam's decay of the mean squared gradient, which every step is divided by the root of."""
    kl_factor: float = 0.0
    """Without effect in EasyEdit; 0 only."""
    norm_constraint: float | Literal[False] | None = bounded(None, above=0)
    """Bound of every weight's change in a round; false or null for none."""

    def __post_init__(self) -> None:
        if self.norm_constraint is False:  # as EasyEdit's YAMLs write none
            self.norm_constraint = None
        super().__post_init__()

    def conflicts(self) -> Iterator[str]:
        """Errors if a key requests what EasyEdit does not have."""
        yield from super().conflicts()
        yield from self._only(
            "kl_factor", 0.0, "EasyEdit has the key but no term of the loss for it"
        )


@dataclass(kw_only=True)
class FTHparams(_EpochHparams, LayersHparams):
    """Fine-tuning of MLP down-projections: FT-M (target_new) and FT-L (prompt_last)."""

    method: ClassVar[str] = "FT"

    objective_optimization: Literal["prompt_last", "target_new"] = "target_new"
    """target_new: each target token from the one before it; prompt_last: all of them from the
    prompt's last token."""
    stop_loss: float = bounded(1e-2, low=0)
    """Skip a batch, or end after a pass, whose mean loss is below this; EasyEdit uses 0.01."""
    replay: bool = False
    """Train on all edits in effect in every round, not on the round's own alone."""

    def conflicts(self) -> Iterator[str]:
        """Errors if the end of text would have to follow the prompt."""
        yield from super().conflicts()
        if self.target_eos and self.objective_optimization == "prompt_last":
            yield (
                "target_eos is true and objective_optimization is 'prompt_last', which trains "
                "every token to follow the prompt; write 'target_new', or leave target_eos out"
            )


@dataclass(kw_only=True)
class UltraEditHparams(LayersHparams):
    """UltraEdit: a closed form in one gradient of each request (arXiv 2505.14679)."""

    method: ClassVar[str] = "UltraEdit"

    lr: float = bounded(1e-6, above=0)
    """Scale of the values; it depends on the model (1e-6 with 7B, larger with small models)."""


@dataclass(kw_only=True)
class LoRAHparams(_EpochHparams):
    """LoRA or AdaLoRA adapters of PEFT, trained on by every round."""

    method: ClassVar[str] = "LoRA"

    lora_type: Literal["lora", "adalora"] = "lora"
    """Which of PEFT's adapters."""
    layers: list[int] = field(default_factory=list)
    """Blocks that get adapters; empty for all."""
    target_modules: list[str] = field(default_factory=list)
    """Ends of the names of the modules that get adapters, e.g. [q_proj, v_proj]."""
    rank: int = bounded(8, low=1)
    """Rank of each adapter."""
    lora_alpha: float = bounded(32.0, above=0)
    """The adapter's output is scaled by lora_alpha / rank."""
    lora_dropout: float = bounded(0.0, low=0, high=1)
    """Dropout before the adapter, in training only."""

    def conflicts(self) -> Iterator[str]:
        """Errors if nothing gets adapters, or a key requests what EasyEdit does not have."""
        yield from super().conflicts()
        yield from self._only(
            "norm_constraint", None, "EasyEdit's LoRA has the key but no such bound"
        )
        if not self.target_modules:
            yield (
                "target_modules is empty; name the modules that get adapters, e.g. "
                "[q_proj, v_proj], or [c_attn] for GPT-2"
            )


_INNER = re.compile(r"[\w.]+(\[\d+\][\w.]*)*")


@dataclass(kw_only=True)
class GRACEHparams(TrainingHparams):
    """GRACE: a codebook of activations in front of one layer (arXiv 2211.11031)."""

    method: ClassVar[str] = "GRACE"

    inner_params: list[str]
    """The layer that gets the codebook, e.g. [transformer.h[35].mlp.c_fc.weight]; one only."""
    edit_lr: float = bounded(1.0, above=0)
    """Adam's learning rate for the value."""
    n_iter: int = bounded(50, low=1)
    """Steps for each request's value."""
    eps: float = bounded(1.0, above=0)
    """Radius of a new key's ball."""
    dist_fn: Literal["euc"] = "euc"
    """Distance of keys; Euclidean only."""
    val_init: Literal["cold", "warm"] = "cold"
    """A new value starts uniformly random in [0, 1) (cold) or as the layer's output (warm)."""
    val_train: Literal["sgd"] = "sgd"
    """How values are trained; the only choice."""
    val_reg: Literal["None"] | None = None
    """Without effect in EasyEdit; None only."""
    reg: Literal["early_stop"] = "early_stop"
    """Without effect in EasyEdit, which never stops early: see stop_loss."""
    replacement: Literal["replace_last"] = "replace_last"
    """Whose output is replaced; the only choice."""
    eps_expand: Literal["coverage"] = "coverage"
    """A ball grows until it covers a near key of the same target; the only choice."""
    num_pert: int = bounded(8, low=0)
    """Without effect if val_train is sgd."""
    dropout: float = 0.0
    """Without effect in EasyEdit; 0 only."""

    def conflicts(self) -> Iterator[str]:
        """Errors if there is not one layer, or a key requests what EasyEdit does not have."""
        yield from super().conflicts()
        yield from self._only("dropout", 0.0, "EasyEdit has the key but no dropout for it")
        if len(self.inner_params) != 1 or not _INNER.fullmatch(self.inner_params[0]):
            yield (
                f"inner_params is {self.inner_params!r}; GRACE has one layer, give its weight, "
                "e.g. [transformer.h[35].mlp.c_fc.weight]"
            )
