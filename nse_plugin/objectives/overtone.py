"""OVERTONE: targets smoothed per token (arXiv 2502.00602, ICML 2025, section 4).

A one-hot target trains tokens that the model already knows as hard as the others: they are
overfitted by the time the last one is learnt.  With s the logits, pi = softmax(s) and y the target
token, OVERTONE's target is, chosen for each token at each step,

    pi_flt    = softmax over the tokens with s > max(s) - n_sigma * std(s)
    candidate = lambda * onehot(y) + (1 - lambda) * pi_flt
    target    = candidate where y is its argmax, else onehot(y)
    loss      = max(KL(target || pi), epsilon)

and no gradient flows through the target.  Details that the formula leaves open:

- std is the unbiased one, over the tokens whose logits are finite: a masked vocabulary (-inf)
  counts as a smaller vocabulary.
- The largest logit always survives the filter, also if std is 0 or there is one token.
- If y shares the argmax with another token, y counts as the argmax.
- An editor's rule for stopping sees KL(target || pi) without the clip: a clipped loss never falls
  below epsilon, and an editor that waits for less would never stop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nse_plugin.errors import HparamsError
from nse_plugin.hparams.overtone import OvertoneSettings
from nse_plugin.objectives import TokenLoss


class Decisions(NamedTuple):
    """The decisions for each target token at one step; all [tokens]."""

    smoothed: Tensor
    """bool: the filter keeps another token than the target, so there is something to mix in."""
    disagrees: Tensor
    """bool: the mixture prefers another token, so the argmax check uses the one-hot target."""
    settled: Tensor
    """bool: KL(target || pi) is at most epsilon, so the token is not trained further."""


class _Mixture(NamedTuple):
    """The targets of all tokens, as a list of their entries that may be above zero."""

    rows: Tensor
    """[entries], token."""
    items: Tensor
    """[entries], vocabulary item."""
    target: Tensor
    """[entries], probability."""
    agrees: Tensor
    """[tokens] bool: the target token is the mixture's argmax, before the check."""


