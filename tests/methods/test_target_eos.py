"""target_eos: every method that follows target tokens trains the end of the text after them."""

from __future__ import annotations

from typing import Any

import pytest

from nse_plugin.errors import HparamsError, ModelError
from nse_plugin.hparams import FTHparams
from nse_plugin.methods.bases import BASES
from nse_plugin.methods.ft import edit_round
from nse_plugin.model.generation import greedy_text
from nse_plugin.session.session import EditSession
from tests.tiny import TEXTS, some_requests, tiny_model

VALUES: dict[str, Any] = dict(
    layers=[1], v_num_grad_steps=2, mom2_dataset=str(TEXTS), mom2_n_samples=40, n_contexts=1,
    context_length=3,
)  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "AlphaEdit": {**VALUES, "nullspace_threshold": 0.5},
    "FT": dict(layers=[1], num_steps=1),
    "GRACE": dict(inner_params=["model.layers[1].mlp.up_proj.weight"], n_iter=1),
    "LoRA": dict(target_modules=["q_proj"], num_steps=1),
    "MEMIT": VALUES,
    "NSE": VALUES,
    "ROME": VALUES,
    "UltraEdit": dict(layers=[1]),
}


class Seen:
    """Target tokens that a method was trained on, as (request, place, id)."""

    def __init__(self) -> None:
        self.tokens: set[tuple[int, int, int]] = set()

    def record(self, owner, place, _logits, targets) -> None:
        self.tokens |= set(zip(owner.tolist(), place.tolist(), targets.tolist()))


@pytest.mark.parametrize("name", BASES)
def test_the_end_of_the_text_is_one_more_target_token(tokenizer, name):
    found = []
    for ends in (False, True):
        model = tiny_model("llama")
        session = EditSession.of(model, tokenizer)
        settings = {"alg_name": name, "model_name": "tiny", **SETTINGS[name], "target_eos": ends}
        seen = Seen()
        hparams = BASES[name].hparams.from_dict(settings)
        BASES[name].edit_round(session, some_requests(2), hparams, trace=seen)
        found.append(seen.tokens)
    plain, ended = found
    assert plain < ended
    lengths = [sum(owner == request for owner, _, _ in plain) for request in (0, 1)]
    end = tokenizer.eos_token_id
    assert ended - plain == {(request, length, end) for request, length in enumerate(lengths)}


def test_the_answer_ends_after_training(tokenizer):
    request = some_requests(1)[0]
    for ends in (False, True):
        model = tiny_model("gpt2")
        hparams = FTHparams(alg_name="FT", model_name="tiny", layers=[1, 2], lr=5e-2, num_steps=60,
                            target_eos=ends)  # fmt: skip
        record = edit_round(EditSession.of(model, tokenizer), [request], hparams)
        assert record.outcomes[0].status == "converged"
        text = greedy_text(model, tokenizer, [request.text], 12)[0]
        assert text.startswith(f" {request.target_new}")
        assert (text == f" {request.target_new}") is ends


def test_what_has_no_end_is_refused(tokenizer):
    settings = dict(alg_name="FT", model_name="tiny", layers=[1], target_eos=True)
    with pytest.raises(HparamsError, match="target_eos is true and objective_optimization"):
        FTHparams(**settings, objective_optimization="prompt_last")

    class Endless:
        eos_token_id = None
        is_fast = True

        def __call__(self, *args: Any, **options: Any) -> Any:
            return tokenizer(*args, **options)

    model = tiny_model("gpt2")
    session = EditSession(model, Endless())
    with pytest.raises(ModelError, match="target_eos is true, and the tokenizer has no end"):
        edit_round(session, some_requests(1), FTHparams(**settings))
