"""Hyperparameters of methods that locate a fact and write it into MLP down-projections."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nse_plugin.hparams.base import LayersHparams
from nse_plugin.hparams.validation import bounded

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(kw_only=True)
class LocateHparams(LayersHparams):
    """What locate-then-edit methods share: the optimisation of values, and the statistics.

    The last of `layers` is the z-layer.
    """

    value_of: ClassVar[Literal["block", "mlp"]] = "block"
    """The module of the z-layer whose output is the value: the whole block, or its MLP."""

    fact_token: Literal["subject_last"] = "subject_last"
    """The token whose representation is edited."""
    layer_selection: Literal["all"] = "all"
    """For EasyEdit's YAMLs; all of `layers` are edited."""

    v_num_grad_steps: int = bounded(25, low=1)
    """Evaluations of the value loss, with one step between two of them."""
    v_optimizer: Literal["adam", "polyak"] = "adam"
    """Optimizer of values: adam, as in the papers; polyak (ours), with steps of length
    loss / ||gradient||, which needs no learning rate and fewer evaluations."""
    v_lr: float | None = bounded(None, above=0)
    """Adam's learning rate for the value; default 0.5."""
    v_lr_relative: float | None = bounded(None, above=0)
    """v_lr as a share of the root mean square of h, instead of v_lr."""
    v_loss_layer: int | None = bounded(None, low=0)
    """Block from whose output the target's loss is computed; default the last."""
    v_weight_decay: float = bounded(0.5, low=0)
    """Weight of ||delta|| / ||h||^2."""
    v_stop_loss: float = bounded(0.05, low=0)
    """A request stops when its loss is below this."""
    v_stop: Literal["loss", "rank"] = "loss"
    """rank: also stop two steps after the target is the first choice in every context (arXiv
    2502.01636); loss: only at `v_stop_loss`."""
    value_margin: float = bounded(0.0, low=0)
    """Lengthen each optimised delta by this share, within its bound: a value that is only just
    enough for the edited prompt does not generalise to paraphrases (ours; 0 in the papers)."""
    clamp_norm_factor: float = bounded(0.75, above=0)
    """Bound of ||delta|| as a multiple of ||h||."""
    kl_factor: float = bounded(0.0625, low=0)
    """Weight of the divergence at "{subject} is a", and over `kl_texts`."""
    kl_texts: int = bounded(0, low=0, high=5)
    """Number of texts about the subject, written by the untouched model, that the divergence also
    covers, so that other knowledge about the subject is preserved (ours; 0 in the papers)."""

    mom2_adjustment: bool = True
    """Use the covariance; false leaves it out of the solve."""
    mom2_update_weight: float | None = bounded(None, low=0)
    """lambda, the weight of the covariance against the keys; default 15000."""
    mom2_update_weight_relative: float | None = bounded(None, low=0)
    """lambda / d_ff, instead of lambda.  It transfers between models: r leaves about r / (1 + r) of
    a residual if keys are like those of the covariance's text, whose k^T C^-1 k is d_ff."""
    mom2_dataset: str = "wikipedia"
    """Source of the covariance: `self`, a text file, or the name of a dataset or of a .npz."""
    mom2_n_samples: int = bounded(100_000, low=1)
    """Number of texts for the covariance."""
    mom2_dtype: Literal["float32", "float64"] = "float32"
    """Part of the name of EasyEdit's statistics files."""
    stats_dir: str = "./data/stats"
    """Folder of the statistics files; if ./data/stats does not exist, the cache."""

    n_contexts: int = bounded(5, low=0)
    """Number of generated context texts besides the bare prompt; their 5 openings take turns."""
    context_length: int = bounded(10, low=2)
    """Tokens of each generated text."""
    token_budget: int = bounded(8192, low=64)
    """Maximum number of padded tokens per forward pass; lower it if memory is short."""

    def conflicts(self) -> Iterator[str]:
        """Errors if the loss is read below the edit, or a setting is given twice."""
        yield from super().conflicts()
        for name in ("v_lr", "mom2_update_weight", "alpha", "upper_bound"):
            absolute, relative = getattr(self, name, None), getattr(self, f"{name}_relative", None)
            if relative is not None and absolute not in (None, 0):
                yield (
                    f"{name} is {absolute} and {name}_relative is {relative}; both set the same "
                    "quantity, so leave one of them out"
                )
        if 0 in (self.mom2_update_weight, self.mom2_update_weight_relative):
            yield "lambda (mom2_update_weight) is 0; give mom2_adjustment: false to leave C out"
        if self.layers and self.v_loss_layer is not None and self.v_loss_layer < self.layers[-1]:
            yield (
                f"v_loss_layer is {self.v_loss_layer}, below the z-layer {self.layers[-1]} "
                "(the last of layers); the loss would not see the edit"
            )

    def context_lengths(self) -> list[int]:
        """Tokens of each generated text."""
        return [self.context_length] * self.n_contexts

    def value_settings(self) -> tuple[Any, ...]:
        """The settings that a value depends on, besides model, request and context texts."""
        names = [f.name for f in dataclasses.fields(self) if f.name.startswith("v_")]
        names += ["value_of", "clamp_norm_factor", "kl_factor", "kl_texts"]
        names += ["token_budget", "target_eos"]
        return (self.layers[-1], *(getattr(self, name) for name in names))

    @property
    def needs_covariance(self) -> bool:
        """Whether a write depends on the covariance."""
        return self.mom2_adjustment

    def covariance_weight(self, d_ff: int) -> float:
        """lambda, for a layer of d_ff neurons."""
        if self.mom2_update_weight_relative is not None:
            return self.mom2_update_weight_relative * d_ff
        return self._absolute_weight

    def with_lambda_times(self, factor: float) -> Self:
        """The same with lambda multiplied."""
        if self.mom2_update_weight_relative is not None:
            weight = factor * self.mom2_update_weight_relative
            return dataclasses.replace(self, mom2_update_weight_relative=weight)
        return dataclasses.replace(self, mom2_update_weight=factor * self._absolute_weight)

    @property
    def _absolute_weight(self) -> float:
        return 15000.0 if self.mom2_update_weight is None else self.mom2_update_weight


