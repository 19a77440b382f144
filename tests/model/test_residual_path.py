"""How a down-projection's output reaches the residual stream, against what blocks really do."""

from __future__ import annotations

import pytest
import torch

from nse_plugin.errors import ModelError
from nse_plugin.model.layout import first_tensor
from nse_plugin.model.probe import layout_of
from nse_plugin.model.residual_path import ResidualPath, measure_path, path_of
from tests.tiny import FAMILY_NAMES, UNKNOWN_FAMILIES, tiny_model

NORMED = ("gemma2", "gemma3_text", "olmo2", "glm4", "exaone4")
IDS = torch.tensor([[5, 6, 7, 8]])


def block_output(model, layer, alter=lambda output: output):
    """Last token of a block's output, with the down-projection's output altered there."""
    layout = layout_of(model)
    seen = {}

    def at_down(_module, _args, output):
        rows = output.reshape(-1, output.shape[-1]).clone()
        seen["output"] = rows[-1:].clone()
        rows[-1:] = alter(rows[-1:])
        return rows.view_as(output)

    def at_end(_module, _args, output):
        seen["stream"] = first_tensor(output)[0, -1:].clone()

    handles = [
        layout.down(layer).register_forward_hook(at_down),
        layout.blocks[layer].register_forward_hook(at_end),
    ]
    with torch.no_grad():
        model(input_ids=IDS)
    for handle in handles:
        handle.remove()
    return seen["output"], seen["stream"]


@pytest.mark.parametrize("family", [*FAMILY_NAMES, *UNKNOWN_FAMILIES])
def test_the_path_predicts_what_a_block_adds(family):
    model = tiny_model(family)
    for layer in (1, 3):
        path = path_of(layout_of(model), layer)
        assert (path.norm is not None) is (family in NORMED)
        assert path.norm in (None, *layout_of(model).blocks[layer].modules())
        output, before = block_output(model, layer)
        change = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
        _, after = block_output(model, layer, lambda rows, change=change: rows + change)
        predicted = path(output + change) - path(output)
        torch.testing.assert_close(after - before, predicted, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("family", [*NORMED, "granite", "llama", "opt"])
def test_what_is_pulled_back_gives_the_residual(family):
    model = tiny_model(family)
    path = path_of(layout_of(model), 1)
    output, before = block_output(model, 1)
    other = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    residual = path(other) - path(output)  # within reach, also of a norm, and large
    change = path.pull_back(residual, output)
    _, after = block_output(model, 1, lambda rows: rows + change)
    torch.testing.assert_close(after - before, residual, atol=2e-3, rtol=5e-3)


def test_a_layer_norm_after_the_mlp_is_pulled_back_through():
    norm = torch.nn.LayerNorm(32)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    path = ResidualPath(0.5, norm)
    output, other = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(3))
    residual = path(other) - path(output)
    torch.testing.assert_close(
        path(output + path.pull_back(residual, output)), path(other), atol=1e-3, rtol=1e-3
    )


def test_out_of_reach_of_a_norm_nothing_is_nearer_than_what_is_pulled_back():
    """Gains of three orders of magnitude, as in Gemma 3: against descent from many starts."""
    generator = torch.Generator().manual_seed(4)
    norm = torch.nn.RMSNorm(8, eps=1e-6)
    norm.weight.data = torch.logspace(-2, 1, 8)
    path = ResidualPath(1.0, norm)
    for size in (0.1, 1.0, 30.0):
        output = torch.randn(1, 8, generator=generator)
        residual = size * torch.randn(1, 8, generator=generator)
        wanted = path(output) + residual
        found = (path(output + path.pull_back(residual, output)) - wanted).norm()
        tried = torch.randn(64, 8, generator=generator).requires_grad_(True)
        optimiser = torch.optim.Adam([tried], lr=0.05)
        for _ in range(400):
            optimiser.zero_grad()
            unit = norm.weight.detach() * tried / tried.square().mean(dim=1, keepdim=True).sqrt()
            distance = (unit - wanted).norm(dim=1)
            distance.sum().backward()
            optimiser.step()
        assert found <= distance.min() * 1.001 + 1e-4


def test_other_paths_are_refused_by_name(model):
    layout = layout_of(model)
    block = layout.blocks[1]
    block.register_forward_hook(
        lambda _module, _args, output: (
            (output[0].tanh(), *output[1:]) if isinstance(output, tuple) else output.tanh()
        )
    )
    with pytest.raises(ModelError, match=r"layer 1 of .* neither a factor nor a norm"):
        measure_path(layout, 1)


@pytest.mark.parametrize("family", ["gemma3_text", "granite", "llama"])
def test_a_huge_number_in_the_stream_does_not_hide_the_path_in_half_precision(family):
    model = tiny_model(family, dtype=torch.bfloat16)
    with torch.no_grad():
        model.get_input_embeddings().weight[1, :3] = 3e4  # as first tokens of real models have
    path = path_of(layout_of(model), 1)
    assert (path.norm is not None) is (family in NORMED)
    assert path.scale == pytest.approx(0.22 if family == "granite" else 1.0, rel=0.02)
