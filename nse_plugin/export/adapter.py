"""All edits as one LoRA adapter of PEFT, with a scaling of 1.

``PeftModel.from_pretrained(model, folder)`` loads it onto the untouched model, where it can be
switched off (``disable_adapter``) and merged (``merge_and_unload``).
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.nn import functional as F

from nse_plugin.errors import DataError, HparamsError, ModelError
from nse_plugin.export.card import add_metadata, metadata_of, write_card
from nse_plugin.export.entry import enter
from nse_plugin.export.factors import Fit, factorise, factors_by_layer
from nse_plugin.export.folder import (
    MANIFEST,
    check_model,
    edited_layers,
    new_folder,
    read_export,
    read_tensors,
    write_manifest,
)  # fmt: skip
from nse_plugin.model.layout import DecoderLayout
from nse_plugin.runs.reading import RunFiles
from nse_plugin.session.adapters import Adapters
from nse_plugin.session.session import EditSession

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

VLLM_LARGEST_RANK, VLLM_DEFAULT_RANK = 512, 16
"""The largest rank that vLLM serves, with ``--max-lora-rank`` and by default."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_UNUSED = ("use_dora", "modules_to_save", "layer_replication", "trainable_token_indices",
           "target_parameters", "lora_bias", "alora_invocation_tokens", "use_bdlora")  # fmt: skip


def to_peft(
    session: EditSession,
    folder: str | Path,
    *,
    rank: int | None = None,
    equal_ranks: bool = True,
    files: RunFiles | None = None,
) -> dict[int, Fit]:
    """Write the session's accumulated change as a LoRA adapter to a new folder.

    Adapters that the session's rounds trained are written unchanged.

    Args:
        rank: upper bound for the rank of each layer; None for the whole change.
        equal_ranks: pad the factors with zeros to the largest rank, so that readers of a single
            rank and ``lora_alpha`` scale every layer by 1; False writes each layer's own rank,
            which needs PEFT's ``rank_pattern`` and ``alpha_pattern``.
        files: the session's run, for the model card.

    Returns:
        By layer: the rank, and the error of the adapter; empty for trained adapters.

    Raises:
        HparamsError: the rank is below 1.
        SessionError: there is nothing to export, or the weights are not the session's.
        DataError: the folder holds something or cannot be written.
    """
    if rank is not None and rank < 1:
        raise HparamsError(f"rank is {rank}; give a number from 1, or none for all of the change")
    if session.attached.kind == "lora":
        _trained(session, Path(folder), rank, files)
        return {}
    tensors: dict[str, torch.Tensor] = {}
    fits: dict[int, Fit] = {}
    ranks: dict[str, int] = {}
    factors = factors_by_layer(session.ledger)
    made = {
        layer: factorise(session, layer, factors[layer], rank) for layer in edited_layers(session)
    }
    largest = max(fit.rank for *_, fit in made.values())
    _warn_of_rank(largest)
    for layer, (a, b, fits[layer]) in made.items():
        module = session.layout.down_path(layer)
        ranks[module] = largest if equal_ranks else fits[layer].rank
        more = ranks[module] - fits[layer].rank
        a, b = F.pad(a, (0, 0, 0, more)), F.pad(b, (0, more))
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = a.cpu().contiguous()  # [r, d_ff]
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = b.cpu().contiguous()  # [d_model, r]
    config = _config(session, ranks)
    with new_folder(Path(folder)) as temporary:
        save_file(tensors, temporary / WEIGHTS, metadata_of(session))
        config.save_pretrained(str(temporary))
        write_card(temporary, session, "peft", files, fits)
        about = {
            fit.layer: {"rank": fit.rank, "full_rank": fit.full_rank,
                        "relative_error": fit.relative_error}
            for fit in fits.values()
        }  # fmt: skip
        write_manifest(temporary, session, "peft", hashed=(WEIGHTS, CONFIG), more=about)
    return fits


def adapter_changes(
    layout: DecoderLayout, tensors: Mapping[str, torch.Tensor]
) -> dict[int, torch.Tensor]:
    """The change [d_model, d_ff] of each layer that an adapter of :func:`to_peft` holds."""
    found = {}
    for layer in range(layout.n_layers):
        module = layout.down_path(layer)
        a = tensors.get(f"{_PREFIX}{module}.lora_A.weight")
        if a is not None:
            device = layout.down(layer).weight.device
            found[layer] = (tensors[f"{_PREFIX}{module}.lora_B.weight"] @ a).to(device)
    return found


def _warn_of_rank(rank: int) -> None:
    """Warn if servers refuse an adapter of this rank."""
    if rank > VLLM_LARGEST_RANK:
        log.warning(
            "the adapter has rank %d and vLLM serves ranks up to %d; bound it with rank=%d (nse "
            "export --max-rank %d), or export the full model",
            rank, VLLM_LARGEST_RANK, VLLM_LARGEST_RANK, VLLM_LARGEST_RANK,
        )  # fmt: skip
    elif rank > VLLM_DEFAULT_RANK:
        log.info(
            "the adapter has rank %d; vLLM serves ranks above %d with --max-lora-rank only",
            rank,
            VLLM_DEFAULT_RANK,
        )


