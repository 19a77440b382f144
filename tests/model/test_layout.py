"""The table of families, the probe, and the messages where neither helps."""

from __future__ import annotations

import copy

import accelerate
import peft
import pytest
import torch
from torch import nn

from nse_plugin.errors import ModelError
from nse_plugin.model.families import FAMILIES
from nse_plugin.model.layout import device_of
from nse_plugin.model.probe import layout_of, probe_family
from nse_plugin.model.residual_path import path_of
from tests.tiny import UNKNOWN_FAMILIES, tiny_model


def test_sizes_and_parts(any_model):
    layout = layout_of(any_model)
    assert (layout.n_layers, layout.d_model, layout.d_ff) == (4, 32, 48)
    assert layout.max_positions == 64
    name = layout.down_name(2)
    assert any_model.get_parameter(name) is layout.down(2).weight
    change = torch.zeros(layout.d_model, layout.d_ff)
    assert layout.to_weight(change).shape == layout.down(2).weight.shape
    for template in layout.templates().values():
        any_model.get_submodule(template.format(1))


def test_a_change_of_the_weight_is_one_of_its_output(any_model):
    layout = layout_of(any_model)
    down = layout.down(1)
    keys = torch.randn(3, layout.d_ff)
    change = torch.randn(layout.d_model, layout.d_ff)
    with torch.no_grad():
        before = down(keys)
        down.weight += layout.to_weight(change)
        torch.testing.assert_close(down(keys) - before, keys @ change.T, atol=1e-4, rtol=1e-4)


def test_the_probe_finds_what_the_table_says(any_model):
    probed, known = probe_family(any_model), FAMILIES[any_model.config.model_type]
    for part in ("blocks", "down", "final_norm", "conv1d", "mlp", "attn"):
        assert getattr(probed, part) == getattr(known, part), part


@pytest.mark.parametrize("family", UNKNOWN_FAMILIES)
def test_unknown_families_are_probed(family):
    model = tiny_model(family)
    assert model.config.model_type not in FAMILIES
    assert layout_of(model).d_ff == 48


def test_a_structure_that_cannot_be_probed_is_named():
    model = tiny_model("olmo2")
    for block in model.model.layers:
        block.mlp.down_proj = nn.Identity()
    with pytest.raises(ModelError, match="of type 'olmo2': block model.layers.0 has no single"):
        layout_of(model)
    other = tiny_model("olmo2")
    other.model.norm.forward = lambda hidden: hidden * 2 + 1
    real = other.lm_head.forward
    other.lm_head.forward = lambda hidden: real(hidden) + real(hidden.flip(-1))
    other.forward = lambda **kw: type("O", (), {"logits": other.lm_head(
        other.model(**kw).last_hidden_state).tanh()})()  # fmt: skip
    with pytest.raises(ModelError, match=r"logits are not head\(final norm\(last block\)\)"):
        layout_of(other)


@pytest.mark.filterwarnings("ignore:.*checkpointing")
@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_a_refusal_names_the_wrapper_of_peft(family):
    config = peft.LoraConfig(target_modules="all-linear")
    wrapped = peft.get_peft_model(tiny_model(family), config)
    with pytest.raises(ModelError, match=r"PEFT's PeftModel, .* model.merge_and_unload\(\)"):
        layout_of(wrapped)
    layout_of(wrapped.merge_and_unload())


def test_layers_are_checked_by_number():
    model = tiny_model("gpt2")
    with pytest.raises(ModelError, match=r"layers \[4\] do not exist: the model has 4 blocks"):
        layout_of(model).check_layers([0, 4])


def test_a_matrix_that_layers_share_is_refused():
    model = tiny_model("llama")
    layers = model.model.layers
    layers[3].mlp.down_proj.weight = layers[1].mlp.down_proj.weight
    layout = layout_of(model)
    layout.check_layers([0, 2])
    with pytest.raises(ModelError, match=r"layer 1 of .* the same mlp.down_proj as layers \[3\]"):
        layout.check_layers([1])


def test_a_decoder_that_sees_later_tokens_is_refused():
    model = tiny_model("olmo2")
    real = model.model.layers[0].forward

    def forward(hidden_states, *args, **kwargs):
        return real(hidden_states + hidden_states.mean(dim=1, keepdim=True), *args, **kwargs)

    model.model.layers[0].forward = forward
    with pytest.raises(ModelError, match="logits are not .* of the tokens so far"):
        layout_of(model)


def test_logits_that_are_scaled_in_half_precision_are_probed():
    layout = layout_of(tiny_model("granite", logits_scaling=3.0, dtype=torch.bfloat16))
    assert layout.family.final_norm == "model.norm"


@pytest.mark.parametrize(
    "family", ["mixtral", "qwen2_moe", "llama4_text", "granitemoeshared", "hunyuan_v1_moe"]
)
def test_experts_are_refused_in_words(family):
    with pytest.raises(ModelError, match="mixture of experts"):
        layout_of(tiny_model(family))


def test_a_state_space_is_no_mlp():
    layout = layout_of(tiny_model("nemotron_h"))
    assert layout.family.down == "mixer.down_proj"
    layout.check_layers([1, 2])
    with pytest.raises(ModelError, match="layer 0 of .* has no matrix mixer.down_proj"):
        layout.check_layers([0, 1])
    with pytest.raises(ModelError, match="no single matrix"):
        layout_of(tiny_model("mamba"))


@pytest.mark.parametrize("family", ["gemma3n_text", "gemma4_text"])
def test_streams_of_another_kind_are_refused_in_words(family):
    """Gemma 3n carries four streams; Gemma 4 with inputs per layer gates what the MLP adds."""
    model = tiny_model(family)
    with pytest.raises(ModelError, match="head.final norm.last block|neither a factor nor a norm"):
        path_of(layout_of(model), 1)


def test_a_dense_layer_before_the_experts_can_be_edited():
    layout = layout_of(tiny_model("deepseek_v3"))
    layout.check_layers([0])
    with pytest.raises(ModelError, match="layer 1 of .* mixture of experts"):
        layout.check_layers([0, 1])


def test_a_layout_is_made_once_per_model_and_not_copied_with_it(model):
    assert layout_of(model) is layout_of(model)
    other = copy.deepcopy(model)
    assert layout_of(other).model is other


def test_offloaded_weights_are_where_accelerate_puts_them():
    one = nn.Sequential(nn.Linear(2, 3))
    elsewhere = torch.device("meta")  # anything but what is expected
    assert device_of(one[0], elsewhere) == torch.device("cpu")
    accelerate.cpu_offload(one, execution_device=torch.device("cpu"))
    assert one[0].weight.is_meta and device_of(one[0], elsewhere) == torch.device("cpu")
    assert device_of(nn.Identity(), elsewhere) == elsewhere
