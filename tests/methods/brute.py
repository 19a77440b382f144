"""Helpers of the tests that hold a method's weights against a plain float64 computation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nse_plugin.locate.keys import Lookups
from nse_plugin.locate.rows import encode_round
from nse_plugin.requests import EditRequest
from nse_plugin.session.session import EditSession
from tests.tiny import some_requests, tiny_hparams

FEW_AND_MANY_KEYS = [
    ("gpt2", {}), ("llama", {}), ("gpt2", {"n_inner": 8}), ("llama", {"intermediate_size": 8}),
]  # fmt: skip
"""Families and sizes of tiny models.  With 48 neurons the keys of :func:`three_rounds` are few in
every round; with 8 they are too many in the third, and the dense system is solved."""


def hparams_of(kind: type, **changes: Any) -> Any:
    """Hyperparameters of any method that edit a tiny model in little time."""
    shared = tiny_hparams().to_dict()
    own = ("neuron_threshold", "selection_rule", "alpha", "upper_bound", "max_iterations")
    for name in (*own, "use_previous_keys"):
        shared.pop(name)
    fields = {name: shared[name] for name in shared if hasattr(kind, name) or name == "layers"}
    return kind(**{**fields, "model_name": "tiny", "alg_name": kind.method, **changes})


def down_weights(model: Any, layers: Sequence[int]) -> list[torch.Tensor]:
    """Copies of the down-projections, each as [d_model, d_ff]."""
    layout = EditSession.of(model).layout
    return [layout.to_weight(layout.down(layer).weight.detach()).clone() for layer in layers]


@dataclass
class Brute:
    """A copy of a model that is patched in place, without ledger, rewinding or factors."""

    model: Any
    session: EditSession
    hparams: Any

    @classmethod
    def of(cls, model: Any, tokenizer: Any, hparams: Any) -> Brute:
        model = copy.deepcopy(model)
        return cls(model, EditSession.of(model, tokenizer), hparams)

    def lookups(self, requests: Sequence[EditRequest], contexts: Sequence[str]) -> Lookups:
        return Lookups.of(
            self.session.layout,
            encode_round(self.session.layout, self.session.tokenizer, requests, contexts),
            100_000,
        )

    def spread(
        self,
        requests: Sequence[EditRequest],
        z: torch.Tensor,
        contexts: Sequence[str],
        solve: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> dict[int, torch.Tensor]:
        """One pass over all layers; gives the keys after it, float64 [d_ff, n] by layer."""
        layers = self.hparams.layers
        lookups = self.lookups(requests, contexts)
        for i, layer in enumerate(layers):
            K = lookups.keys([layer])[layer].double()
            R = (z - lookups.activations(layers[-1])).double().T / (len(layers) - i)
            self.patch(layer, solve(layer, K, R))
        return {layer: k.double() for layer, k in lookups.keys(layers).items()}

    def patch(self, layer: int, delta: torch.Tensor) -> None:
        layout = self.session.layout
        with torch.no_grad():
            layout.down(layer).weight += layout.to_weight(delta).float()


def three_rounds() -> list[list[EditRequest]]:
    return [some_requests(6)[i : i + 2] for i in (0, 2, 4)]


def check_equal(original: Any, got: Any, expected: Any, layers: Sequence[int]) -> None:
    """Weights moved, and to where they should."""
    for w0, w, want in zip(*(down_weights(model, layers) for model in (original, got, expected))):
        assert (w - w0).norm() > 0.01 * w0.norm()
        assert (w - want).norm() < 1e-3 * (want - w0).norm()
