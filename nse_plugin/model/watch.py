"""Detect writes by other code to parameters that must not change."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from nse_plugin.model.weights import fingerprint


@dataclass
class _Seen:
    mark: tuple[int, int]  # changes when the parameter is written to or moved; free to read
    value: int  # fingerprint; one pass over the parameter
    parameter: weakref.ref[torch.Tensor]


class Watch:
    """What a model's matrices held when the watch began.

    A matrix is read again only if torch counts a write to it, so a check costs nothing as long as
    no other code touched the model.  Torch does not count a write through ``parameter.data``.  A
    parameter is found as an object, since PEFT wraps modules and so renames it; if it was replaced,
    by its name.
    """

    def __init__(self, model: nn.Module) -> None:
        self._seen = {
            name: _Seen(_mark(parameter), fingerprint(parameter), weakref.ref(parameter))
            for name, parameter in model.named_parameters()
            if parameter.dim() > 1 and not parameter.is_meta and parameter.element_size() > 1
        }

    def leave_out(self, names: Iterable[str]) -> None:
        """No longer watch these parameters."""
        for name in names:
            self._seen.pop(name, None)

    def changed(self, model: nn.Module) -> list[str]:
        """Names of the watched parameters that are gone or hold something else."""
        parameters = dict(model.named_parameters())
        present = {id(parameter) for parameter in parameters.values()}
        found = []
        for name, seen in self._seen.items():
            parameter = seen.parameter()
            if parameter is None or id(parameter) not in present:
                parameter = parameters.get(name)
            if parameter is None or parameter.is_meta:
                found.append(name)
            elif _mark(parameter) != seen.mark:
                if fingerprint(parameter) == seen.value:
                    seen.mark = _mark(parameter)
                else:
                    found.append(name)
        return found


def _mark(parameter: torch.Tensor) -> tuple[int, int]:
    return parameter.data_ptr(), parameter._version
