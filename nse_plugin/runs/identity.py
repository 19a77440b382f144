"""The identity of a run, as stored in its manifest: model, method, settings and requests."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
import transformers

from nse_plugin.errors import ModelError
from nse_plugin.evaluation.settings import Protocol
from nse_plugin.hparams import Hparams
from nse_plugin.model.chat import ChatTokenizer
from nse_plugin.model.probe import layout_of
from nse_plugin.model.weights import fingerprint
from nse_plugin.requests import EditRequest
from nse_plugin.runs.backends import Backend
from nse_plugin.runs.schema import Format, Identity, ModelIdentity, Texts, Versions
from nse_plugin.runs.stopping import StopRules
from nse_plugin.statistics.files import model_fingerprint
from nse_plugin.version import __version__


def run_identity(
    backend: Backend,
    *,
    round_size: int,
    order: str,
    seed: int,
    protocol: Protocol,
    rules: StopRules,
    held_out: Sequence[str] = (),
    requests: Sequence[EditRequest] | None = None,
) -> Identity:
    """The identity of a run, which has to be equal for the run to be resumed.

    Args:
        backend: a method on the untouched model.
        requests: all requests of the run; None if they are not known in advance.
    """
    return {
        **versions(),
        **prompt_format(backend.tokenizer),
        "model": model_identity(backend.model),
        "method": backend.method,
        "hparams": as_json(backend.hparams),
        "round_size": round_size,
        "order": order,
        "seed": seed,
        "protocol": protocol.to_dict(),
        "stop_rules": asdict(rules),
        "held_out": _texts(held_out),
        "stream": None if requests is None else _texts([r.digest() for r in requests]),
    }


def _texts(texts: Sequence[str]) -> Texts:
    return {"count": len(texts), "sha256": hashed(list(texts))}


def versions() -> Versions:
    """Versions that may change the last bits of a result."""
    return {
        "version": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def model_identity(model: Any) -> ModelIdentity:
    """Fingerprints of a model's parts and of all its matrices."""
    weights = {
        name: fingerprint(parameter)
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and not parameter.is_meta and parameter.element_size() > 1
    }
    try:
        parts = model_fingerprint(layout_of(model))
    except ModelError:
        parts = "?"
    first = next(model.parameters())
    return {
        "fingerprint": parts,
        "weights": hashed(weights),
        "dtype": str(first.dtype),
        "device": device_name(first.device),
    }


def device_name(device: torch.device) -> str:
    """``cpu``, or the kind of GPU: another kind may give other last bits."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def prompt_format(tokenizer: Any) -> Format:
    """The format of prompts in chat; empty for plain text."""
    if isinstance(tokenizer, ChatTokenizer):
        texts = [tokenizer.before, tokenizer.after, tokenizer.blank]
        return {"chat": texts if tokenizer.blank else texts[:2]}
    return {}


def as_json(hparams: Any) -> dict[str, Any]:
    """Hyperparameters as JSON types, without secrets and without folders of this machine."""
    # not the host's own to_dict, which copies a ready model along
    values = hparams.to_dict() if isinstance(hparams, Hparams) else dict(vars(hparams))
    return _shareable(json.loads(json.dumps(values, default=lambda v: type(v).__name__)))


def _shareable(values: Any) -> Any:
    """Values without secrets and folders, also in nested groups (OVERTONE's base)."""
    if not isinstance(values, dict):
        return values
    kept = {key: value for key, value in values.items() if key not in ("api_key", "stats_dir")}
    return {key: _shareable(value) for key, value in kept.items()}


def hashed(value: Any) -> str:
    """SHA-256 of a value as JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
