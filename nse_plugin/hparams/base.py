"""What the hyperparameters of all methods share: fields, checks, and reading of YAML."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from nse_plugin.errors import HparamsError
from nse_plugin.hparams.validation import LARGEST_SEED, Settings, bounded
from nse_plugin.hparams.variants import read_named

H = TypeVar("H", bound="Hparams")


@dataclass(kw_only=True)
class Hparams(Settings):
    """What every method's hyperparameters share.

    Raises:
        HparamsError: a value has the wrong type or is out of range; the message names the key.
    """

    method: ClassVar[str] = ""
    """The required ``alg_name``."""

    alg_name: str
    """Name of the method in the host's table; ``NAME-plugin`` where the host has its own NAME."""
    model_name: Any
    """Path or hub name of the model, ``atlas:gpt2``, or a ready (model, tokenizer)."""
    device: int | str = "cpu"
    """Device of the model: ``cpu``, ``cuda:1``, or an int n for ``cuda:n``."""
    model_parallel: bool = False
    """Let accelerate distribute the model over devices."""
    batch_size: int = bounded(1, low=1)
    """Requests per round in the host's ``batch_edit``."""
    max_length: int = bounded(40, low=1)
    """Maximum length of a text in the host's evaluator, in tokens."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Data type of the model in the embedded host; default float32, as in EasyEdit."""
    fp16: bool = False
    """EasyEdit's switch for float16."""
    use_chat_template: bool = False
    """Apply the tokenizer's chat template to prompts in the evaluation."""
    evaluation_type: str | None = None
    """EasyEdit's other evaluations, ``LLM-judge`` or ``generate-text``."""
    api_key: str | None = None
    """Key of EasyEdit's LLM judge; never written to a file."""
    seed: int = bounded(0, low=0, high=LARGEST_SEED)
    """Seed of context texts, dropout, and the initial adapters and values."""

    target_eos: bool = False
    """Train on the end-of-text token after each target too, so that the answer ends there."""

    def conflicts(self) -> Iterator[str]:
        """Errors if ``alg_name`` names another method, or two data types are given."""
        if self.fp16 and self.dtype not in (None, "float16"):
            yield f"fp16 is true and dtype is {self.dtype!r}; give one of the two"
        if self.alg_name not in (self.method, f"{self.method}-plugin"):
            yield (
                f"alg_name is {self.alg_name!r}, and {type(self).__name__} is for "
                f"{self.method!r}; read the file with the class of its method"
            )

    @classmethod
    def from_hparams(cls: type[H], name_or_path: str | Path) -> H:
        """Read a YAML file by path, or by name among those that ship with the package.

        Changes may follow the method's name, as in ``NSE:stable/smollm2-135m``:
        :mod:`nse_plugin.hparams.variants`.

        Raises:
            HparamsError: there is no such file or change, or a key or value is wrong.
        """
        return cls.from_dict(read_named(name_or_path), name_or_path)

    def of_last_round(self: H) -> H:
        """The settings for a round that is known to be the last of its stream."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """All values by key except secrets; a ready model is named as in its config."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del values["api_key"]
        if not isinstance(self.model_name, str):
            values["model_name"] = str(
                getattr(self.model_name[0].config, "_name_or_path", "") or "(ready model)"
            )
        return values


@dataclass(kw_only=True)
class LayersHparams(Hparams):
    """What methods that write MLP down-projections share."""

    layers: list[int]
    """Blocks whose MLP down-projection is edited, rising."""

    rewrite_module_tmp: str | None = None
    """Module templates, as in EasyEdit's YAMLs; if given, they are checked against the model."""
    layer_module_tmp: str | None = None
    mlp_module_tmp: str | None = None
    attn_module_tmp: str | None = None
    ln_f_module: str | None = None
    lm_head_module: str | None = None

    def conflicts(self) -> Iterator[str]:
        """Errors if layers are out of order."""
        yield from super().conflicts()
        if not self.layers or sorted(set(self.layers)) != list(self.layers) or self.layers[0] < 0:
            yield (
                f"layers is {self.layers!r}; give block numbers from 0 in rising order, "
                "each once, e.g. [13, 14, 15]"
            )


def check_hparams(hparams: object) -> None:
    """Raise :class:`HparamsError` if a YAML's name or keys are given instead of hyperparameters, or
    an attribute has been set to a wrong value."""
    if isinstance(hparams, (str, Path, Mapping)):
        raise HparamsError(
            f"hparams is {hparams!r:.80}; give hyperparameters, as load_hparams(name_or_path) of "
            "nse_plugin.methods.registry makes them"
        )
    if isinstance(hparams, Hparams):
        hparams.check_values()
