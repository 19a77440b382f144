"""LoRA against PEFT used by hand, and what a session promises of adapters."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import torch

from nse_plugin.errors import HparamsError, ModelError, SessionError
from nse_plugin.export import to_peft
from nse_plugin.hparams import LoRAHparams
from nse_plugin.methods.lora import edit_round
from nse_plugin.model.seeding import seeded
from nse_plugin.session.session import EditSession
from tests.tiny import bits, same_bits, some_requests, tiny_model, tiny_tokenizer

MODULES = {"gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}


def hparams(model, **changes: Any) -> LoRAHparams:
    settings: dict[str, Any] = dict(
        alg_name="LoRA", model_name="tiny", target_modules=MODULES[model.config.model_type],
        lr=5e-3, num_steps=5, rank=4,
    )  # fmt: skip
    return LoRAHparams(**{**settings, **changes})


def by_hand(model, tokenizer, rounds, h: LoRAHparams):
    """PEFT's wrapper, labels and loss, an Adam of its own for each round."""
    common = dict(
        task_type="CAUSAL_LM",
        lora_alpha=h.lora_alpha,
        target_modules=h.target_modules,
        layers_to_transform=h.layers or None,
    )
    if h.lora_type == "lora":
        config = peft.LoraConfig(**common, r=h.rank)
    else:
        config = peft.AdaLoraConfig(**common, init_r=h.rank, target_r=h.rank, total_step=1)
    with seeded(h.seed, 1):
        wrapped = peft.get_peft_model(model, config)
    for requests in rounds:
        adam = torch.optim.Adam(
            wrapped.parameters(), lr=h.lr, betas=(h.beta1, h.beta2), weight_decay=h.weight_decay
        )
        for _ in range(h.num_steps):
            for request in requests:
                prompt = tokenizer.encode(request.text)
                target = tokenizer.encode(f" {request.target_new}")
                labels = torch.tensor([[-100] * len(prompt) + target])
                adam.zero_grad()
                wrapped(input_ids=torch.tensor([prompt + target]), labels=labels).loss.backward()
                adam.step()
    return wrapped


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers": [1, 3], "weight_decay": 0.1, "beta1": 0.0, "beta2": 0.5},
        {"lora_type": "adalora"},
    ],
    ids=["lora", "two layers", "adalora"],
)
def test_rounds_are_peft_by_hand(model, tokenizer, changes):
    h = hparams(model, **changes)
    rounds = [some_requests(2), some_requests(4)[2:]]
    expected = by_hand(tiny_model(model.config.model_type), tokenizer, rounds, h)
    expected = {n: p for n, p in expected.named_parameters() if "lora_" in n}
    session = EditSession.of(model, tokenizer)
    for requests in rounds:
        record = edit_round(session, requests, h)
    assert len(record.state.tensors) >= len(expected) > 0
    for name, parameter in expected.items():
        name = name.removeprefix("base_model.model.").replace(".default", "")
        error = (record.state.tensors[name] - parameter.detach()).norm()
        assert float(error) < 1e-4 * float(parameter.detach().norm()), name


def test_the_models_own_weights_flags_and_names_stay(model, tokenizer):
    model.get_input_embeddings().weight.requires_grad_(False)
    before = bits(model)
    modules = [(name, type(module)) for name, module in model.named_modules()]
    own = list(model.parameters())
    flags = [p.requires_grad for p in own]
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    with torch.no_grad():
        clean = model(**inputs).logits
    session = EditSession.of(model, tokenizer)
    edit_round(session, some_requests(2), hparams(model))
    assert [p.requires_grad for p in own] == flags and all(p.grad is None for p in own)
    with torch.no_grad():
        assert not torch.equal(model(**inputs).logits, clean)
        with session.rewound():
            assert torch.equal(model(**inputs).logits, clean)
        assert not torch.equal(model(**inputs).logits, clean)
    session.undo_all()
    assert [(name, type(module)) for name, module in model.named_modules()] == modules
    assert not hasattr(model, "peft_config")
    assert same_bits(model, before)
    assert [p.requires_grad for p in model.parameters()] == flags


