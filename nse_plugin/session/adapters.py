"""LoRA and AdaLoRA of PEFT, injected into a model without replacing the model object.

The adapters are PEFT's own (arXiv 2106.09685, 2303.10512).  They change nothing until they are
trained, and are kept in float32 beside the frozen modules that they wrap.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from nse_plugin.errors import ModelError
from nse_plugin.model.layout import DecoderLayout

_NAME = "default"  # PEFT's name for the one adapter of a model


class Adapters:
    """PEFT's adapters in the modules chosen by a config.

    Args:
        config: ``lora_type`` (lora or adalora), ``rank``, ``lora_alpha``, ``lora_dropout``,
            ``target_modules`` (ends of module names) and ``layers`` (empty for all).

    Raises:
        ModelError: the config matches no module, or the model has adapters already.
    """

    def __init__(self, layout: DecoderLayout, config: Mapping[str, Any]) -> None:
        self._model = layout.model
        if hasattr(self._model, "peft_config"):
            raise ModelError(
                "the model has PEFT adapters already that this session did not make; merge or "
                "unload them first, or load the model again"
            )
        own = {id(parameter) for parameter in self._model.parameters()}
        flags = [(parameter, parameter.requires_grad) for parameter in self._model.parameters()]
        try:
            self._inject(layout, config)
        except BaseException as error:  # PEFT may fail after it has wrapped some modules
            self.remove()
            if not isinstance(error, ValueError):
                raise
            raise ModelError(
                f"target_modules {config['target_modules']} in layers {config['layers'] or 'all'} "
                f"do not fit this model: {error}"
            ) from error
        finally:
            for parameter, flag in flags:  # PEFT freezes all of them
                parameter.requires_grad_(flag)
        self.parameters = {
            name.replace(f".{_NAME}", ""): parameter.requires_grad_(False)
            for name, parameter in self._model.named_parameters()
            if id(parameter) not in own
        }
        """The adapters' parameters by name; no other parameter is trained."""
        for parameter in self.parameters.values():  # half precision loses Adam's small steps
            parameter.data = parameter.data.float()
        for dropout in self._dropouts():
            dropout.eval()

    def state(self) -> dict[str, torch.Tensor]:
        """The adapters' parameters."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy parameters in."""
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name])

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, PEFT's layers only call the modules that they wrap."""
        before = [(layer, layer._disable_adapters) for layer in self._layers()]
        for layer, _ in before:
            layer._disable_adapters = True  # enable_adapters() would set requires_grad too
        try:
            yield
        finally:
            for layer, was_off in before:
                layer._disable_adapters = was_off

    def remove(self) -> None:
        """Put the wrapped modules back in place."""
        wrapped = {
            name: module
            for name, module in self._model.named_modules()
            if isinstance(module, self._layer_type())
        }
        for name, module in wrapped.items():
            parent, _, child = name.rpartition(".")
            setattr(self._model.get_submodule(parent), child, module.base_layer)
        if hasattr(self._model, "peft_config"):
            del self._model.peft_config

    @contextmanager
    def training(self) -> Iterator[list[torch.Tensor]]:
        """The trained parameters, which require gradients inside."""
        trained = [p for name, p in self.parameters.items() if "ranknum" not in name]
        try:
            for parameter in trained:
                parameter.requires_grad_(True)
            yield trained
        finally:
            for parameter in trained:
                parameter.requires_grad_(False)
                parameter.grad = None

    @contextmanager
    def dropout(self) -> Iterator[None]:
        """The adapters' dropout is on inside."""
        dropouts = self._dropouts()
        try:
            for dropout in dropouts:
                dropout.train()
            yield
        finally:
            for dropout in dropouts:
                dropout.eval()

    def penalty(self) -> torch.Tensor:
        """AdaLoRA's orthogonality term (arXiv 2303.10512, eq. 4): mean of ||P P^T - I||."""
        terms = []
        for name, parameter in self.parameters.items():
            if name.endswith(("lora_A", "lora_B")):
                p = parameter if name.endswith("lora_A") else parameter.T  # [rank, features]
                terms.append((p @ p.T - torch.eye(len(p), device=p.device)).norm())
        together = torch.stack([term.to(terms[0].device) for term in terms])
        return self._peft_config.orth_reg_weight * together.mean()

    @torch.no_grad()
    def changes(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each adapter's change of its module's weight, and that weight."""
        return [
            (layer.get_delta_weight(_NAME), layer.base_layer.weight) for layer in self._layers()
        ]

    def save(self, folder: Path) -> None:
        """Write PEFT's own files, which ``PeftModel.from_pretrained`` loads."""
        import peft

        state = peft.get_peft_model_state_dict(self._model)
        # module names as in PEFT's wrapper around a model
        tensors = {f"base_model.model.{name}": t.cpu().contiguous() for name, t in state.items()}
        save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
        config = copy.copy(self._peft_config)
        config.inference_mode = True
        config.base_model_name_or_path = getattr(self._model.config, "_name_or_path", "") or None
        config.save_pretrained(str(folder))

    def _inject(self, layout: DecoderLayout, config: Mapping[str, Any]) -> None:
        import peft

        common = dict(
            task_type="CAUSAL_LM",
            inference_mode=False,
            lora_alpha=config["lora_alpha"],
            lora_dropout=config["lora_dropout"],
            target_modules=list(config["target_modules"]),
            layers_to_transform=list(config["layers"]) or None,
            fan_in_fan_out=layout.family.conv1d,
        )
        if config["lora_type"] == "adalora":  # the rank stays: no budget is ever re-allocated
            rank = dict(init_r=config["rank"], target_r=config["rank"], total_step=1)
            self._peft_config = peft.AdaLoraConfig(**common, **rank)
        else:
            self._peft_config = peft.LoraConfig(**common, r=config["rank"])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out")
            peft.inject_adapter_in_model(self._peft_config, self._model, _NAME)

    def _layers(self) -> list[Any]:
        kind = self._layer_type()
        return [module for module in self._model.modules() if isinstance(module, kind)]

    def _dropouts(self) -> list[nn.Module]:
        return [module for layer in self._layers() for module in layer.lora_dropout.modules()]

    def _layer_type(self) -> Any:
        from peft.tuners.lora import LoraLayer

        return LoraLayer
