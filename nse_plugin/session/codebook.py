"""GRACE's codebook: it replaces a layer's output for known inputs (arXiv 2211.11031).

An entry is a key (an input of the layer), a value (the output that replaces the layer's own) and a
radius.  At every token whose input lies within the radius of the nearest key, the layer's output
becomes that key's value.

EasyEdit's GRACE looks at one token only, the one whose index the last edit stored.  At the edited
prompt both are the same; looking at every token also works for other prompts, for batches, and in
generation token by token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from nse_plugin.errors import ModelError
from nse_plugin.model.layout import DecoderLayout

SAME = 1e-4
"""Keys nearer than this share of a new ball's radius are of one prompt and differ by rounding."""
_APART = 1e-5  # gap between the balls of two keys with different targets


class Codebook:
    """A codebook on one layer of a model.

    Args:
        config: ``module`` (its name, as EasyEdit's ``inner_params`` have it: brackets and a final
            ``.weight`` are allowed) and ``eps`` (radius of a new ball).

    Raises:
        ModelError: there is no such linear layer, or it has a codebook of another session.
    """

    def __init__(self, layout: DecoderLayout, config: Mapping[str, Any]) -> None:
        self.module = find_layer(layout.model, str(config["module"]))
        self.eps = float(config["eps"])
        d_in, d_out = self.module.weight.shape  # of Conv1D
        if isinstance(self.module, nn.Linear):
            d_in, d_out = d_out, d_in
        device = self.module.weight.device
        self.keys = torch.zeros(0, d_in, device=device)
        """[N, d_in] float32"""
        self.values = torch.zeros(0, d_out, device=device)
        """[N, d_out] float32"""
        self.radii = torch.zeros(0, device=device)
        """[N] float32"""
        self.labels: list[tuple[int, ...]] = []
        """N targets, as token ids."""
        self._off = False
        self._trained: tuple[int, torch.Tensor] | None = None
        self._hook = self.module.register_forward_hook(self._replace)

    def __len__(self) -> int:
        return len(self.keys)

    @torch.no_grad()
    def place(self, query: torch.Tensor, label: Sequence[int], start: torch.Tensor) -> int:
        """Find or make the entry of an edit; returns the entry whose value is to be trained.

        Far from all balls, a new entry is made.  A near key of the same target grows its ball to
        cover the query.  A near key of another target shares the distance with a new entry, half
        each, or takes over the new target if both belong to one prompt.

        Args:
            query: [d_in], the layer's input.
            label: the target's token ids.
            start: [d_out], the initial value of a new entry.
        """
        label = tuple(label)
        if not len(self):
            return self._add(query, label, start, self.eps)
        distances, nearest = self._nearest(query[None])
        distance, index = float(distances[0]), int(nearest[0])
        if distance > self.eps + float(self.radii[index]):
            return self._add(query, label, start, self.eps)
        if self.labels[index] == label:
            self.radii[index] = max(distance, float(self.radii[index]))
            return index
        if distance < SAME * self.eps:
            self.labels[index] = label
            self.values[index] = start.float()
            return index
        self.radii[index] = distance / 2 - min(_APART, distance / 4)  # never below zero
        return self._add(query, label, start, distance / 2)

    @contextmanager
    def training(self, index: int) -> Iterator[torch.Tensor]:
        """The value [d_out] of an entry, to be trained inside; it is discarded on error."""
        value = self.values[index].clone().requires_grad_(True)
        self._trained = (index, value)
        try:
            yield value
            self.values[index] = value.detach()
        finally:
            self._trained = None

    def state(self) -> dict[str, torch.Tensor]:
        """Keys, values, radii, and targets [N, longest] padded with -1."""
        longest = max(map(len, self.labels), default=0)
        padded = [[*label, *[-1] * (longest - len(label))] for label in self.labels]
        labels = torch.tensor(padded, dtype=torch.long).reshape(len(self), longest)
        return {"keys": self.keys, "values": self.values, "radii": self.radii, "labels": labels}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over a state."""
        device = self.module.weight.device
        self.keys, self.values, self.radii = (
            state[name].to(device, copy=True) for name in ("keys", "values", "radii")
        )
        self.labels = [tuple(t for t in row if t >= 0) for row in state["labels"].tolist()]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the layer keeps its own output."""
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before

    def remove(self) -> None:
        """Detach from the layer."""
        self._hook.remove()

    def _add(
        self, key: torch.Tensor, label: tuple[int, ...], value: torch.Tensor, radius: float
    ) -> int:
        self.keys = torch.cat([self.keys, key.float()[None]])
        self.values = torch.cat([self.values, value.float()[None]])
        self.radii = torch.cat([self.radii, self.radii.new_tensor([radius])])
        self.labels.append(label)
        return len(self) - 1

    def _nearest(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Distance [n] to the nearest key and its index [n], for queries [n, d_in]."""
        # computed by matrix products, distances would be off by more than a small radius
        distances = torch.cdist(
            queries.float(), self.keys, compute_mode="donot_use_mm_for_euclid_dist"
        )
        found = distances.min(dim=1)
        return found.values, found.indices

    def _replace(
        self, _module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor | None:
        if self._off or not len(self):
            return None
        with torch.no_grad():
            distance, nearest = self._nearest(args[0].reshape(-1, args[0].shape[-1]))
        values = self.values
        if self._trained is not None:
            index, value = self._trained
            values = torch.cat([values[:index], value[None], values[index + 1 :]])
        hit = (distance <= self.radii[nearest]).view(*output.shape[:-1], 1)
        return torch.where(hit, values[nearest].view(output.shape).to(output.dtype), output)


def find_layer(model: nn.Module, name: str) -> Any:
    """The linear layer that a name of EasyEdit's ``inner_params`` means.

    Raises:
        ModelError: as :class:`Codebook`.
    """
    path = re.sub(r"\[(\d+)\]", r".\1", name).removesuffix(".weight").removesuffix(".bias")
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise ModelError(
            f"inner_params names {name!r}, which the model does not have ({error}); correct it"
        ) from error
    weight = getattr(module, "weight", None)
    if weight is None or weight.dim() != 2 or isinstance(module, nn.Embedding):
        raise ModelError(
            f"inner_params names {name!r}, a {type(module).__name__}; give a linear layer of the "
            "model, e.g. one of an MLP"
        )
    for hook in module._forward_hooks.values():
        if isinstance(getattr(hook, "__self__", None), Codebook):
            raise ModelError(
                f"{name} has a codebook already that is not this session's, as in a copy of an "
                "edited model; load the model again"
            )
    return module