@dataclass(kw_only=True)
class SpreadHparams(LocateHparams):
    """What methods that spread a round over several layers share."""

    repair_rounds: int = bounded(0, low=0)
    """How often edits of a round that are not in effect after the write are optimised in the
    current model and written again; 0 is never (the papers)."""
    repair_every: int = bounded(0, low=0)
    """Every N rounds, edits of earlier rounds that are no longer in effect are written again with
    the round's own; 0 is never (the papers)."""
    consolidate_every_edits: int = bounded(0, low=0)
    """The round with every N-th edit solves all edits in effect jointly with its own, in place of
    the rounds before (``nse consolidate``), and so does the last round of a run; 0 is never (the
    papers)."""
    consolidate_below: float = bounded(0.0, low=0, high=1)
    """The same after a round that leaves less than this share of the edits in effect, among up to
    64 that are tested, and in the last round of a run; 0 is never (the papers)."""
    consolidation_weight: float = bounded(1.0, above=0)
    """Factor of lambda in a consolidation that repairs: above 1 the joint solve preserves more, and
    more edits are left to repair."""
    other_token_weight: float = bounded(0.0, low=0)
    """Weight of the prompts' other tokens, as a multiple of lambda: the second moment of their keys
    joins the solve, so that their outputs are preserved (ours; 0 in the papers)."""
    avoid_sinks: bool = False
    """If a subject ends at an attention sink, as the first token of a text is, edit the prompt's
    last token instead, and preserve that prompt with other subjects: the sink's key is too small,
    or its hidden state too long (ours; false in the papers)."""
    repair_weight: float = bounded(1.0, low=1)
    """Largest weight of an edit in the solve that repairs it: an edit with a small key, which falls
    short of its value, weighs more than others, up to this (ours)."""
    merge_subjects: bool = False
    """Edits whose prompts agree up to the subject's end have the same key and share a value
    (arXiv 2502.07322); those of earlier rounds are written again with it."""

    def conflicts(self) -> Iterator[str]:
        """Errors if a setting needs lambda or contexts, and those are switched off."""
        yield from super().conflicts()
        if self.other_token_weight and not self.mom2_adjustment:
            yield (
                f"other_token_weight is {self.other_token_weight}, a multiple of lambda, and "
                "mom2_adjustment is false; leave one of them out"
            )
        if self.small_keys_matter and not self.n_contexts:
            yield (
                f"avoid_sinks is {self.avoid_sinks}, repair_weight is {self.repair_weight}, and "
                "n_contexts is 0; keys are compared with those after a context, so give one"
            )

    def of_last_round(self) -> Self:
        """With consolidations, the last round of a stream is one."""
        if self.consolidate_every_edits or self.consolidate_below:
            return dataclasses.replace(self, consolidate_every_edits=1)
        return self

    @property
    def small_keys_matter(self) -> bool:
        """Whether small keys are treated specially."""
        return self.avoid_sinks or self.repair_weight != 1


