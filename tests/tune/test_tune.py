"""nse tune: on random models it ends with nothing; on a stand-in whose scores are known it ends
with the best settings, within its time, and takes up what an earlier call has tried."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest
import torch
import yaml

from nse_plugin.data.defaults import LOCATE
from nse_plugin.errors import DataError, HparamsError, NotFiniteError, SessionError
from nse_plugin.hparams import NSEHparams
from nse_plugin.methods import bases
from nse_plugin.methods.registry import load_hparams
from nse_plugin.requests import EditRequest
from nse_plugin.session.session import EditSession
from nse_plugin.tune import start as starting
from nse_plugin.tune.result import write_yaml
from nse_plugin.tune.search import tune
from nse_plugin.tune.settings import TuneSettings
from nse_plugin.tune.stages import first_settings, stages
from nse_plugin.tune.trials import Trial, Trials
from tests.tiny import TEXTS, bits, same_bits, tiny_model


def facts(n: int) -> list[EditRequest]:
    return [EditRequest(i, "{} lives in", f"Mara {i}", "Quill by the sea") for i in range(n)]


@pytest.fixture
def scored(monkeypatch):
    """Trials that edit nothing and score by a rule; gives the list of those made."""
    made = []

    def edited(self, settings, facts):
        made.append((settings, len(facts)))
        off = abs(settings["layers"][-1] - 2) + abs(settings.get("clamp_norm_factor", 0.75) - 0.5)
        off += settings["mom2_update_weight_relative"] != 0.2
        value = 1 / (1 + off)
        return {"scores": {"efficacy": value, "paraphrase": value, "locality": value}}

    monkeypatch.setattr(Trials, "_edited", edited)
    monkeypatch.setattr(Trials, "_compute_statistics", lambda *_: None)
    return made


def test_the_command_in_a_yaml_can_be_pasted():
    settings = TuneSettings(model="my models/x", data="two words.json", known=False, limit=50)
    words = shlex.split(starting._command(settings, "NSE"))
    assert words[:4] == ["nse", "tune", "--model", "my models/x"]
    assert "two words.json" in words and words[-3:] == ["--limit", "50", "--no-known"]


def test_the_best_of_all_stages_is_found_and_taken_up_again(tokenizer, scored, tmp_path):
    model, path = tiny_model("llama"), tmp_path / "my.trials.jsonl"
    tuned = tune(model, tokenizer, facts(80), edits=60, model_name="x", trials=path)
    assert tuned.found and tuned.best.edits == 60
    assert tuned.settings["layers"][-1] == 2
    assert tuned.settings["clamp_norm_factor"] == pytest.approx(0.5, abs=0.01)
    assert tuned.settings["mom2_update_weight_relative"] == 0.2
    assert {n for _, n in scored} == {20, 60}
    few = {i for t in tuned.trials if t.edits == 20 for i in t.case_ids}
    assert few.isdisjoint(tuned.best.case_ids)
    tried = len(scored)
    again = tune(model, tokenizer, facts(80), edits=60, model_name="x", trials=path)
    assert (again.settings, len(scored)) == (tuned.settings, tried)

    others = [replace(fact, target_new="Garn") for fact in facts(80)]
    tune(model, tokenizer, others, edits=60, model_name="x", trials=path)
    assert len(scored) == 2 * tried, "trials on other facts with the same numbers do not count"
    tune(tiny_model("llama", seed=1), tokenizer, facts(80), edits=60, model_name="x", trials=path)
    assert len(scored) == 3 * tried, "nor do those of another model"

    write_yaml(tmp_path / "my.yaml", tuned, ["NSE on x"])
    assert load_hparams(tmp_path / "my.yaml") == NSEHparams(**tuned.settings)
    text = (tmp_path / "my.yaml").read_text(encoding="utf-8")
    assert all(len(line) < 120 for line in text.splitlines() if not line.startswith("#"))
    assert "# NSE on x" in text and "Bound of ||delta||" in text and "lambda *" in text


def test_a_stream_of_one_round_is_enough(tokenizer, scored):
    assert tune(tiny_model("llama"), tokenizer, facts(40), edits=20, model_name="x").found


def test_a_model_with_edits_is_refused_and_keeps_them(tokenizer, hparams):
    model = tiny_model("llama")
    session = EditSession.of(model, tokenizer)
    bases.BASES["NSE"].edit_round(session, facts(2), hparams)
    edited = bits(model)
    with pytest.raises(SessionError, match="has 1 rounds, and each trial"):
        tune(model, tokenizer, facts(40), model_name="x")
    assert same_bits(model, edited) and len(session.ledger) == 1


def test_the_settings_of_another_model_are_not_overwritten(tmp_path):
    path = tmp_path / "tuned.yaml"
    path.write_text("alg_name: NSE\nmodel_name: other\nlayers: [1]\n", encoding="utf-8")
    with pytest.raises(DataError, match="settings of NSE for other"):
        starting._refuse_others(path, "NSE", "mine")
    starting._refuse_others(path, "NSE", "other")


def test_a_method_without_a_search_is_refused_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setattr(starting, "load_model", lambda _asked: pytest.fail("too late"))
    with pytest.raises(HparamsError, match="method 'nsr' cannot be tuned; did you mean 'NSE'"):
        starting.run(TuneSettings(model="tiny", method="FT,nsr", out="x"), print)
    with pytest.raises(HparamsError, match="method is ','; give at least one"):
        TuneSettings(model="tiny", method=",")


def test_no_trial_begins_that_would_end_too_late(tokenizer, scored):
    tuned = tune(tiny_model("llama"), tokenizer, facts(80), minutes=1e-6, model_name="x")
    assert [t.stage for t in tuned.trials] == ["first", "stream"]  # what is needed, no more


@pytest.mark.parametrize(
    ("family", "known"),
    [("gpt2", True), ("llama", True), ("gptj", False), ("gemma3_text", False)],
)
def test_a_random_model_ends_without_a_yaml(tokenizer, family, known, tmp_path, monkeypatch):
    """It knows no fact, and where it need not, nothing that is tried in the time edits it."""
    records = [
        dict(case_id=fact.case_id, prompt=fact.prompt, subject=fact.subject,
             target_new=fact.target_new, ground_truth="Ostrell")
        for fact in facts(60)
    ]  # fmt: skip
    (tmp_path / "facts.json").write_text(json.dumps(records), encoding="utf-8")
    model = tiny_model(family)
    monkeypatch.setattr(starting, "load_model", lambda _asked: (model, tokenizer, "tiny"))
    out, shown = tmp_path / "my.yaml", []
    settings = TuneSettings(model="tiny", minutes=0.001, out=str(out), known=known, source="self",
                            data=str(tmp_path / "facts.json"), stats_dir=str(tmp_path))  # fmt: skip
    found = [search.to_dict()["yaml"] for search in starting.run(settings, shown.append)]
    assert found == ([] if known else [None])
    assert ("o YAML was written" in shown[-1]) and not out.exists()
    assert (tmp_path / "my.trials.jsonl").exists() is not known


@pytest.mark.parametrize("method", sorted(bases.BASES))
def test_every_method_has_a_start_that_it_takes(tokenizer, method, tmp_path):
    model = tiny_model("llama")
    session = EditSession.of(model, tokenizer)
    given = dict(mom2_dataset="self", mom2_n_samples=40, n_contexts=0, v_num_grad_steps=2)
    given = given | {"stats_dir": str(tmp_path)} if method in LOCATE else {}
    settings = first_settings(session, method, "tiny", given)
    settings |= {"FT": {"num_steps": 1}, "LoRA": {"num_steps": 1}, "GRACE": {"n_iter": 1}}.get(
        method, {}
    )
    hparams = bases.BASES[method].hparams.from_dict(settings)
    bases.BASES[method].edit_round(session, facts(2), hparams)
    assert session.ledger.edits() == 2


def test_the_eigenvalues_of_a_covariance_are_computed_once(tokenizer, tmp_path, monkeypatch):
    model = tiny_model("llama")
    session = EditSession.of(model, tokenizer)
    given = dict(mom2_dataset=str(TEXTS), mom2_n_samples=40, stats_dir=str(tmp_path))
    found, real = [], torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda C: found.append(C) or real(C))
    settings = first_settings(session, "AlphaEdit", "tiny", given)
    (stage,) = (stage for stage in stages("AlphaEdit") if stage.name == "null space")
    thresholds = [changes["nullspace_threshold"] for changes in stage.options(session, settings)]
    assert thresholds[1] == settings["nullspace_threshold"] and len(found) == 1
    quantiles = real(found[0]).quantile(torch.tensor([0.8, 0.6, 0.4], dtype=torch.float64))
    assert thresholds == [float(f"{value:.2g}") for value in quantiles.tolist()]


def quick(session, folder):
    """Settings that edit a tiny model in little time."""
    given = dict(mom2_dataset=str(TEXTS), mom2_n_samples=40, n_contexts=0, stats_dir=str(folder))
    return first_settings(session, "NSE", "tiny", {**given, "v_num_grad_steps": 4})


def test_each_trial_begins_with_the_untouched_model(tokenizer, tmp_path):
    model = tiny_model("llama")
    original, session = bits(model), EditSession.of(model, tokenizer)
    settings, other = quick(session, tmp_path), {"clamp_norm_factor": 3.0}
    trials = Trials(session, None, lambda _trial: None)
    made = [
        trials.run("first", settings, facts(2)),
        trials.run("second", settings, facts(2), other),
    ]
    for trial in made:
        assert trial.error is None and 0 < trial.left < 1  # a share of what was to be written
    assert same_bits(model, original) and len(session.ledger) == 0
    fresh = tiny_model("llama")
    alone = Trials(EditSession.of(fresh, tokenizer), None, lambda _trial: None)
    again = alone.run("second", settings, facts(2), other)
    assert replace(again, seconds=0) == replace(made[1], seconds=0)
    assert (made[0].scores, made[0].left) != (made[1].scores, made[1].left)


@pytest.mark.parametrize(
    ("error", "told_as"),
    [
        (NotFiniteError("all is lost"), "all is lost"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory on the device"),
    ],
)
def test_a_trial_that_fails_scores_nothing_and_leaves_nothing(
    tokenizer, monkeypatch, tmp_path, error, told_as
):
    model = tiny_model("gpt2")
    original, session = bits(model), EditSession.of(model, tokenizer)
    real = bases.BASES["NSE"].edit_round

    def broken(*arguments, **options):
        real(*arguments, **options)
        assert not same_bits(model, original)
        raise error

    monkeypatch.setitem(bases.BASES, "NSE", replace(bases.BASES["NSE"], edit_round=broken))
    told: list[Trial] = []
    trials = Trials(session, None, told.append)
    trial = trials.run("first", quick(session, tmp_path), facts(2))
    assert told == [trial] and trial.score == 0 and trial.error == told_as
    assert same_bits(model, original) and len(session.ledger) == 0


def test_settings_without_a_paraphrase_are_compared():
    """As GRACE's are."""
    scores = [(1.0, 0.0, 1.0), (0.9, 0.0, 1.0), (0.9, 0.0, 0.7), (0.0, 0.0, 1.0)]
    found = [
        Trial("radius", {}, {}, [], "", dict(zip(("efficacy", "paraphrase", "locality"), each)))
        for each in scores
    ]
    assert found == sorted(found, key=lambda trial: -trial.score)
    assert found[0].score == pytest.approx(3 / (1 + 100 + 1))
    assert len({trial.score for trial in found}) == 4


def test_one_file_does_not_hold_two_methods():
    with pytest.raises(HparamsError, match="one YAML, and method names 2 methods"):
        TuneSettings(model="x", method="NSE,MEMIT", out="my.yaml")
    assert yaml.safe_load("a: 1") and TuneSettings(model="x", method="NSE, MEMIT", out="d").methods
