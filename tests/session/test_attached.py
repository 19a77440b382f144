"""Attached modules in a session: undo, adopt, foreign hands, other methods, hosts, runs."""

from __future__ import annotations

import copy
import json
import os
from typing import Any

import pytest
import torch

from nse_plugin.editor import BaseEditor
from nse_plugin.errors import DataError, HostError, SessionError
from nse_plugin.export import to_delta, to_full, to_peft
from nse_plugin.hparams import FTHparams, GRACEHparams, LoRAHparams
from nse_plugin.methods import nse
from nse_plugin.methods.registry import METHODS, apply_function
from nse_plugin.objectives import nll
from nse_plugin.runs.stopping import StopRules
from nse_plugin.session import queries
from nse_plugin.session.blame import blame
from nse_plugin.session.ledger_files import load_rounds, save_round
from nse_plugin.session.link import linked
from nse_plugin.session.session import EditSession
from tests.runs.runs import protocol, same_run, scheduler
from tests.runs.runs import session as small_session
from tests.tiny import same_bits, some_requests, tiny_hparams, tiny_model, tiny_tokenizer

INPUTS = {"input_ids": torch.tensor([[5, 6, 7, 8]])}


def hparams(name: str, **changes: Any) -> Any:
    settings: dict[str, dict[str, Any]] = {
        "FT": dict(layers=[1], num_steps=3),
        "LoRA": dict(target_modules=["c_attn"], num_steps=3, lora_dropout=0.2, lr=1e-2),
        "GRACE": dict(inner_params=["transformer.h[1].mlp.c_fc.weight"], n_iter=3, eps=0.5),
    }
    kinds = {"FT": FTHparams, "LoRA": LoRAHparams, "GRACE": GRACEHparams}
    common = {"alg_name": name, "model_name": "tiny"}
    return kinds[name](**{**common, **settings[name], **changes})


@pytest.fixture(params=["LoRA", "GRACE"])
def name(request) -> str:
    return request.param


@pytest.fixture
def model():
    return tiny_model("gpt2")


def edit(session: EditSession, requests, h: Any):
    return METHODS[h.alg_name].edit_round(session, requests, h)


def state(session: EditSession) -> dict[str, torch.Tensor]:
    kept = session.attached.state()
    return {} if kept is None else kept.tensors


def rounds_of(session, h, n=3):
    states = [state(session)]
    for request in some_requests(n):
        edit(session, [request], h)
        states.append(state(session))
    return states


def test_last_rounds_can_be_undone_and_no_other(model, tokenizer, name):
    session, h = EditSession.of(model, tokenizer), hparams(name)
    states = rounds_of(session, h)
    with pytest.raises(SessionError, match="round 2 cannot be undone alone: .* up to 3; undo"):
        session.undo(2)
    assert same_bits(state(session), states[3])
    session.undo(3)
    assert same_bits(state(session), states[2]) and session.ledger.numbers() == [1, 2]
    session.undo_last()
    assert same_bits(state(session), states[1])
    edit(session, [some_requests(3)[2]], h)
    assert session.ledger.numbers() == [1, 4]
    session.undo_all()
    assert session.attached.kind is None
    assert same_bits(model, tiny_model("gpt2"))


def test_another_session_adopts_the_files(model, tokenizer, name, tmp_path):
    session, h = EditSession.of(model, tokenizer), hparams(name)
    states = rounds_of(session, h)
    paths = [save_round(tmp_path, record).path for record in session.ledger]
    other, drawn = tiny_model("gpt2"), torch.get_rng_state()
    adopted = EditSession.of(other, tokenizer)
    adopted.adopt(load_rounds(paths))
    assert torch.equal(drawn, torch.get_rng_state())  # adapters begin at random
    assert same_bits(state(adopted), states[3])
    with torch.no_grad():
        assert torch.equal(other(**INPUTS).logits, model(**INPUTS).logits)
    extra = some_requests(4)[3:]
    assert same_bits(edit(session, extra, h).state.tensors, edit(adopted, extra, h).state.tensors)
    adopted.undo_last(2)
    assert same_bits(state(adopted), states[2])


