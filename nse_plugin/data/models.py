"""Load the model that hyperparameters name: a folder, a hub id, a GGUF file or a short name."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nse_plugin.model  # noqa: F401  it makes transformers importable
from nse_plugin.data import atlas
from nse_plugin.data.published import MODELS, fetch, unpacked_gguf
from nse_plugin.errors import DataError, HparamsError, ModelError, did_you_mean

_WAYS = (
    "a folder with safetensors and a tokenizer, a .gguf file, a hub id that can be reached, "
    f"'atlas:gpt2', 'atlas:llama', or one of {', '.join(MODELS)}"
)

_VOCABULARIES = ("tokenizer.", "vocab", "spiece", "sentencepiece", "tekken")
"""Prefixes of the names of files that hold a tokenizer's vocabulary."""


def load_model(hparams: Any) -> tuple[nn.Module, Any, str]:
    """Model, tokenizer and name that hyperparameters ask for, on the device they name.

    ``model_name`` is the folder of a model, a ``.gguf`` file, a hub id, ``atlas:gpt2``,
    ``atlas:llama``, a short name of :data:`nse_plugin.data.published.MODELS`, or a ready
    ``(model, tokenizer)``.

    Raises:
        HparamsError: no such device or dtype.
        ModelError: the model cannot be loaded, or its weights are still quantised.
    """
    device = find_device(getattr(hparams, "device", None))
    name = hparams.model_name
    parallel = bool(getattr(hparams, "model_parallel", False))
    if not isinstance(name, (str, os.PathLike)):
        model, tokenizer = _ready(name)
        refuse_quantised(model)
        if not parallel and getattr(model, "hf_device_map", None) is None:
            model.to(device)
        config: Any = model.config
        return model, tokenizer, getattr(config, "_name_or_path", "") or config.model_type
    name = str(name)
    place, dtype = model_place(name), _dtype(hparams)
    # weights that go to a GPU are read straight to it, not through a whole model in main memory
    straight = None if device.type == "cpu" else {"": device}
    model, tokenizer = _load_pretrained(name, place, dtype, "auto" if parallel else straight)
    return (model if parallel else model.to(device)), tokenizer, name


def model_place(name: str) -> str:
    """The argument of ``from_pretrained`` for a model's name: a folder, or a hub id.

    Fetches a model of a short name and unpacks a GGUF file unless that has been done.

    Raises:
        ModelError: there is no such model, or it cannot be fetched or unpacked.
    """
    if name.startswith("atlas:"):
        try:
            return str(atlas.model_dir(name))
        except DataError as error:
            raise ModelError(str(error)) from error
    if name in MODELS and not Path(name).exists():
        return str(fetch(name))
    path = Path(os.path.expanduser(name))
    if path.suffix.lower() == ".gguf" and path.is_file():
        return str(unpacked_gguf(path))
    _check_name(name)
    return str(path) if path.is_dir() else name


def from_anywhere(name: str) -> str:
    """A model's name that is valid in any working directory: local paths are made absolute."""
    path = Path(os.path.expanduser(name))
    local = path.is_dir() or (path.suffix.lower() == ".gguf" and path.is_file())
    return os.path.abspath(path) if local else name


def refuse_quantised(model: nn.Module) -> None:
    """Raise :class:`ModelError` if weights are quantised: a change cannot be added to them."""
    config = getattr(model, "config", None)
    settings = getattr(config, "quantization_config", None)
    for name, parameter in model.named_parameters():
        packed = not parameter.is_floating_point() or parameter.element_size() < 2
        if packed and parameter.dim() > 1 and not parameter.is_meta:
            method = getattr(settings, "quant_method", None)
            if isinstance(settings, dict):
                method = settings.get("quant_method")
            raise ModelError(
                f"{name} is stored as {str(parameter.dtype).removeprefix('torch.')}"
                + (f" (quantised: {getattr(method, 'value', method)})" if method else "")
                + ", to which a change cannot be added; load the model without quantisation, in "
                "float32, bfloat16 or float16"
            )


def _load_pretrained(
    name: str, place: str, dtype: torch.dtype, device_map: str | dict[str, torch.device] | None
) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        if len(tokenizer) <= len(tokenizer.all_special_tokens):  # made without a file
            raise ValueError("its tokenizer has no vocabulary")
        model, found = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=dtype,
            device_map=device_map,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # of transformers, tokenizers, safetensors or the hub
        raise ModelError(f"cannot load model {name!r}: {why_not_loaded(place, error)}") from error
    if found["missing_keys"] or found.get("mismatched_keys"):
        odd = sorted(map(str, (*found["missing_keys"], *found.get("mismatched_keys", ()))))
        raise ModelError(
            f"the weights of {name!r} do not fit its config: {', '.join(odd[:3])}"
            + (f" and {len(odd) - 3} more" if len(odd) > 3 else "")
            + " are missing or of another shape; copy the folder again"
        )
    refuse_quantised(model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def why_not_loaded(place: str, error: Exception) -> str:
    """Why loading failed, and what to do about it."""
    said = " ".join(str(error).split())
    folder = Path(place)
    if isinstance(error, ValueError) and "trust_remote_code" in said:
        return "it needs code of its own, which is never run here; give a model of transformers"
    if folder.is_dir():
        files = {path.name for path in folder.iterdir()}
        if "config.json" not in files:
            return f"{folder} has no config.json; give {_WAYS}"
        if not any(name.endswith(".safetensors") for name in files):
            pickled = any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in files)
            return (
                f"{folder} has no safetensors"
                + (", only pickled weights, which are never read here" if pickled else "")
                + "; save it with model.save_pretrained(folder)"
            )
        if not any(name.startswith(_VOCABULARIES) for name in files):
            return (
                f"{folder} has no tokenizer; save it there with tokenizer.save_pretrained(folder)"
            )
        return f"{said[:300]}; the files may be cut off or of another model: copy the folder again"
    first = said.split(". ")[0][:200]
    return f"{first}; give {_WAYS}"


def _check_name(name: str) -> None:
    """Raise :class:`ModelError` if a name is not a folder and cannot be a hub id."""
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return
    hub_name = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) is not None
    if path.exists() or not hub_name or ("/" in name and path.parent.is_dir()):
        siblings = path.parent.glob("*") if path.parent.is_dir() else []
        near = did_you_mean(path.name, [entry.name for entry in siblings if entry.is_dir()])
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise ModelError(f"there is no model folder {name!r}{where}{near}; give {_WAYS}")
    if "/" not in name and (near := did_you_mean(name, MODELS)):
        raise ModelError(f"there is no model {name!r}{near}; give {_WAYS}")


def _ready(pair: Any) -> tuple[nn.Module, Any]:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], nn.Module):
        raise ModelError(
            f"model_name is a {type(pair).__name__}; give {_WAYS}, or a ready (model, tokenizer)"
        )
    return pair[0], pair[1]


def find_device(value: Any) -> torch.device:
    """The device of ``"cpu"``, a GPU's number, a torch device, or None to choose automatically."""
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