def _trained(session: EditSession, folder: Path, rank: int | None, files: RunFiles | None) -> None:
    """Write the trained adapters that are attached to the session's model."""
    if rank is not None:
        raise HparamsError(f"rank is {rank}, and trained adapters have theirs; leave it out")
    session.check()
    adapters = cast(Adapters, session.attached.current)
    with new_folder(folder) as temporary:
        adapters.save(temporary)
        add_metadata(temporary / WEIGHTS, session)
        write_card(temporary, session, "peft", files)
        write_manifest(temporary, session, "peft", hashed=(WEIGHTS, CONFIG))


def from_peft(model: PreTrainedModel, tokenizer: Any, folder: str | Path) -> EditSession:
    """Add a LoRA adapter on MLP down-projections to a model, as one round of its session.

    The adapter may be made by other programs and have any scaling.  It is added to the current
    weights, so it may follow other rounds.

    Returns:
        The model's session; ``undo_last()`` removes the adapter again.

    Raises:
        DataError: the folder holds no adapter, or a damaged one.
        ModelError: it was made from another model, or adapts modules that a session does not edit.
    """
    folder = Path(folder)
    config = _read_config(folder)
    session = EditSession.of(model, tokenizer)
    if (folder / MANIFEST).exists():
        check_model(folder, read_export(folder, "peft"), session)
    tensors = read_tensors(folder / WEIGHTS)
    layout = session.layout
    modules = {layout.down_path(layer): layer for layer in range(layout.n_layers)}
    everything = torch.arange(layout.d_ff)
    factors = {}
    for name in sorted(tensors):
        module, part = _split(folder, name)
        if module not in modules:
            raise ModelError(
                f"{folder} adapts {module}, which is no MLP down-projection of this model; a "
                "session holds changes of those only"
            )
        if part == "lora_B":
            continue
        a, b = tensors[name], tensors.get(f"{_PREFIX}{module}.lora_B.weight")
        if b is None:
            raise DataError(f"{folder / WEIGHTS} lacks lora_B of {module}; restore it")
        if (b.shape[0], a.shape[1]) != (layout.d_model, layout.d_ff) or a.shape[0] != b.shape[1]:
            raise ModelError(
                f"{folder} was made from another model: {module} has A {list(a.shape)} and B "
                f"{list(b.shape)}, and this model needs A [r, {layout.d_ff}] and "
                f"B [{layout.d_model}, r]; load the model it was made from"
            )
        scale = _scaling(config, module)
        factors[modules[module]] = (everything, b.float() * scale, a.float())
    if not factors:
        raise DataError(f"{folder / WEIGHTS} holds no lora_A and lora_B; restore it")
    enter(session, factors)
    return session


def _config(session: EditSession, ranks: dict[str, int]) -> Any:
    """The LoRA config for these modules, each with its rank and an equal alpha."""
    import peft

    r = max(ranks.values())
    others = {re.escape(module): rank for module, rank in ranks.items() if rank != r}
    return peft.LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=session.layout.loaded_from or None,
        inference_mode=True,
        target_modules="|".join(map(re.escape, ranks)),  # a regex has to match the whole name
        r=r,
        lora_alpha=r,
        rank_pattern=others,
        alpha_pattern=dict(others),
        fan_in_fan_out=session.layout.family.conv1d,
        bias="none",
    )


def _read_config(folder: Path) -> Any:
    import peft

    if not (folder / CONFIG).is_file():
        raise DataError(f"{folder} holds no {CONFIG}; give the folder of a LoRA adapter")
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except (OSError, KeyError, TypeError, AttributeError, ValueError, SafetensorError) as error:
        raise DataError(f"{folder / CONFIG} is damaged ({error}); restore it") from error
    if not isinstance(config, peft.LoraConfig):
        raise ModelError(f"{folder} is an adapter of type {config.peft_type}; give a LoRA adapter")
    used = [name for name in _UNUSED if getattr(config, name, None)]
    if used or config.bias != "none":
        raise ModelError(
            f"{folder} uses {', '.join(used) or f'bias={config.bias!r}'}, which is more than a "
            "change of matrices; give a plain LoRA adapter"
        )
    return config


def _split(folder: Path, name: str) -> tuple[str, str]:
    """Module and ``lora_A`` or ``lora_B`` of a tensor's name."""
    match = re.fullmatch(rf"{re.escape(_PREFIX)}(.+)\.(lora_[AB])\.weight", name)
    if match is None:
        raise ModelError(f"{folder} holds {name}, which is no LoRA of a linear layer")
    return match[1], match[2]


def _scaling(config: Any, module: str) -> float:
    """PEFT's factor of BA."""

    from peft.utils.other import get_pattern_key

    def of(pattern: dict[str, Any] | None, default: float) -> float:
        pattern = pattern or {}
        return pattern.get(get_pattern_key(list(pattern), module), default)

    rank, alpha = of(config.rank_pattern, config.r), of(config.alpha_pattern, config.lora_alpha)
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)