@dataclass(unsafe_hash=True)
class Overtone(OvertoneSettings):
    """The objective."""

    @property
    def needs_reference(self) -> bool:
        """Whether a call needs the logits before the edit's first step."""
        return self.frozen_reference and self._mixes

    def __call__(
        self, logits: Tensor, targets: Tensor, reference: Tensor | None = None
    ) -> TokenLoss:
        """Losses per target token; see :class:`nse_plugin.objectives.TokenObjective`.

        Args:
            logits: [tokens, vocab]; half precision is computed in float32.
            targets: [tokens], ids.
            reference: [tokens, vocab], read with ``frozen_reference`` only.
        """
        if self.needs_reference and reference is None:
            raise HparamsError(
                "frozen_reference is on, and no logits of the unedited model were given; give "
                "them, or switch it off"
            )
        logits = _at_least_float32(logits)
        if not self._mixes:  # KL(onehot || pi) is cross entropy, to the bit
            kl = F.cross_entropy(logits, targets, reduction="none")
        elif not self.filter and not self.needs_reference:
            kl = self._unfiltered(logits, targets)
        else:
            log_p = F.log_softmax(logits.detach(), dim=1)
            source = log_p
            if self.frozen_reference and reference is not None:
                source = F.log_softmax(_at_least_float32(reference.detach()), dim=1)
            kl = _Divergence.apply(logits, log_p, *self._mixture(source, targets)[:3])
        return TokenLoss(self._clipped(kl), kl.detach())

    @torch.no_grad()
    def decisions(self, logits: Tensor, targets: Tensor) -> Decisions:
        """The decisions for the current distribution, also with ``frozen_reference``.

        Args:
            logits: [tokens, vocab].
            targets: [tokens], ids.
        """
        log_p = F.log_softmax(_at_least_float32(logits), dim=1)
        rows, items, target, agrees = self._mixture(log_p, targets)
        others = (items != targets[rows]).to(log_p.dtype)
        smoothed = log_p.new_zeros(len(targets)).index_add(0, rows, others) > 0
        kl = _Divergence.apply(log_p, log_p, rows, items, target)
        return Decisions(smoothed, ~agrees, kl <= self.epsilon)

    @property
    def _mixes(self) -> bool:
        return self.mixing and self.lambda_ < 1

    def _unfiltered(self, logits: Tensor, targets: Tensor) -> Tensor:
        """KL(target || pi) [tokens] without a filter.

        The target is lambda onehot + (1 - lambda) pi, so the gradient pi - target is lambda times
        that of cross entropy, and the sum over the vocabulary has a closed form.
        """
        cross = F.cross_entropy(logits, targets, reduction="none")
        log_p, rest = -cross.detach(), 1 - self.lambda_
        p = log_p.exp()
        mixed = self.lambda_ + rest * p
        kl = rest * (1 - p) * math.log(rest) + torch.special.xlogy(mixed, mixed) - mixed * log_p
        weight = torch.full_like(kl, self.lambda_)
        if self.argmax_check:
            top = logits.detach().amax(dim=1) - logits.detach().gather(1, targets[:, None])[:, 0]
            agrees = mixed >= rest * (log_p + top).exp()
            kl, weight = torch.where(agrees, kl, -log_p), torch.where(agrees, weight, 1.0)
        return kl + weight * (cross - cross.detach())

    def _clipped(self, kl: Tensor) -> Tensor:
        """max(kl, epsilon), without a gradient at or below epsilon; NaN stays NaN."""
        if not self.clip or self.epsilon == 0:
            return kl
        return torch.where(kl <= self.epsilon, self.epsilon, kl)

    def _mixture(self, source: Tensor, targets: Tensor) -> _Mixture:
        """The targets of all tokens.

        A filtered distribution has few tokens, so its entries are listed.  In most rows only the
        target is left, which one pass over the vocabulary shows; only the other rows are searched
        for entries.

        Args:
            source: [tokens, vocab], log probabilities of the distribution to mix in.
            targets: [tokens].
        """
        token = torch.arange(len(targets), device=targets.device)
        at_target = source[token, targets]
        std = _std(source) if self.filter else None
        source[token, targets] = -math.inf  # until the other tokens are listed
        other = source.amax(dim=1)
        bound = self._bound(torch.maximum(other, at_target), std)
        several = (other > bound).nonzero()[:, 0]
        found, others = (source[several] > bound[several, None]).nonzero(as_tuple=True)
        rows = torch.cat([several[found], token])
        items = torch.cat([others, targets])
        source[token, targets] = at_target
        is_target = torch.cat([torch.zeros_like(others), torch.ones_like(token)]).bool()
        lost = is_target & (at_target <= bound)[rows]
        probability = source[rows, items].exp().masked_fill(lost, 0.0)
        mass = source.new_zeros(len(targets)).index_add(0, rows, probability)
        filtered = probability / mass[rows]
        onehot = is_target.to(filtered.dtype)
        share = self.lambda_ if self.mixing else 1.0
        candidate = share * onehot + (1 - share) * filtered
        top = torch.zeros_like(mass).scatter_reduce(0, rows, candidate, "amax")
        agrees = candidate[is_target] >= top  # one entry per token, in the tokens' order
        if self.argmax_check:
            candidate = torch.where(agrees[rows], candidate, onehot)
        return _Mixture(rows, items, candidate, agrees)

    def _bound(self, top: Tensor, std: Tensor | None) -> Tensor:
        """[tokens]: log probabilities above it survive the filter; top and std: [tokens]."""
        if std is None:
            return torch.full_like(top, -math.inf)
        just_below_top = torch.nextafter(top, torch.full_like(top, -math.inf))
        return torch.minimum(top - self.n_sigma * std, just_below_top)


class _Divergence(torch.autograd.Function):
    """KL(target || softmax(logits)) per token; its gradient is softmax(logits) - target."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, log_p: Tensor, rows: Tensor, items: Tensor, target: Tensor
    ) -> Tensor:
        """[tokens]; log_p: [tokens, vocab], log softmax of the logits; the rest: [entries]."""
        ctx.save_for_backward(log_p, rows, items, target)
        # entries with target 0 cost nothing, also for 0 * -inf
        cross = torch.where(target == 0, 0.0, target * log_p[rows, items])
        each = torch.special.xlogy(target, target) - cross
        return log_p.new_zeros(len(log_p)).index_add(0, rows, each)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        """gradient: [tokens]; where it is 0, the result is exactly 0."""
        log_p, rows, items, target = ctx.saved_tensors
        out = log_p.exp().mul_(gradient[:, None])
        out.index_put_((rows, items), -target * gradient[rows], accumulate=True)
        return out, None, None, None, None


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _std(values: Tensor) -> Tensor:
    """Unbiased standard deviation [rows] over the finite values of each row [rows, vocab]."""
    n = values.new_full((len(values),), values.shape[1])
    centred = values - values.mean(dim=1, keepdim=True)
    masked = centred[:, 0].isfinite().logical_not()  # a row with -inf has no finite mean
    if masked.any():
        some = values[masked]
        finite = some.isfinite()
        n[masked] = finite.sum(dim=1).to(n.dtype)
        mean = some.masked_fill(~finite, 0.0).sum(dim=1) / n[masked]
        centred[masked] = (some - mean[:, None]).masked_fill(~finite, 0.0)
    # the norm over a row is several times faster than Tensor.std on a CPU
    return torch.linalg.vector_norm(centred, dim=1) / (n - 1).clamp(min=1).sqrt()
