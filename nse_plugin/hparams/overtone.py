"""Hyperparameters of OVERTONE: those of its base editor, and a few of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from nse_plugin.errors import HparamsError, did_you_mean
from nse_plugin.hparams.base import Hparams
from nse_plugin.hparams.validation import Settings, bounded, by_field, mistakes_in
from nse_plugin.hparams.variants import read_named

SETTINGS = {
    "FT": {"lambda_": 0.1, "epsilon": 0.01, "n_sigma": 0.5},
    "LoRA": {"lambda_": 0.1, "epsilon": 0.05, "n_sigma": 0.5},
    "MELO": {"lambda_": 0.1, "epsilon": 0.05, "n_sigma": 1.0},
    "WISE": {"lambda_": 0.1, "epsilon": 0.05, "n_sigma": 1.0},
}
"""Published settings by base editor (arXiv 2502.00602), which are the defaults."""
OTHERWISE = {"lambda_": 0.5, "epsilon": 0.01, "n_sigma": 0.5}
"""The default for other base editors: the best of a small sweep with NSE (docs/overtone.md)."""


@dataclass
class OvertoneSettings(Settings):
    """Settings of OVERTONE's loss; the five switches are those of the paper's ablation."""

    key_of: ClassVar[Mapping[str, str]] = {"lambda_": "lambda"}  # a keyword of Python

    lambda_: float = bounded(OTHERWISE["lambda_"], low=0, high=1)
    """Share of the one-hot target; the rest is the model's own filtered distribution.  1 is plain
    cross entropy, clipped."""
    epsilon: float = bounded(OTHERWISE["epsilon"], low=0)
    """A token whose loss is at most this is not trained further."""
    n_sigma: float = bounded(OTHERWISE["n_sigma"], low=0)
    """Tokens further than this many standard deviations below the largest logit are filtered."""
    clip: bool = True
    """Stop training a token at epsilon; if false, epsilon is 0."""
    filter: bool = True
    """Filter the model's distribution; if false, all of it is mixed in."""
    argmax_check: bool = True
    """Train on the one-hot target if the mixture prefers another token."""
    frozen_reference: bool = False
    """Mix in the model's distribution before the edit's first step, not the current one."""
    mixing: bool = True
    """Mix the model's distribution into the target; if false, lambda is 1."""


@dataclass(kw_only=True)
class OvertoneHparams(OvertoneSettings, Hparams):
    """Hyperparameters of a base editor with its loss replaced by OVERTONE's.

    In a YAML, ``base`` is the name or path of the base editor's YAML, or its keys.  Keys of all
    methods (``model_name``, ``device``, ``batch_size``, ``seed`` ...) default to the base's.
    ``lambda`` is ``lambda_`` in Python.  Other fields of the base are delegated:
    ``hparams.layers`` is ``base.layers``.

    Raises:
        HparamsError: a value is out of range, or ``base`` are not hyperparameters of a method.
    """

    method: ClassVar[str] = "OVERTONE"
    unknown_key_advice: ClassVar[str] = "; keys of the base editor go under base"

    base: Any
    """Hyperparameters of the base editor."""

    def conflicts(self) -> Iterator[str]:
        """Errors if there is no base editor for OVERTONE."""
        yield from super().conflicts()
        if not isinstance(self.base, Hparams) or isinstance(self.base, OvertoneHparams):
            yield (
                f"base is {self.base!r}; it must be the hyperparameters of another method: build "
                "with OvertoneHparams.wrap(base), from_hparams or from_dict"
            )

    @classmethod
    def wrap(cls, base: Hparams, **values: Any) -> OvertoneHparams:
        """OVERTONE for a base editor, by default with the published settings.

        Args:
            base: the base editor's hyperparameters; the fields of all methods are taken from them.
            **values: other values of fields.
        """
        setting = SETTINGS.get(base.method, OTHERWISE)
        return cls(**{**_shared(base), "alg_name": cls.method, **setting, **values, "base": base})

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], file: str | Path | None = None
    ) -> OvertoneHparams:
        """Build from a YAML's keys; see the class."""
        mistakes = mistakes_in(cls, values)
        missing = [key for key in ("alg_name", "base") if key not in values]
        if missing:
            raise HparamsError(
                *mistakes, f"missing key(s) {', '.join(map(repr, missing))}", file=file
            )
        own = by_field(cls, values)
        try:
            base = _read_base(own.pop("base"), {k: v for k, v in own.items() if k in _SHARED})
            if not mistakes:
                return cls.wrap(base, **own)
        except HparamsError as error:
            mistakes += error.mistakes
        raise HparamsError(*mistakes, file=file)

    def to_dict(self) -> dict[str, Any]:
        """The keys of an equivalent YAML, with the keys of the base."""
        values = {self.key_of.get(k, k): v for k, v in super().to_dict().items()}
        return {**values, "base": self.base.to_dict()}

    def for_base(self) -> Any:
        """The base's hyperparameters, with the fields of all methods taken from here."""
        return dataclasses.replace(self.base, **_shared(self), alg_name=self.base.alg_name)

    def of_last_round(self) -> OvertoneHparams:
        """The same with the base's settings for the last round of a stream."""
        return dataclasses.replace(self, base=self.base.of_last_round())

    def __getattr__(self, name: str) -> Any:
        """Delegate fields that OVERTONE does not have to the base."""
        base = self.__dict__.get("base")  # not there yet while a copy is being made
        if base is None or name.startswith("__"):
            raise AttributeError(f"{type(self).__name__} has no {name!r}")
        return getattr(base, name)


_SHARED = [f.name for f in dataclasses.fields(Hparams) if f.name != "alg_name"]
"""The fields of all methods, which OVERTONE and its base share."""


def _shared(hparams: Hparams) -> dict[str, Any]:
    return {name: getattr(hparams, name) for name in _SHARED}


def base_of(hparams: Any) -> Any:
    """The base's hyperparameters if they are OVERTONE's, else themselves."""
    return hparams.base if isinstance(hparams, OvertoneHparams) else hparams


def _read_base(base: Any, shared: Mapping[str, Any]) -> Hparams:
    """Hyperparameters from a YAML's name, its keys, or an object, with shared fields replaced."""
    if isinstance(base, Hparams):
        return dataclasses.replace(base, **shared)
    where = "base"
    if isinstance(base, str):
        where = f"base {base}"
        base = read_named(base)
    if not isinstance(base, Mapping) or "alg_name" not in base:
        raise HparamsError(
            f"{where} has no alg_name; give the name or path of a method's YAML, such as "
            "NSE/gpt2-xl, or its keys"
        )
    kinds = {kind.method: kind for kind in _subclasses(Hparams) if kind is not OvertoneHparams}
    name = str(base["alg_name"]).removesuffix("-plugin")
    if name not in kinds:
        raise HparamsError(
            f"{where}: alg_name {name!r} is not a method that OVERTONE can be put around "
            f"({', '.join(sorted(kinds))}){did_you_mean(name, kinds)}"
        )
    try:
        return kinds[name].from_dict({**base, **shared})
    except HparamsError as error:
        raise HparamsError(*(f"{where}: {mistake}" for mistake in error.mistakes)) from None


def _subclasses(kind: type[Hparams]) -> list[type[Hparams]]:
    """All subclasses that belong to a method."""
    below = [found for child in kind.__subclasses__() for found in (child, *_subclasses(child))]
    return [child for child in below if child.method]