@dataclass(kw_only=True)
class NSEHparams(SpreadHparams):
    """Hyperparameters of neuron-level sequential editing (arXiv 2410.04045, sections 3-4).

    Defaults are the settings that the paper's models have in common.  The fields from `rewind` on
    switch parts of the method off, or later work on.
    """

    method: ClassVar[str] = "NSE"

    neuron_threshold: float = bounded(1.0, above=0, high=1)
    """p, the share of the key mass that the selected neurons cover; 1 selects all."""
    selection_rule: Literal["cover", "within"] = "cover"
    """cover: smallest set with at least p (paper); within: largest with at most p (its code)."""
    alpha: float = bounded(0.0, low=0)
    """A request whose residual ||z - h|| is at most this needs no further pass."""
    alpha_relative: float | None = bounded(None, low=0, high=1)
    """alpha as a share of the request's residual before the first pass, instead of alpha."""
    upper_bound: float | None = bounded(None, above=0)
    """A request whose residual is at least this is left out of a pass, and reported."""
    upper_bound_relative: float | None = bounded(None, above=0)
    """upper_bound as a multiple of ||h|| of the request, instead of upper_bound."""
    max_iterations: int = bounded(2, low=1)
    """Write passes over all layers (the published code's 3 gives 2 of them)."""

    rewind: bool = True
    """Optimise values with the original weights; if false, with the current weights."""
    use_previous_keys: bool = True
    """Preserve the keys of earlier rounds in the solve; they are always recorded."""
    selection_by: Literal["key_mass", "update"] = "key_mass"
    """Rank neurons by their keys, or by the norm of their column in the update of all neurons."""
    value_norm_anchor: bool = False
    """Rescale each value to ||h|| of the original model before it is written (arXiv 2602.02543)."""
    protect_top_directions: int | float = bounded(0, low=0)
    """Keep the change out of this many dominant singular directions of the original matrix (REVIVE,
    arXiv 2601.11042), or, below 1, of those with this share of the squared singular values."""
    ridge: float | None = bounded(None, above=0)
    """Add this share of the mean diagonal of lambda C to the diagonal of the solve (ENCORE, arXiv
    2502.01636), so that neurons that general text seldom uses change little."""
    soft_projection: float | None = bounded(None, above=0, high=1)
    """alpha of D (1 - alpha V V^T) (SPHERE, arXiv 2510.01172): make the change D smaller along the
    directions that hold half of the matrix's squared singular values before the round."""

    def bound_in_words(self) -> str:
        """The bound of residuals in use, as ``upper_bound 4.0``."""
        if self.upper_bound_relative is not None:
            return f"upper_bound_relative {self.upper_bound_relative} times the norm of h"
        return f"upper_bound {self.upper_bound}"

    def conflicts(self) -> Iterator[str]:
        """Errors if the ridge, the directions or the bounds make no sense."""
        yield from super().conflicts()
        if self.ridge and not self.mom2_adjustment:
            yield (
                f"ridge is {self.ridge}, a share of the covariance's diagonal, and mom2_adjustment "
                "is false; leave ridge out, or use the covariance"
            )
        if self.protect_top_directions > 1 and self.protect_top_directions % 1:
            yield (
                f"protect_top_directions is {self.protect_top_directions}; give a whole number of "
                "directions, or a share below 1"
            )
        if self.upper_bound is not None and self.upper_bound <= self.alpha:
            yield (
                f"upper_bound is {self.upper_bound} and alpha is {self.alpha}: no residual lies "
                "between them, so nothing would be edited; raise upper_bound"
            )


