"""Hyperparameters of editors that only EasyEdit has, as bases of OVERTONE.

Keys and meaning are EasyEdit's.  FT and LoRA are not here: ours have the same keys, so one YAML
serves both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from nse_plugin.hparams.base import Hparams
from nse_plugin.hparams.validation import bounded


@dataclass(kw_only=True)
class HostEditorHparams(Hparams):
    """Base of hyperparameters whose editor needs EasyEdit."""

    def to_host(self) -> dict[str, Any]:
        """The values that EasyEdit gets instead of the YAML's."""
        return {}


@dataclass(kw_only=True)
class WISEHparams(HostEditorHparams):
    """EasyEdit's WISE: edits go to copies of one matrix, chosen by activations."""

    method: ClassVar[str] = "WISE"

    inner_params: list[str]
    """The matrix, e.g. [model.layers[27].mlp.down_proj.weight]; one only."""
    act_margin: list[float]
    """Margins alpha, beta and gamma of the activation loss, as published for WISE."""
    margin_factor: float = bounded(0.6, above=0)
    """Factor of the margins; 0.6 in OVERTONE's paper, 1 for no change."""
    edit_lr: float = bounded(1.0, above=0)
    """SGD's learning rate."""
    n_iter: int = bounded(70, low=1)
    """Maximum number of steps per request."""
    norm_constraint: float = bounded(1.0, above=0)
    """Bound of every weight's change."""
    mask_ratio: float = bounded(0.2, above=0, high=1)
    """Share of the matrix that one group of edits may change."""
    act_ratio: float = bounded(0.88, above=0)
    """A copy is used if activations differ by at least this share of its edits' difference."""
    objective_optimization: Literal["only_label"] = "only_label"
    """The loss is over the target's tokens; OVERTONE can replace no other."""
    save_freq: int = bounded(500, low=1)
    """Edits per copy."""
    merge_freq: int = bounded(1000, low=1)
    """Edits after which copies are merged; a multiple of save_freq."""
    merge_alg: Literal[
        "slerp", "ties", "magnitude_norm", "magnitude", "sign", "dare_ties", "dare_linear", "linear"
    ] = "ties"
    """How copies are merged."""
    densities: float | None = bounded(0.53, above=0, high=1)
    """Share of a copy that survives the merging."""
    weights: float | None = bounded(1.0, above=0)
    """Weight of the copies in the merging."""
    retrieve: bool = True
    """Keep several copies and choose between them (WISE-Retrieve)."""
    replay: bool = False
    """Train on earlier edits again in later ones."""
    save_path: str | None = None
    """Path to which EasyEdit writes the edited layer."""
    load_path: str | None = None
    """Path from which EasyEdit reads the edited layer."""

    def conflicts(self) -> Iterator[str]:
        """Errors if the margins, matrices or frequencies do not fit WISE."""
        yield from super().conflicts()
        if len(self.act_margin) != 3:
            yield (f"act_margin is {self.act_margin!r}; give three numbers: alpha, beta, gamma")
        if len(self.inner_params) != 1:
            yield (f"inner_params is {self.inner_params!r}; WISE edits one matrix, give its name")
        if self.merge_freq % self.save_freq:
            yield (
                f"merge_freq is {self.merge_freq} and save_freq {self.save_freq}; the first must "
                "be a multiple of the second"
            )

    def to_host(self) -> dict[str, Any]:
        """The scaled margins."""
        return {"act_margin": [margin * self.margin_factor for margin in self.act_margin]}


@dataclass(kw_only=True)
class MELOHparams(HostEditorHparams):
    """EasyEdit's MELO: blocks of a LoRA adapter, chosen by clusters of activations."""

    method: ClassVar[str] = "MELO"

    grace: Mapping[str, Any]
    """Keys of the clusters and of training: num_iter, edit_lr, init_radius, num_block ..."""
    model: Mapping[str, Any]
    """Keys of the adapter: target_modules, grace_layer, fan_in_fan_out ..."""
    lora: Mapping[str, Any]
    """Keys of EasyEdit's MELO that matter little for text editing: cls_name, lora_dropout ..."""
    task: Literal["hall"] = "hall"
    """Prompt and target are one text, with the loss on the target; no other choice here."""
    lora_task_type: str = "CAUSAL_LM"
    """The adapter's task."""
    check_dir: str | None = None
    """Folder of a checkpoint to start from."""