def test_a_failed_round_leaves_the_one_before(model, tokenizer, name):
    session, h = EditSession.of(model, tokenizer), hparams(name)
    calls = 0

    def failing(logits, targets, reference=None):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("no")
        return nll(logits, targets)

    failing.needs_reference = False
    for rounds in (0, 1):
        calls, before = 0, state(session)
        names = [n for n, _ in model.named_modules()]
        with pytest.raises(RuntimeError):
            METHODS[name].edit_round(session, some_requests(2), h, failing)
        assert len(session.ledger) == rounds and same_bits(state(session), before)
        assert [n for n, _ in model.named_modules()] == names
        assert not any(m.training for m in model.modules() if type(m).__name__ == "Dropout")
        session.check()
        edit(session, some_requests(1), h)


def test_foreign_hands_are_noticed(model, tokenizer, name):
    session = EditSession.of(model, tokenizer)
    edit(session, some_requests(1), hparams(name))
    own = model.get_parameter("transformer.h.3.mlp.c_proj.weight")
    kept = own.detach().clone()
    with torch.no_grad():
        own.add_(1.0)
    with pytest.raises(SessionError, match=r"h\.3\.mlp\.c_proj\.weight changed"):
        session.check()
    with torch.no_grad():
        own.copy_(kept)
    session.check()
    learned = next(t for n, t in session.attached.tensors().items() if "lora_B" in n or n == "keys")
    with torch.no_grad():
        learned.add_(1.0)
    with pytest.raises(SessionError, match=r"(lora:.*lora_B|grace:keys).* changed since round 1"):
        session.check()


def test_a_wrapped_matrix_is_watched_too(model, tokenizer):
    session = EditSession.of(model, tokenizer)
    edit(session, some_requests(1), hparams("LoRA"))
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.base_layer.weight.mul_(1.1)
    with pytest.raises(SessionError, match="attn.c_attn.weight changed"):
        session.check()


def test_one_method_per_session(model, tokenizer, name, tmp_path):
    session = EditSession.of(model, tokenizer)
    edit(session, some_requests(1), hparams(name))
    other = hparams({"LoRA": "GRACE", "GRACE": "LoRA"}[name])
    writing = tiny_hparams(stats_dir=str(tmp_path))
    for attempt in (
        lambda: edit(session, some_requests(1), other),
        lambda: nse.edit_round(session, some_requests(1), writing),
        lambda: edit(session, some_requests(1), hparams("FT")),
    ):
        with pytest.raises(SessionError, match="rounds of another method"):
            attempt()
    assert session.ledger.numbers() == [1]
    session.undo_all()
    edit(session, some_requests(1), hparams("FT"))
    with pytest.raises(SessionError, match="1 rounds that wrote weights"):
        edit(session, some_requests(1), hparams(name))


def test_tables_and_exports_of_rounds_without_weights(model, tokenizer, name, tmp_path):
    session = EditSession.of(model, tokenizer)
    rounds_of(session, hparams(name))
    ledger = session.ledger
    found = queries.survey(ledger)
    assert list(found.rounds["edits"]) == [1, 1, 1] and len(found.requests) == 3
    assert found.capacity.shape == (3, 0) and found.overlaps[None].shape == (3, 3)
    json.dumps([record.summary() for record in ledger], allow_nan=False)
    with pytest.raises(DataError, match="no round edited it"):
        queries.neurons(ledger, 1)
    with pytest.raises(SessionError, match="cannot be removed one by one"):
        blame(session, "Mara Voss lives in")
    for export in (to_delta, to_full, *([to_peft] if name == "GRACE" else [])):
        with pytest.raises(SessionError, match="not in its weights"):
            export(session, tmp_path / "out")


def test_contexts_are_of_the_untouched_model(model, tokenizer, name, tmp_path):
    settings = tiny_hparams(stats_dir=str(tmp_path))
    session = EditSession.of(model, tokenizer)
    edit(session, some_requests(2), hparams(name, **({"lr": 1.0} if name == "LoRA" else {})))
    fresh = tiny_model("gpt2")
    assert session.untouched.contexts(settings) == EditSession.of(
        fresh, tokenizer
    ).untouched.contexts(settings)


