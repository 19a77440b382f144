"""Models that cannot be loaded say why, in one line with the way out."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from nse_plugin.data import models
from nse_plugin.data.models import load_model, refuse_quantised
from nse_plugin.errors import ModelError
from nse_plugin.hparams import NSEHparams
from tests.tiny import tiny_model, tiny_tokenizer


def load(name):
    return load_model(NSEHparams(alg_name="NSE", model_name=str(name), layers=[1], device="cpu"))


@pytest.fixture
def folder(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_a_whole_folder_is_loaded(folder):
    model, tokenizer, name = load(folder)
    assert name == str(folder) and not model.training and tokenizer.pad_token_id is not None


def test_weights_for_a_gpu_are_read_straight_to_it(folder, monkeypatch):
    asked, real = [], models._load_pretrained

    def load_on_cpu(name, place, dtype, device_map):
        asked.append(device_map)
        return real(name, place, dtype, device_map and {"": torch.device("cpu")})

    monkeypatch.setattr(models, "_load_pretrained", load_on_cpu)
    plain, _, _ = load(folder)
    monkeypatch.setattr(models, "find_device", lambda _value: torch.device("cuda:1"))
    monkeypatch.setattr(type(plain), "to", lambda model, _device: model)
    straight, _, _ = load(folder)
    assert asked == [None, {"": torch.device("cuda:1")}]
    assert all(map(torch.equal, plain.parameters(), straight.parameters()))
    assert not any(hasattr(module, "_hf_hook") for module in straight.modules())


def refused(folder, message):
    with pytest.raises(ModelError, match=message) as error:
        load(folder)
    assert "trust_remote_code" not in str(error.value)


def test_pickled_weights_are_not_read(folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    refused(folder, "only pickled weights, which are never read here")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("left", ["", "tokenizer_config.json"])
def test_without_a_tokenizer(tmp_path, family, left):
    # transformers makes a tokenizer without a vocabulary for some families
    tiny_model(family).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        if path.name != left:
            path.unlink()
    refused(tmp_path, "has no tokenizer; save it there with")


def test_truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, "may be cut off or of another model")


@pytest.mark.parametrize("fault", ["missing", "shape"])
def test_weights_that_do_not_fit_the_config(folder, fault):
    path, name = folder / "model.safetensors", "model.layers.1.mlp.down_proj.weight"
    state = load_file(path)
    weight = state.pop(name)
    if fault == "shape":
        state[name] = weight[:, :-1].contiguous()
    save_file(state, path, {"format": "pt"})
    refused(folder, "cannot load model|do not fit its config")


def test_code_of_its_own_is_not_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('code was run')")
    refused(folder, "code of its own, which is never run here")


def test_an_empty_folder_and_a_wrong_name(tmp_path):
    refused(tmp_path, "has no config.json")
    refused("smollm2-135", "did you mean 'smollm2-135m'")
    refused(tmp_path / "no-such-model", "there is no model folder")
    refused("~nobodyx/model", "there is no model folder")


def test_packed_weights_are_refused_by_name():
    model = tiny_model("llama")
    refuse_quantised(model)
    down = model.model.layers[1].mlp.down_proj
    down.weight = torch.nn.Parameter(down.weight.detach().to(torch.int8), requires_grad=False)
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj.* int8 .*bitsandbytes"):
        refuse_quantised(model)
