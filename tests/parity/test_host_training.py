"""FT, LoRA and GRACE against EasyEdit's own, where there is an EasyEdit.

EASYEDIT_ROOT=/path/to/EasyEdit pytest tests/parity
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nse_plugin.hparams import FTHparams, GRACEHparams, LoRAHparams
from nse_plugin.methods import ft, grace, lora
from nse_plugin.model.seeding import seeded
from nse_plugin.requests import EditRequest
from nse_plugin.session.session import EditSession
from tests.tiny import some_requests, tiny_model, tiny_tokenizer

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def host(easyedit):
    """EasyEdit's functions by method."""
    models = "easyeditor.models"
    return {
        "FT": importlib.import_module(f"{models}.ft.ft_main").apply_ft_to_model,
        "LoRA": importlib.import_module(f"{models}.lora.lora_main").apply_lora_to_model,
        "GRACE": importlib.import_module(f"{models}.grace.grace_main").apply_grace_to_model,
    }


def as_host_reads(hparams: Any) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(hparams), "device": "cpu", "model_name": "tiny"})


def as_dict(request: EditRequest) -> dict[str, Any]:
    return {"prompt": request.text, "target_new": request.target_new, "subject": request.subject}


def assert_near(found: torch.Tensor, expected: torch.Tensor, size: torch.Tensor) -> None:
    assert float((found - expected).detach().norm()) < TOLERANCE * float(size.norm())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "changes",
    [{"objective_optimization": "target_new"},
     {"objective_optimization": "prompt_last", "norm_constraint": 6e-3, "weight_decay": 0.1}],
    ids=["FT-M", "FT-L"],
)  # fmt: skip
def test_ft(host, family, changes):
    """The matrix alone: EasyEdit trains the bias too where the template lacks ``.weight``."""
    theirs, ours = tiny_model(family), tiny_model(family)
    session = EditSession.of(ours, tiny_tokenizer())
    template = f"{session.layout.templates()['rewrite_module_tmp']}.weight"
    h = FTHparams(
        alg_name="FT", model_name="tiny", layers=[1, 2], lr=2e-3, num_steps=6,
        rewrite_module_tmp=template, **changes,
    )  # fmt: skip
    settings = as_host_reads(h)
    if h.norm_constraint is None:
        settings.norm_constraint = False
    for request in some_requests(3):
        host["FT"](theirs, tiny_tokenizer(), [as_dict(request)], settings)
        ft.edit_round(session, [request], h)
    for name in session.weights.names():
        moved = session.weights.change(name)
        assert_near(ours.get_parameter(name), theirs.get_parameter(name), moved)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_lora(host, family):
    """AdaLoRA cannot be compared: EasyEdit leaves out total_step, which PEFT asks for."""
    ours, theirs = tiny_model(family), tiny_model(family)
    modules = {"gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}[family]
    h = LoRAHparams(
        alg_name="LoRA", model_name="tiny", target_modules=modules, lr=3e-3, num_steps=5,
        layers=[0, 2], rank=4, weight_decay=0.01,
    )  # fmt: skip
    session = EditSession.of(ours, tiny_tokenizer())
    wrapped = theirs
    for number, request in enumerate(some_requests(3), start=1):
        with seeded(h.seed, number):
            wrapped, _ = host["LoRA"](
                wrapped, tiny_tokenizer(), [as_dict(request)], as_host_reads(h)
            )
        lora.edit_round(session, [request], h)
    expected = {n: p.detach() for n, p in wrapped.named_parameters() if "lora_" in n}
    assert len(expected) == len(session.attached.tensors()) > 0
    for name, parameter in expected.items():
        name = name.removeprefix("base_model.model.").replace(".default", "")
        assert_near(session.attached.tensors()[name], parameter, parameter)


FAR = some_requests(2)
NEAR = [  # nearer to each other than twice 3.1, and farther than that from all other tokens
    EditRequest(0, "The old bridge which people call {} is in", "Ann", "Garn"),
    EditRequest(1, "The old bridge which people call {} is in", "Lio", "Quill"),
]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("requests, eps", [(FAR, 0.5), (NEAR, 3.1)], ids=["far apart", "a split"])
def test_grace(host, family, requests, eps):
    """Keys, values, radii and what the edited prompts then get.

    From a third entry on, EasyEdit compares a target with that of another key, and where a ball
    grows its value has no gradient; so two edits is what can be compared.
    """
    ours, theirs = tiny_model(family), tiny_model(family)
    layer = {"gpt2": "transformer.h[2].mlp.c_fc", "llama": "model.layers[2].mlp.down_proj"}[family]
    h = GRACEHparams(
        alg_name="GRACE", model_name="tiny", inner_params=[f"{layer}.weight"], n_iter=12, eps=eps
    )
    session = EditSession.of(ours, tiny_tokenizer())
    for number, request in enumerate(requests, start=1):
        with seeded(h.seed, number):
            editor, _ = host["GRACE"](
                theirs, tiny_tokenizer(), [as_dict(request)], as_host_reads(h)
            )
        grace.edit_round(session, [request], h)
        found = session.attached.tensors()
        adapter = theirs.get_submodule(layer.replace("[", ".").replace("]", ""))
        assert len(found["keys"]) == len(adapter.keys) == number
        assert_near(found["keys"], adapter.keys, adapter.keys)
        assert_near(found["values"], adapter.values.detach(), adapter.values.detach())
        radii = torch.as_tensor(adapter.epsilons).detach().flatten()
        assert torch.allclose(found["radii"], radii, rtol=1e-4)
        text = f"{request.text} {request.target_new}"
        ids = torch.tensor([tiny_tokenizer().encode(text)])
        with torch.no_grad():
            expected = editor.model(input_ids=ids).logits
            logits = ours(input_ids=ids).logits
        # what stands before the place of the edit is the untouched model's in both
        assert torch.allclose(logits, expected, atol=1e-3 * float(expected.abs().max()))
    assert (float(radii[0]) < eps) == (requests is NEAR)
