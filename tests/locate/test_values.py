"""Batched values against a plain loop: one request, full passes, optimizers of torch.optim."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from nse_plugin.model.layout import first_tensor
from nse_plugin.model.probe import layout_of
from nse_plugin.model.sampling import ABOUT
from nse_plugin.objectives import nll
from nse_plugin.requests import EditRequest
from tests.locate.values import values_of
from tests.tiny import FAMILY_NAMES, bits, same_bits, some_requests, tiny_hparams, tiny_model

CONTEXTS = ("The river is closed. ", "I think that you. ")


def plain_value(model, tokenizer, request, hparams):
    """The published recipe, literally: nothing batched over requests, nothing reused."""
    layout = layout_of(model)
    block = layout.blocks[hparams.layers[-1]]
    texts = [context + request.text for context in ("", *CONTEXTS)]
    ends = [len(context) + request.subject_end for context in ("", *CONTEXTS)]
    essence = f"{request.subject} is a"

    def last_subject_token(text, end):
        spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        return max(i for i, (a, b) in enumerate(spans) if a < end <= b or a <= end - 1 < b)

    delta = torch.zeros(layout.d_model, requires_grad=True)
    polyak = hparams.v_optimizer == "polyak"
    optimizer = (
        torch.optim.SGD([delta], 0.5, 0.5, nesterov=True)
        if polyak
        else torch.optim.Adam([delta], lr=hparams.v_lr)
    )
    base = None

    def forward(text, position, upto=None):  # a text, or its ids
        """Logits; with ``upto`` those read from the output of that block."""

        def edit(_module, _args, output):
            nonlocal base
            hidden = first_tensor(output).clone()
            if base is None:
                base = hidden[0, position].detach().clone()
            hidden[0, position] += delta
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        handle = block.register_forward_hook(edit)
        try:
            if isinstance(text, str):
                text = tokenizer(text, return_tensors="pt")["input_ids"]
            if upto is None:
                return model(input_ids=text).logits[0].float()
            states = model(input_ids=text, output_hidden_states=True).hidden_states
            return model.lm_head(layout.final_norm(states[upto + 1]))[0].float()
        finally:
            handle.remove()

    about = [(essence, last_subject_token(essence, len(request.subject)), None)]
    for opening in ABOUT[: hparams.kl_texts]:
        text = opening.replace("{}", request.subject)
        end = opening.index("{}") + len(request.subject)
        ids = tokenizer(text)["input_ids"]
        for _ in range(6):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
            ids = [*ids, int(logits.argmax())]
        about.append((torch.tensor([ids]), last_subject_token(text, end), 6))
    kl_start, first = None, 0
    for step in range(hparams.v_num_grad_steps):
        losses, right = [], True
        for text, end in zip(texts, ends):
            n_prompt = len(tokenizer(text)["input_ids"])
            full = f"{text} {request.target_new}"
            ids = torch.tensor(tokenizer(full)["input_ids"])
            subject = last_subject_token(text, end)
            log_p = forward(full, subject, hparams.v_loss_layer).log_softmax(-1)
            targets = ids[n_prompt:]
            rows = torch.arange(n_prompt - 1, len(ids) - 1)
            losses.append(-log_p[rows, targets].mean())
            right &= bool((log_p[rows].argmax(-1) == targets).all())
        log_ps = []
        for text, position, n_written in about:
            read = slice(-n_written - 1, -1) if n_written else slice(position, position + 1)
            log_ps.append(forward(text, position)[read].log_softmax(-1))
        if kl_start is None:
            kl_start = [log_p.detach() for log_p in log_ps]
        kl = torch.stack(
            [(p.exp() * (p - start)).sum(-1).mean() for p, start in zip(log_ps, kl_start)]
        ).mean()
        loss = (
            torch.stack(losses).mean()
            + hparams.kl_factor * kl
            + hparams.v_weight_decay * delta.norm() / base.norm() ** 2
        )
        first = first + 1 if right else 0
        ranked = hparams.v_stop == "rank" and first == 3  # the first time, and two steps more
        if loss < hparams.v_stop_loss or ranked or step == hparams.v_num_grad_steps - 1:
            break
        optimizer.zero_grad()
        loss.backward()
        if polyak:
            longest = 0.3 * hparams.clamp_norm_factor * base.norm()
            norm = delta.grad.norm()
            delta.grad *= min(loss.item() / norm, longest) / norm
        optimizer.step()
        bound = hparams.clamp_norm_factor * base.norm()
        with torch.no_grad():
            if delta.norm() > bound:
                delta *= bound / delta.norm()
    return base + delta.detach(), loss.item(), step + 1


TEXTS = {"kl_texts": 3, "kl_factor": 0.5}
LOSS_LAYER = {"layers": [1], "v_loss_layer": 2, "kl_factor": 0.5}  # the KL is of all layers


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        *((family, {}) for family in FAMILY_NAMES),
        *((family, {"v_optimizer": "polyak"}) for family in ("gpt2", "gemma2")),
        *((family, TEXTS) for family in ("gpt2", "gemma2")),
        *((family, LOSS_LAYER) for family in ("gpt2", "llama")),
    ],
    ids=str,
)
def test_batched_equals_one_at_a_time(family, settings, tokenizer):
    model = tiny_model(family).requires_grad_(False)
    hparams = tiny_hparams(v_num_grad_steps=4, v_lr=0.3, **settings)
    requests = some_requests(3)
    values = values_of(layout_of(model), tokenizer, requests, CONTEXTS, hparams, nll)
    for i, request in enumerate(requests):
        z, loss, steps = plain_value(model, tokenizer, request, hparams)
        assert int(values.steps[i]) == steps
        assert float(values.loss[i]) == pytest.approx(loss, rel=1e-3)
        torch.testing.assert_close(values.z[i], z, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    "targets, stop",
    [
        (["Garn", "you", "Quill"], {"v_stop_loss": 5.3}),
        (["Garn", "you", "Quill"], {"v_stop_loss": 5.3, "v_optimizer": "polyak"}),
        (["the", "a", "is"], {"v_stop": "rank", "layers": [3]}),
    ],
)
def test_requests_stop_at_their_own_step(tokenizer, targets, stop):
    model = tiny_model("gpt2").requires_grad_(False)
    hparams = tiny_hparams(v_num_grad_steps=20, v_lr=0.3, v_weight_decay=0.0, **stop)
    # where the subject ends the prompt, its activation decides the answer
    prompts = [("We met {}", "Ann"), ("I saw {}", "Oren"), ("It is {}", "Lio")]
    requests = [EditRequest(i, *p, target) for i, (p, target) in enumerate(zip(prompts, targets))]
    values = values_of(layout_of(model), tokenizer, requests, CONTEXTS, hparams, nll)
    assert len(set(values.steps.tolist())) > 1 and values.steps.min() < 20
    for i, request in enumerate(requests):
        z, _, steps = plain_value(model, tokenizer, request, hparams)
        assert int(values.steps[i]) == steps
        torch.testing.assert_close(values.z[i], z, rtol=2e-3, atol=2e-3)


def test_a_margin_lengthens_delta_within_its_bound(tokenizer):
    model, requests = tiny_model("gpt2"), some_requests(4)
    hparams = tiny_hparams(v_num_grad_steps=6, v_optimizer="polyak", value_margin=1.0)
    found = values_of(layout_of(model), tokenizer, requests, CONTEXTS, hparams)
    delta, bound = found.z - found.base, hparams.clamp_norm_factor * found.base.norm(dim=1)
    expected = torch.minimum(2 * delta.norm(dim=1), bound)
    longer = found.lengthened(hparams).z - found.base
    assert 0 < int((expected == bound).sum()) < 4  # the bound holds for some of them
    torch.testing.assert_close(longer.norm(dim=1), expected)
    torch.testing.assert_close(F.cosine_similarity(longer, delta), torch.ones(4))
    assert torch.equal(found.lengthened(tiny_hparams()).z, found.z)


def test_micro_batches_change_nothing(model, tokenizer, device):
    layout, requests = layout_of(model), some_requests(6)
    whole = values_of(layout, tokenizer, requests, CONTEXTS, tiny_hparams(), nll)
    cut = values_of(layout, tokenizer, requests, CONTEXTS, tiny_hparams(token_budget=64), nll)
    if device.dtype is torch.float32:  # in bfloat16 another batch takes other steps
        torch.testing.assert_close(whole.z, cut.z, rtol=1e-4, atol=1e-4)
    assert whole.steps.tolist() == cut.steps.tolist()


def test_loss_layer_below_the_last(model, tokenizer):
    layout, requests = layout_of(model), some_requests(2)
    early = values_of(layout, tokenizer, requests, CONTEXTS, tiny_hparams(v_loss_layer=2), nll)
    last = values_of(layout, tokenizer, requests, CONTEXTS, tiny_hparams(), nll)
    assert not torch.allclose(early.z, last.z)


def test_model_is_left_as_found(model, tokenizer, device):
    model.train()
    model.lm_head.weight.requires_grad_(False)
    before = bits(model)
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    values_of(layout_of(model), tokenizer, some_requests(2), CONTEXTS, tiny_hparams(), nll)
    assert model.training
    assert wanted == {name: p.requires_grad for name, p in model.named_parameters()}
    assert same_bits(model, before)
    assert all(p.grad is None for p in model.parameters())


def test_a_relative_learning_rate_is_that_of_each_request(model, tokenizer):
    layout, requests = layout_of(model), some_requests(3)
    share = dict(v_lr=None, v_lr_relative=0.2)
    whole = values_of(layout, tokenizer, requests, CONTEXTS, tiny_hparams(**share), nll)
    for i, request in enumerate(requests):
        rate = 0.2 * float(whole.base[i].square().mean().sqrt())
        alone = values_of(layout, tokenizer, [request], CONTEXTS, tiny_hparams(v_lr=rate), nll)
        torch.testing.assert_close(whole.z[i], alone.z[0], rtol=1e-3, atol=1e-3)
