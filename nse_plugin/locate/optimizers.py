"""Optimizers of values, with one state per row, so that requests can stop at different steps."""

from __future__ import annotations

import torch

from nse_plugin.hparams import LocateHparams

MOMENTUM = 0.5
"""Momentum of ``v_optimizer: polyak``."""
LONGEST_STEP = 0.3
"""Longest step of ``v_optimizer: polyak``, as a share of the bound of ||delta||."""


def bound_of(hparams: LocateHparams, base: torch.Tensor) -> torch.Tensor:
    """[n, 1], the bound of ||delta||, for h [n, d_model]."""
    return hparams.clamp_norm_factor * base.norm(dim=1, keepdim=True)


def _learning_rate(hparams: LocateHparams, base: torch.Tensor) -> torch.Tensor:
    """[n, 1]: v_lr, which may be a share of the root mean square of h [n, d_model]."""
    if hparams.v_lr_relative is None:
        return torch.full_like(base[:, :1], 0.5 if hparams.v_lr is None else hparams.v_lr)
    return hparams.v_lr_relative * base.square().mean(dim=1, keepdim=True).sqrt()


class Adam:
    """Adam with one state per row; the update is torch.optim.Adam's."""

    def __init__(self, hparams: LocateHparams, base: torch.Tensor) -> None:
        self.lr = _learning_rate(hparams, base)
        self.steps = 0
        self.mean, self.square = torch.zeros_like(base), torch.zeros_like(base)

    def step(self, gradient: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        """The change of the parameters, [rows, features], for losses [rows]."""
        self.steps += 1
        self.mean = 0.9 * self.mean + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient.square()
        mean = self.mean / (1 - 0.9**self.steps)
        square = self.square / (1 - 0.999**self.steps)
        return -self.lr * mean / (square.sqrt() + 1e-8)

    def select(self, rows: torch.Tensor) -> Adam:
        """The same with some of the rows."""
        self.lr, self.mean, self.square = self.lr[rows], self.mean[rows], self.square[rows]
        return self


class Polyak:
    """Steps of Polyak's length, loss / ||gradient||, with Nesterov's momentum.

    This is the distance to a loss of 0 if the slope stayed the same (Polyak, Introduction to
    Optimization, 1987; arXiv 2002.10542), so there is no learning rate.  Adam's first steps move
    every feature equally, whether the loss depends on it or not; steps along the gradient reach
    the same loss in fewer evaluations and with a shorter delta (docs/methods.md).
    """

    def __init__(self, hparams: LocateHparams, base: torch.Tensor) -> None:
        self.longest = LONGEST_STEP * bound_of(hparams, base)
        self.mean = torch.zeros_like(base)

    def step(self, gradient: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        """The change of the parameters, [rows, features], for losses [rows]."""
        norm = gradient.norm(dim=1, keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)
        length = torch.minimum(loss[:, None] / norm, self.longest)
        step = (1 - MOMENTUM) * length * gradient / norm
        self.mean = MOMENTUM * self.mean + step
        return -(MOMENTUM * self.mean + step)

    def select(self, rows: torch.Tensor) -> Polyak:
        """The same with some of the rows."""
        self.longest, self.mean = self.longest[rows], self.mean[rows]
        return self


OPTIMIZERS: dict[str, type[Adam | Polyak]] = {"adam": Adam, "polyak": Polyak}
