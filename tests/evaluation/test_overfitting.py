"""Single edits watched token by token, and the command that shows them."""

from __future__ import annotations

import json
import math

import pytest

from nse_plugin.cli import main
from nse_plugin.data import atlas
from nse_plugin.errors import HparamsError, SessionError
from nse_plugin.evaluation.overfitting import Watched, mean_course, single_edits
from nse_plugin.hparams import OvertoneHparams
from nse_plugin.hparams.training import FTHparams, LoRAHparams
from nse_plugin.methods.nse import edit_round
from nse_plugin.objectives.token_table import TokenCourse, TokenStep
from nse_plugin.runs.overfit import overfit
from nse_plugin.session.session import EditSession
from tests.tiny import bits, same_bits, some_requests, tiny_model

QUICK = """
alg_name: NSE
model_name: atlas:gpt2
layers: [1, 2]
v_lr: 0.3
v_num_grad_steps: 8
mom2_dataset: atlas
mom2_n_samples: 100
n_contexts: 1
"""


@pytest.fixture
def yaml_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "quick.yaml"
    path.write_text(QUICK + f"stats_dir: {tmp_path}/stats\n")
    return str(path)


def test_each_edit_stands_alone_and_is_taken_back(tokenizer, hparams):
    model, requests = tiny_model("gpt2"), some_requests(3)
    session = EditSession.of(model, tokenizer)
    before = bits(model)
    watched = []
    for edit in single_edits(session, requests, hparams):
        assert len(session.ledger) == 1  # it stands while it is looked at
        watched.append(edit)
    assert same_bits(model, before)
    alone = list(single_edits(session, requests[2:], hparams))
    assert [edit.request for edit in watched] == requests and watched[2] == alone[0]


def test_the_numbers_of_an_edit(tokenizer, hparams):
    model = tiny_model("llama")
    session = EditSession.of(model, tokenizer)
    (edit,) = single_edits(session, some_requests(1), hparams)
    assert edit.losses == [course.losses[-1] for course in edit.courses]
    assert edit.steps == len(edit.courses[0].steps)
    assert edit.spread.range == max(edit.losses) - min(edit.losses)
    assert edit.course["loss"][-1] == pytest.approx(sum(edit.losses) / len(edit.losses))
    assert edit.course["spread"][-1] == edit.spread.range


def steps(*losses):
    return tuple(TokenStep(loss, math.exp(-loss), 0.0, 0.0, 0.0, 0.0) for loss in losses)


def test_an_edit_that_has_stopped_keeps_its_last_values_in_the_mean():
    short = Watched(
        None, (TokenCourse(0, 7, steps(2.0, 1.0)), TokenCourse(1, 8, steps(4.0, 1.0))), None
    )
    long = Watched(None, (TokenCourse(0, 7, steps(5.0, 3.0, 0.0)),), None)
    course = mean_course([short.course, long.course])
    assert course["loss"] == [(3 + 5) / 2, (1 + 3) / 2, (1 + 0) / 2]
    assert course["spread"] == [1.0, 0.0, 0.0]
    assert mean_course([Watched(None, (), None).course]) == {}


@pytest.mark.parametrize("method", ["FT", "LoRA"])
def test_the_norm_of_the_change(tokenizer, method):
    """Against the matrices as they are before and after, with the adapters merged by hand."""
    model = tiny_model("llama")
    session = EditSession.of(model, tokenizer)
    common = dict(alg_name=method, model_name="", lr=0.01, num_steps=3)
    if method == "FT":
        hparams, name = FTHparams(**common, layers=[1]), "mlp.down_proj"
    else:
        hparams = LoRAHparams(
            **common, target_modules=["v_proj"], layers=[1], lora_alpha=16, rank=2
        )
        name = "self_attn.v_proj"
    before = model.model.layers[1].get_submodule(name).weight.detach().clone()
    for edit in single_edits(session, some_requests(1), hparams):
        module = model.model.layers[1].get_submodule(name)
        if method == "FT":
            change = module.weight - before
        else:
            change = 8 * module.lora_B["default"].weight @ module.lora_A["default"].weight
        assert edit.change == pytest.approx(
            float((change.norm() / before.norm()).detach()), rel=1e-4
        )
        assert edit.change > 0