@dataclass(kw_only=True)
class MEMITHparams(SpreadHparams):
    """Hyperparameters of MEMIT (arXiv 2210.07229, section 4), with the keys of EasyEdit's YAMLs."""

    method: ClassVar[str] = "MEMIT"

    use_previous_keys: bool = False
    """Preserve the keys of earlier rounds in the solve, as NSE does; the paper has one round."""


@dataclass(kw_only=True)
class AlphaEditHparams(SpreadHparams):
    """Hyperparameters of AlphaEdit (arXiv 2410.02355), with the keys of EasyEdit's YAMLs.

    ``mom2_adjustment`` and ``mom2_update_weight`` are accepted without effect: the projection
    always needs the covariance, which has no weight in the solve.
    """

    method: ClassVar[str] = "AlphaEdit"

    nullspace_threshold: float = bounded(2e-2, above=0)
    """Eigenvalues of the covariance below this count as zero; edits may use their directions."""
    L2: float = bounded(10.0, above=0)
    """Weight of the identity in the solve: larger values preserve more and edit less."""
    P_loc: str | None = None
    """EasyEdit's file of the projection; accepted and not read.  The projection is always computed
    from the covariance: the file is a pickle, which can run code, and does not name its model and
    statistics."""

    @property
    def needs_covariance(self) -> bool:
        """Always."""
        return True

    def conflicts(self) -> Iterator[str]:
        """Errors if a multiple of lambda is given."""
        yield from super().conflicts()
        for name, none in (("other_token_weight", 0.0), ("consolidation_weight", 1.0)):
            if (value := getattr(self, name)) != none:
                yield (
                    f"{name} is {value}, a multiple of lambda, which AlphaEdit does not have; "
                    "leave it out"
                )


@dataclass(kw_only=True)
class ROMEHparams(LocateHparams):
    """Hyperparameters of ROME (arXiv 2202.05262), with the keys of EasyEdit's YAMLs.

    ``v_loss_layer`` is accepted without effect: the loss is computed from the model's own logits,
    as in EasyEdit.  ``mom2_update_weight`` has no effect either.
    """

    method: ClassVar[str] = "ROME"
    value_of: ClassVar[Literal["block", "mlp"]] = "mlp"

    clamp_norm_factor: float = bounded(4.0, above=0)
    """Bound of ||delta|| as a multiple of the norm of the MLP's output."""
    context_template_length_params: list[list[int]] | None = None
    """Generated texts as [tokens, how many] pairs, e.g. [[5, 10], [10, 10]]; `n_contexts`
    and `context_length` then have no effect."""

    def conflicts(self) -> Iterator[str]:
        """Errors if there is not exactly one layer, or a pair is invalid."""
        yield from super().conflicts()
        if len(self.layers) != 1:
            yield f"layers is {self.layers!r}; ROME writes one layer, so give one, e.g. [17]"
        pairs = self.context_template_length_params or []
        if any(len(pair) != 2 or pair[0] < 2 or pair[1] < 0 for pair in pairs):
            yield (
                f"context_template_length_params is {pairs!r}; give [tokens, how many] pairs, "
                "tokens at least 2, e.g. [[5, 10], [10, 10]]"
            )

    def context_lengths(self) -> list[int]:
        """Tokens of each generated text."""
        if self.context_template_length_params is None:
            return super().context_lengths()
        pairs = self.context_template_length_params
        return [tokens for tokens, count in pairs for _ in range(count)]
