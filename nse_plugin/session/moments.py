"""Mean and variance of features over a stream of edits, merged round by round."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Moments:
    """Moments of some feature vectors, in float64 in main memory."""

    count: int
    """Number of vectors."""
    mean: torch.Tensor
    """[d]."""
    squares: torch.Tensor
    """[d], sum of squared deviations from the mean."""

    @classmethod
    def of(cls, features: torch.Tensor) -> Moments:
        """The moments of features [n, d]."""
        rows = features.double().cpu()
        mean = rows.mean(dim=0)
        return cls(len(rows), mean, (rows - mean).square().sum(dim=0))

    def merged(self, later: Moments) -> Moments:
        """The moments of both sets of vectors together (Chan et al., 1979)."""
        count = self.count + later.count
        apart = later.mean - self.mean
        between = apart.square() * (self.count * later.count / count)
        return Moments(
            count,
            self.mean + apart * (later.count / count),
            self.squares + later.squares + between,
        )

    def standardised(self, features: torch.Tensor) -> torch.Tensor:
        """(features - mean) / standard deviation, for features [n, d]: float64 [n, d]."""
        mean, squares = self.mean.to(features.device), self.squares.to(features.device)
        deviation = (squares / max(self.count - 1, 1)).sqrt()
        return (features.double() - mean) / (deviation + torch.finfo(torch.float32).eps)