def test_only_from_the_untouched_model(tokenizer, hparams):
    model = tiny_model("gpt2")
    session = EditSession.of(model, tokenizer)
    edit_round(session, some_requests(1), hparams)
    with pytest.raises(SessionError, match="1 rounds"):
        next(single_edits(session, some_requests(1), hparams))


def test_the_command_prints_and_plots(yaml_file, tmp_path, capsys):
    plot = tmp_path / "tokens.png"
    arguments = ["overfit", "--hparams", yaml_file, "--data", "atlas:2", "--shown", "1"]
    assert main([*arguments, "--plot", str(plot)]) == 0
    printed = capsys.readouterr().out
    for what in ("NSE: ", "OVERTONE NSE: ", "step 0", "mean over 2 edits", "spread", "entropy",
                 "smoothed", "settled", "lambda", "change"):  # fmt: skip
        assert what in printed
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "--json"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert [side["method"] for side in both] == ["NSE", "OVERTONE NSE"]
    assert both[0]["edits"] == 2 and both[0]["course"]["loss"][-1] > 0


def test_the_other_side_follows_from_the_hparams(yaml_file, tmp_path):
    wrapped = tmp_path / "wrapped.yaml"
    wrapped.write_text(f"alg_name: OVERTONE\nbase: {yaml_file}\nepsilon: 0.3\n")
    both = overfit(yaml_file, data="atlas:2").sides
    turned = overfit(str(wrapped), data="atlas:2").sides
    assert [side.name for side in turned] == [side.name for side in both] == ["NSE", "OVERTONE NSE"]
    assert both[0] == turned[0]  # the base is the same
    assert both[1] != turned[1]  # epsilon is not
    again = overfit(yaml_file, against=str(wrapped), data="atlas:2").sides
    assert again == turned


def test_wrong_ones_are_refused_before_any_work(yaml_file, tmp_path, monkeypatch, capsys):
    other = tmp_path / "other.yaml"
    other.write_text(QUICK.replace("gpt2", "llama"))
    with pytest.raises(HparamsError, match="'atlas:gpt2' and 'atlas:llama'"):
        overfit(yaml_file, against=str(other))
    other.write_text(QUICK + "dtype: bfloat16\n")
    with pytest.raises(HparamsError, match="dtype is None and 'bfloat16'"):
        overfit(yaml_file, against=str(other))
    assert main(["overfit", "--hparams", yaml_file, "--plot", "tokens.jpg"]) == 1
    assert "ends in .png" in capsys.readouterr().err
    monkeypatch.setattr(
        "nse_plugin.runs.overfit.read_data", lambda *_a, **_k: pytest.fail("too late")
    )
    for place in (f"{yaml_file}/tokens.png", "/proc/version/x/tokens.png"):
        assert main(["overfit", "--hparams", yaml_file, "--plot", place]) == 1
        assert "is a file; give another folder for the plot" in capsys.readouterr().err


def test_below_epsilon_nothing_is_learnt(tokenizer, hparams):
    """All tokens are below this epsilon from the start, and no other term pulls on the value."""
    hparams.v_stop_loss = hparams.kl_factor = hparams.v_weight_decay = 0.0
    model = tiny_model("gpt2")
    session = EditSession.of(model, tokenizer)
    clipped = OvertoneHparams.wrap(hparams, epsilon=1000.0)
    for edit in single_edits(session, some_requests(3), clipped):
        assert edit.steps == hparams.v_num_grad_steps
        assert all(len(set(course.losses)) == 1 for course in edit.courses)


def test_control_characters_of_facts_are_spelled_out(yaml_file, tmp_path, capsys):
    records = atlas.edit_set(1)
    records[0]["case_id"] = "\x1b[31mevil"
    records[0]["requested_rewrite"]["target_new"]["str"] = "\x1b[2J"
    (tmp_path / "facts.json").write_text(json.dumps(records))
    given = ["--hparams", yaml_file, "--data", str(tmp_path / "facts.json")]
    assert main(["overfit", *given]) == 0
    both = capsys.readouterr()
    assert "\\x1b[2J" in both.out and "\x1b" not in both.out + both.err
