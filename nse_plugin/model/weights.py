"""Originals, accumulated change, write, rewind and undo of the edited matrices.

A matrix is never patched in place repeatedly.  The model always holds ``cast(original + change)``,
with the change summed in float32 and added in the wider dtype of the two.  So a bfloat16 model does
not lose changes smaller than its rounding, rewinding is a swap of pointers, and a change of zero
gives the original bits, also in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from nse_plugin.errors import ModelError, NotFiniteError


@dataclass
class _Edited:
    parameter: torch.Tensor
    original: torch.Tensor  # dtype and device of the parameter
    original_fingerprint: int
    change: torch.Tensor | None = None  # float32, shape of the parameter; None is no change

    def plus(self, change: torch.Tensor | None) -> torch.Tensor:
        """original + change, in float32, or in float64 if the model is."""
        wide = self.original.to(torch.promote_types(self.original.dtype, torch.float32))
        return wide if change is None else wide + change


class EditedWeights:
    """The edited matrices of one model, by parameter name."""

    def __init__(self) -> None:
        self._edited: dict[str, _Edited] = {}

    def names(self) -> list[str]:
        """Names of the tracked parameters."""
        return list(self._edited)

    def track(self, name: str, parameter: torch.Tensor) -> None:
        """Track a parameter; its current value counts as its original.

        Raises:
            ModelError: the weight is offloaded, quantised, or holds NaN or infinity.
        """
        if name in self._edited:
            return
        if parameter.is_meta:
            raise ModelError(
                f"{name} is offloaded and cannot be written; give the model a device map "
                "that keeps the edited layers on a device"
            )
        if not parameter.is_floating_point() or parameter.element_size() < 2:
            raise ModelError(
                f"{name} is stored as {parameter.dtype} and cannot take a change; "
                "load the model in float32, bfloat16 or float16"
            )
        if not all_finite(parameter):
            raise ModelError(f"{name} holds NaN or infinity; load the model again")
        original = parameter.detach().clone()
        self._edited[name] = _Edited(parameter, original, fingerprint(original))

    def replaced(self, model: nn.Module) -> list[str]:
        """Names of the tracked parameters that the model no longer has, as after
        ``load_state_dict(..., assign=True)``."""
        present = {id(parameter) for parameter in model.parameters()}
        return [name for name, each in self._edited.items() if id(each.parameter) not in present]

    def original(self, name: str) -> torch.Tensor:
        """The weight before the first edit; do not write to it."""
        return self._edited[name].original

    def change(self, name: str) -> torch.Tensor | None:
        """The float32 sum of all changes, or None if there is none; do not write to it."""
        return self._edited[name].change

    def value(self, name: str) -> torch.Tensor:
        """Original plus change in float32 or wider, not rounded to the model's dtype."""
        edited = self._edited[name]
        return edited.plus(edited.change)

    @torch.no_grad()
    def add(self, name: str, change: torch.Tensor) -> None:
        """Add a change (shape of the parameter) and write the sum to the model.

        Raises:
            NotFiniteError: the sum is not finite in the model's dtype.  The model is as before.
        """
        before = self._edited[name].change
        change = change.to(self._edited[name].original.device, torch.float32)
        self.set(name, change if before is None else before + change)

    @torch.no_grad()
    def set(self, name: str, change: torch.Tensor | None) -> None:
        """Replace the sum of all changes; None restores the original bit by bit.

        Raises:
            NotFiniteError: as :meth:`add`.
        """
        edited = self._edited[name]
        if change is None:
            value = edited.original
        else:
            value = edited.plus(change).to(edited.original.dtype)
            if not all_finite(value):
                raise NotFiniteError(
                    f"the change of {name} is not finite; nothing was written. "
                    "Lower v_lr or raise mom2_update_weight"
                )
        edited.parameter.data.copy_(value)
        edited.change = change

    def snapshot(self) -> dict[str, torch.Tensor | None]:
        """The current changes, for :meth:`restore`; nothing is copied, since sums are replaced and
        never written in place."""
        return {name: edited.change for name, edited in self._edited.items()}

    def restore(self, snapshot: dict[str, torch.Tensor | None]) -> None:
        """Restore a snapshot; matrices tracked since then get their original."""
        for name in self._edited:
            self.set(name, snapshot.get(name))

    def at(self, name: str, snapshot: dict[str, torch.Tensor | None]) -> torch.Tensor:
        """A copy of the weight as the model held it at a snapshot, bit for bit."""
        edited, change = self._edited[name], snapshot.get(name)
        if change is None:
            return edited.original.clone()
        return edited.plus(change).to(edited.original.dtype)

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """Inside, the model holds the originals; it is restored afterwards, even on error."""
        held = {name: edited.parameter.data for name, edited in self._edited.items()}
        try:
            for edited in self._edited.values():
                edited.parameter.data = edited.original
            yield
        finally:
            for name, edited in self._edited.items():
                edited.parameter.data = held[name]

    def fingerprint(self) -> dict[str, int]:
        """A number per matrix that changes if any bit of the matrix changes."""
        return {name: fingerprint(edited.parameter) for name, edited in self._edited.items()}

    def original_fingerprint(self) -> dict[str, int]:
        """The same for the originals."""
        return {name: edited.original_fingerprint for name, edited in self._edited.items()}


@torch.no_grad()
def all_finite(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity.

    Its extremes are NaN if one of its numbers is.  ``torch.isfinite`` makes a tensor of the same
    size and takes ten times as long.
    """
    return not tensor.numel() or bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


_AT_ONCE = {"cpu": 2**17}
"""Numbers of a matrix that a fingerprint converts to int64 at once: 1 MiB, which fits a cache.

On a GPU, where each step costs a kernel, it is 128 MiB.
"""
_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


@torch.no_grad()
def fingerprint(weight: torch.Tensor) -> int:
    """Position-weighted sum of a matrix's bits.

    Sums are integers modulo 2**64, so their order does not matter, and equal bits give equal
    numbers on CPU and GPU.
    """
    matrix = weight.detach().reshape(weight.shape[0], -1)  # experts and patches have more axes
    bits = matrix.contiguous().view(_BITS[weight.element_size()])
    by_row = bits.new_empty(bits.shape[0], dtype=torch.int64)
    by_column = bits.new_zeros(bits.shape[1], dtype=torch.int64)
    step = max(1, _AT_ONCE.get(bits.device.type, 2**24) // max(1, bits.shape[1]))
    for start in range(0, bits.shape[0], step):  # short integers would overflow
        chunk = bits[start : start + step].long()
        by_row[start : start + step] = chunk.sum(dim=-1)
        by_column += chunk.sum(dim=0)
    rows = torch.arange(1, by_row.numel() + 1, device=bits.device)
    columns = torch.arange(1, by_column.numel() + 1, device=bits.device)
    return int((by_row * rows).sum() + 31 * (by_column * columns).sum())
