"""Load the model that hyperparameters name."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nse_plugin.errors import HparamsError, ModelError, did_you_mean


def load_model(hparams: Any) -> tuple[nn.Module, Any, str]:
    """Model, tokenizer and name that hyperparameters ask for, on the device they name.

    ``model_name`` is a path, a hub name, ``atlas:gpt2``, ``atlas:llama``, or a ready ``(model,
    tokenizer)``.

    Raises:
        HparamsError: no such device or dtype.
        ModelError: the model cannot be loaded.
    """
    device = find_device(getattr(hparams, "device", None))
    name = hparams.model_name
    parallel = bool(getattr(hparams, "model_parallel", False))
    if not isinstance(name, (str, os.PathLike)):
        model, tokenizer = _ready(name)
        if not parallel and getattr(model, "hf_device_map", None) is None:
            model.to(device)
        config: Any = model.config
        return model, tokenizer, getattr(config, "_name_or_path", "") or config.model_type
    name = str(name)
    if name.startswith("atlas:"):
        from nse_plugin.data import atlas

        try:
            model, tokenizer = atlas.load(name, _dtype(hparams), str(device))
        except (ValueError, FileNotFoundError) as error:
            raise ModelError(f"cannot load {name!r}: {error}") from error
        return model, tokenizer, name
    model, tokenizer = _load_pretrained(name, _dtype(hparams), "auto" if parallel else None)
    return (model if parallel else model.to(device)), tokenizer, name


def _load_pretrained(name: str, dtype: torch.dtype, device_map: str | None) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _check_name(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, device_map=device_map)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(
            f"cannot load model {name!r}: {error}\nGive a folder that from_pretrained reads, a hub "
            "name that can be reached, 'atlas:gpt2', or a ready (model, tokenizer)"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def _check_name(name: str) -> None:
    """Raise :class:`ModelError` where a name is neither a folder nor may be a hub name."""
    path = Path(name).expanduser()
    if path.is_dir():
        return
    hub_name = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) is not None
    if path.exists() or not hub_name or ("/" in name and path.parent.is_dir()):
        siblings = path.parent.glob("*") if path.parent.is_dir() else []
        near = did_you_mean(path.name, [entry.name for entry in siblings if entry.is_dir()])
        raise ModelError(
            f"there is no model folder {name!r}{near}; give the folder of a model, a hub name, "
            "'atlas:gpt2', 'atlas:llama', or a ready (model, tokenizer)"
        )


def _ready(pair: Any) -> tuple[nn.Module, Any]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], nn.Module):
        raise ModelError(
            f"model_name is a {type(pair).__name__}; give a path, a hub name, 'atlas:gpt2', or a "
            "ready (model, tokenizer)"
        )
    return pair[0], pair[1]


def find_device(value: Any) -> torch.device:
    """``"cpu"``, an int or digits for that GPU, a torch device, or None for what there is."""
    if value is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    is_number = isinstance(value, int) or str(value).isdigit()
    try:
        device = torch.device(f"cuda:{value}" if is_number else value)
    except (RuntimeError, TypeError) as error:
        raise HparamsError(f"device is {value!r}; give 'cpu' or the number of a GPU") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise HparamsError(
            f"device is {value!r} and there are {torch.cuda.device_count()} CUDA devices; "
            "set device: cpu, or the number of one that is there"
        )
    return device


def _dtype(hparams: Any) -> torch.dtype:
    value = getattr(hparams, "dtype", None)
    if value is None:
        return torch.float16 if getattr(hparams, "fp16", False) else torch.float32
    dtype = getattr(torch, value, None) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise HparamsError(f"dtype is {value!r}; give float32, bfloat16 or float16")
    return dtype
