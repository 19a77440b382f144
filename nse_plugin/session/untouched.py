"""What methods need of the untouched model, computed once: context texts, texts about subjects,
covariances, functions of covariances and original matrices, and optionally values."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from nse_plugin.hparams import LocateHparams
from nse_plugin.hparams.overtone import base_of
from nse_plugin.locate.values import Values
from nse_plugin.model.hooks import own_modes, quiet
from nse_plugin.model.layout import DecoderLayout
from nse_plugin.model.prompts import EncodedPrompt
from nse_plugin.model.sampling import context_texts, texts_about
from nse_plugin.model.weights import EditedWeights
from nse_plugin.session.value_files import ValueFiles
from nse_plugin.statistics.covariance import second_moments
from nse_plugin.statistics.files import StatisticsFiles, stats_folder

T = TypeVar("T")


class Untouched:
    """Quantities of one model before its first edit.

    Args:
        rewound: a context in which the model is the untouched one.
    """

    def __init__(
        self,
        layout: DecoderLayout,
        tokenizer: Any,
        weights: EditedWeights,
        rewound: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._layout, self._tokenizer = layout, tokenizer
        self._weights, self._rewound = weights, rewound
        self._contexts: dict[tuple[Any, ...], tuple[str, ...]] = {}
        self._about: dict[tuple[str, int], tuple[EncodedPrompt, ...]] = {}
        self._covariances: dict[tuple[Any, ...], torch.Tensor] = {}
        self._derived: dict[tuple[Any, ...], Any] = {}
        self._values: dict[tuple[Any, ...], Values] | None = None
        self._value_files: ValueFiles | None = None

    def contexts(self, hparams: LocateHparams) -> tuple[str, ...]:
        """Texts to put before prompts, separators included; the model generates them once."""
        key = _contexts_key(hparams)
        if key not in self._contexts:
            model, lengths = self._layout.model, hparams.context_lengths()
            with self._rewound(), quiet(model):
                texts = context_texts(model, self._tokenizer, seed=hparams.seed, n_tokens=lengths)
            self._contexts[key] = tuple(f"{text}. " for text in texts)
        return self._contexts[key]

    def use_contexts(self, hparams: LocateHparams, texts: Sequence[str]) -> None:
        """Use the texts of an earlier run instead of generating them again."""
        self._contexts[_contexts_key(hparams)] = tuple(texts)

    def texts_about(
        self, subjects: Sequence[str], hparams: LocateHparams
    ) -> list[tuple[EncodedPrompt, ...]]:
        """Texts about each subject, with the model's continuations as targets."""
        count, budget = hparams.kl_texts, hparams.token_budget
        missing = [s for s in dict.fromkeys(subjects) if (s, count) not in self._about]
        if missing:
            with self._rewound():
                found = texts_about(
                    self._layout.model, self._tokenizer, missing, count, token_budget=budget
                )
            self._about |= {(s, count): texts for s, texts in zip(missing, found)}
        return [self._about[s, count] for s in subjects]

    def keep_values(self) -> None:
        """Keep values from now on, for rounds that differ only in how they are written."""
        self._values = {} if self._values is None else self._values

    @contextmanager
    def keeping_values(self) -> Iterator[None]:
        """Inside, values are kept."""
        before = self._values
        self.keep_values()
        try:
            yield
        finally:
            self._values = before

    def share_values(self, files: ValueFiles) -> None:
        """From now on, use the values of other runs of this model, and keep new ones for them."""
        self._value_files = files

    def values(
        self,
        key: tuple[Any, ...],
        search: Callable[[], Values],
        *,
        device: torch.device,
        share: bool = True,
    ) -> tuple[Values, float]:
        """Values optimised in the untouched model: those kept under this key, or new ones.

        Args:
            key: all that they depend on besides the model; equal keys have an equal ``repr``.
            device: where they are used.
            share: take them from other runs, and keep them for others, if that was asked for.

        Returns:
            The values, and the seconds of the search for them if another run did it, else 0.
        """
        if self._values is not None and key in self._values:
            return self._values[key], 0.0
        files = self._value_files if share else None
        found = files.read(key, device) if files else None
        if found is None:
            start = time.perf_counter()
            found = search(), 0.0
            if files:
                files.write(key, found[0], time.perf_counter() - start)
        if self._values is not None:
            self._values[key] = found[0]
        return found

    def compute_statistics(self, hparams: Any) -> None:
        """Compute the covariances that the method of these hyperparameters needs, if any."""
        base = base_of(hparams)
        if isinstance(base, LocateHparams) and base.needs_covariance:
            self.covariances(base)

    @own_modes()
    def covariances(self, hparams: LocateHparams) -> dict[int, torch.Tensor]:
        """C by layer, float32 [d_ff, d_ff]; read or computed with the original weights."""
        source = _source(hparams)
        missing = [layer for layer in hparams.layers if (layer, *source) not in self._covariances]
        if missing:
            with self._rewound():
                moments = second_moments(
                    self._layout,
                    self._tokenizer,
                    missing,
                    source=hparams.mom2_dataset,
                    n_samples=hparams.mom2_n_samples,
                    dtype=hparams.mom2_dtype,
                    stats_dir=stats_folder(hparams.stats_dir),
                    token_budget=hparams.token_budget,
                )
            for layer, moment in moments.items():
                self._covariances[(layer, *source)] = moment.mean
        return {layer: self._covariances[(layer, *source)] for layer in hparams.layers}

    def statistics_path(self, hparams: LocateHparams, layer: int) -> Path:
        """The file of a layer's covariance as this package writes it, whether it exists or not."""
        dataset, n_samples, dtype, named = _source(hparams)
        files = StatisticsFiles(self._layout, stats_folder(named), dataset, n_samples, dtype)
        return files.path(layer)

    def keep_only(self, layers: Sequence[int]) -> None:
        """Forget the covariances of other layers, and what was derived from them."""
        for kept in self._covariances, self._derived:
            for key in [key for key in kept if key[0] not in layers]:
                del kept[key]

    def of_covariance(
        self, hparams: LocateHparams, layer: int, function: Callable[..., T], *settings: Any
    ) -> T:
        """``function(C, *settings)`` of a layer, on the layer's device, computed once."""
        key = (layer, function, settings, _source(hparams))
        if key not in self._derived:
            device = self._layout.down(layer).weight.device
            self._derived[key] = function(self.covariances(hparams)[layer].to(device), *settings)
        return self._derived[key]

    def of_original(self, layer: int, function: Callable[..., T], *settings: Any) -> T:
        """``function(W, *settings)`` of a layer's original matrix W [d_model, d_ff], computed once;
        the layer is one of the round's."""
        key = (layer, function, settings)
        if key not in self._derived:
            original = self._weights.original(self._layout.down_name(layer))
            self._derived[key] = function(self._layout.to_weight(original), *settings)
        return self._derived[key]


def _contexts_key(hparams: LocateHparams) -> tuple[Any, ...]:
    return (hparams.seed, *hparams.context_lengths())


def _source(hparams: LocateHparams) -> tuple[Any, ...]:
    """What identifies a covariance besides its layer."""
    return (hparams.mom2_dataset, hparams.mom2_n_samples, hparams.mom2_dtype, hparams.stats_dir)