def test_dropout_is_drawn_from_seed_and_round_and_off_outside_training(tokenizer):
    def states(**changes):
        model = tiny_model("gpt2")
        session = EditSession.of(model, tokenizer)
        h = hparams(model, lora_dropout=0.3, **changes)
        torch.manual_seed(len(changes))  # what was drawn elsewhere does not matter
        return [edit_round(session, [r], h).state.tensors for r in some_requests(2)], model

    (first, second), model = states()
    (again, and_again), _ = states()
    assert all(torch.equal(first[n], again[n]) and torch.equal(second[n], and_again[n])
               for n in first)  # fmt: skip
    (other, _), _ = states(seed=1)
    assert not all(torch.equal(first[n], other[n]) for n in first)
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)


def test_each_round_draws_a_dropout_of_its_own(tokenizer):
    """Rounds that learn nothing and train on one request differ by their masks alone."""
    model, logits = tiny_model("gpt2"), []

    class Trace:
        def record(self, _owner, _place, given, _target):
            logits.append(given.clone())

    session = EditSession.of(model, tokenizer)
    edit_round(session, some_requests(1), hparams(model, lora_dropout=0.3))
    still = hparams(model, lora_dropout=0.3, lr=1e-30, num_steps=1)
    second, third = (edit_round(session, some_requests(1), still, trace=Trace()) for _ in range(2))
    assert all(torch.equal(t, third.state.tensors[n]) for n, t in second.state.tensors.items())
    in_training = logits[::2]  # the others are evaluated afterwards, without dropout
    assert not torch.equal(*in_training) and torch.equal(*logits[1::2])


def test_exported_adapters_load_with_peft(model, tokenizer, tmp_path):
    session = EditSession.of(model, tokenizer)
    with pytest.raises(HparamsError, match="trained adapters have theirs"):
        edit_round(session, some_requests(2), hparams(model))
        to_peft(session, tmp_path / "a", rank=2)
    assert to_peft(session, tmp_path / "a") == {}
    fresh = peft.PeftModel.from_pretrained(tiny_model(model.config.model_type), tmp_path / "a")
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    with torch.no_grad():
        assert torch.equal(fresh.eval()(**inputs).logits, model(**inputs).logits)


def test_what_does_not_fit_is_refused(model, tokenizer):
    session = EditSession.of(model, tokenizer)
    with pytest.raises(ModelError, match=r"target_modules \['w_q'\]"):
        edit_round(session, some_requests(1), hparams(model, target_modules=["w_q"]))
    assert not hasattr(model, "peft_config")
    with pytest.raises(HparamsError, match="target_modules is empty"):
        hparams(model, target_modules=[])
    edit_round(session, some_requests(1), hparams(model))
    with pytest.raises(SessionError, match="rank is 2, and .* made with 4"):
        edit_round(session, some_requests(1), hparams(model, rank=2))
    other = copy.deepcopy(model)
    with pytest.raises(ModelError, match="PEFT adapters already"):
        edit_round(EditSession.of(other, tokenizer), some_requests(1), hparams(model))


@pytest.mark.parametrize("error", [NotImplementedError, KeyboardInterrupt])
def test_what_goes_wrong_half_way_through_attaching_leaves_nothing(
    model, tokenizer, monkeypatch, error
):
    inject, names = peft.inject_adapter_in_model, [name for name, _ in model.named_modules()]

    def broken(*args: Any) -> None:
        inject(*args)
        raise error("half-way")

    monkeypatch.setattr(peft, "inject_adapter_in_model", broken)
    session = EditSession.of(model, tokenizer)
    with pytest.raises(error, match="half-way"):
        edit_round(session, some_requests(1), hparams(model))
    assert [name for name, _ in model.named_modules()] == names
    assert not hasattr(model, "peft_config")
    monkeypatch.undo()
    edit_round(session, some_requests(1), hparams(model))


@pytest.mark.parametrize("lora_type", ["lora", "adalora"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_of_a_model_in_half_precision_are_trained_in_float32(model, dtype, lora_type):
    """In float16 Adam's epsilon is 0, and adapters that have not moved yet would become NaN."""
    session = EditSession.of(model.to(dtype), tiny_tokenizer())
    record = edit_round(session, some_requests(2), hparams(model, lora_type=lora_type))
    assert {t.dtype for t in record.state.tensors.values()} == {torch.float32}
    assert all(outcome.z_loss < 20 for outcome in record.outcomes)
    assert model(torch.tensor([[1, 2, 3]])).logits.dtype == dtype
