"""Detect changes of parameters by other code."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from nse_plugin.model.weights import fingerprint


@dataclass
class _Seen:
    mark: tuple[int, int]  # changes if the parameter is written or moved; costs nothing to read
    value: int  # fingerprint; costs one pass over the parameter
    parameter: weakref.ref[torch.Tensor]


class Watch:
    """Remembers a model's matrices and finds those that have changed since.

    A matrix is read again only if torch has counted a write to it, so a check costs nothing unless
    other code wrote to the model; writes through ``parameter.data`` are not counted.  A parameter
    is found by identity, since PEFT renames it by wrapping its module; if it was replaced, by name.
    """

    def __init__(self, model: nn.Module) -> None:
        self._seen = {
            name: _Seen(_mark(parameter), fingerprint(parameter), weakref.ref(parameter))
            for name, parameter in model.named_parameters()
            if parameter.dim() > 1 and not parameter.is_meta and parameter.element_size() > 1
        }

    def leave_out(self, names: Iterable[str]) -> None:
        """Stop watching these parameters."""
        for name in names:
            self._seen.pop(name, None)

    def changed(self, model: nn.Module) -> list[str]:
        """Names of the watched parameters that are gone or have changed."""
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
