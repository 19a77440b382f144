"""A snapshot of a model, to restore it when a call of an EasyEdit editor fails half-way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Snapshot:
    """A model's modules and settings, and the values of the parameters that an optimizer changes.

    Modules and settings are kept by reference, which costs next to nothing.  Values are copied only
    of parameters that an optimizer is about to change (:meth:`remember`); weights changed by other
    means are not restored.
    """

    def __init__(self, model: nn.Module) -> None:
        owners: list[Any] = list(model.modules())
        owners += [module.config for module in owners if hasattr(module, "config")]
        self._owners = {id(owner): (owner, _shallow(owner)) for owner in owners}
        self._trainable = [(p, p.requires_grad, p.grad) for p in model.parameters()]
        self._known = {id(p) for p, *_ in self._trainable}
        self._values: dict[int, tuple[nn.Parameter, Tensor]] = {}

    def remember(self, optimizer: torch.optim.Optimizer) -> None:
        """Copy the values that the optimizer's step will change; call it before the step."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                new = id(parameter) in self._known and id(parameter) not in self._values
                if new and parameter.requires_grad:
                    self._values[id(parameter)] = (parameter, parameter.detach().clone())

    @torch.no_grad()
    def restore(self) -> None:
        """Restore all of it."""
        for owner, attributes in self._owners.values():
            vars(owner).clear()
            vars(owner).update(attributes)
        for parameter, values in self._values.values():
            parameter.copy_(values)
        for parameter, requires_grad, grad in self._trainable:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad


def _shallow(owner: Any) -> dict[str, Any]:
    """An object's attributes, with copies of its dicts (of modules, parameters, hooks ...)."""
    return {
        name: value.copy() if isinstance(value, dict) else value
        for name, value in vars(owner).items()
    }