# --- hosts ----------------------------------------------------------------------------------------


@pytest.fixture
def editor(name):
    model = tiny_model("gpt2")
    return BaseEditor(hparams(name, model_name=(model, tiny_tokenizer())))


def facts(n=3):
    records = some_requests(n)
    return dict(
        prompts=[r.text for r in records],
        target_new=[r.target_new for r in records],
        subject=[r.subject for r in records],
    )


def test_the_embedded_editor_takes_single_edits_back(editor):
    before = copy.deepcopy(editor.model)
    _, model, held = editor.edit(**facts(), verbose=False)
    assert model is editor.model and callable(held)
    session = EditSession.of(model)
    assert session.attached.kind is None and session.ledger.numbers() == []
    assert same_bits(model, before)
    metrics, *_ = editor.edit(**facts(), sequential_edit=True, verbose=False)
    assert len(metrics) == 3 and session.ledger.numbers() == [1, 2, 3]
    with pytest.raises(SessionError, match="copy=True, and the model has"):
        editor.edit(**facts(1), copy=True, verbose=False)


def test_a_copy_is_edited_and_the_model_left_alone(editor):
    _, copied, _ = editor.edit(**facts(), sequential_edit=True, copy=True, verbose=False)
    assert copied is not editor.model
    assert EditSession.of(copied).ledger.numbers() == [1, 2, 3]
    assert linked(editor.model) is None


def test_other_values_under_a_seed_of_their_own(name):
    apply = apply_function(name)
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    records = [r.to_dict() for r in some_requests(1)]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    apply(model, tokenizer, records, hparams(name))
    assert torch.equal(torch.rand(3), expected)  # nobody else's random numbers were used up


def test_easyedit_is_not_offered_what_it_cannot_take_back(name):
    from nse_plugin.easyedit import register as registering

    with pytest.raises(HostError, match=f"{name} of nse_plugin attaches modules"):
        registering.refuse_attaching([name])


# --- runs -----------------------------------------------------------------------------------------


def run(folder, name, stream=None, **changes):
    h = hparams(name)
    made = scheduler(folder, stream, hparams=h, subject=small_session(), **changes)
    return made, made.run()


def _die_before_renaming(at: int) -> None:
    """End this process, with nothing cleaned up, before it renames its at-th file."""
    real, count = os.replace, 0

    def replace(*args: Any, **kwargs: Any) -> None:
        nonlocal count
        count += 1
        if count == at:
            os._exit(77)
        real(*args, **kwargs)

    os.replace = replace


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", ["FT", "LoRA", "GRACE"])
def test_a_killed_run_goes_on(name, tmp_path):
    whole, result = run(tmp_path / "whole", name)
    assert result.status == "complete"
    for _ in range(3):  # each time one round further, and killed as it keeps the next
        pid = os.fork()
        if pid == 0:
            try:
                _die_before_renaming(2)
                run(tmp_path / "killed", name)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 77
    again, _ = run(tmp_path / "killed", name)
    with torch.no_grad():
        expected = whole.backend.model(**INPUTS).logits
        assert torch.equal(again.backend.model(**INPUTS).logits, expected)
    assert same_run(tmp_path / "whole", tmp_path / "killed")
    assert same_bits(state(whole.backend.session), state(again.backend.session))


@pytest.mark.parametrize("name", ["FT", "LoRA", "GRACE"])
def test_a_collapse_is_taken_back(name, tmp_path):
    made, result = run(
        tmp_path, name, stop_rules=StopRules(max_perplexity=1.0), protocol=protocol(every=1)
    )
    assert result.status == "collapsed" and len(made.backend.session.ledger) == 0
    with torch.no_grad():
        expected = small_session().kept(**INPUTS).logits
        assert torch.equal(made.backend.model(**INPUTS).logits, expected)
