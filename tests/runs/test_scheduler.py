"""The scheduler: streams, repeats, supersession, stop rules, methods of the host, the command."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nse_plugin import cli
from nse_plugin.errors import (
    DataError,
    HostError,
    HparamsError,
    MissingPackageError,
    NotFiniteError,
    RequestError,
)
from nse_plugin.evaluation import metrics
from nse_plugin.evaluation import protocol as evaluation
from nse_plugin.methods.registry import METHODS
from nse_plugin.requests import EditRequest
from nse_plugin.runs import listeners
from nse_plugin.runs import scheduler as scheduling
from nse_plugin.runs.backends import SessionBackend, backend_of
from nse_plugin.runs.budget import estimate
from nse_plugin.runs.consolidate import can_consolidate
from nse_plugin.runs.edits import EditFolder
from nse_plugin.runs.reading import RunFiles
from nse_plugin.runs.reopen import open_run
from nse_plugin.runs.settings import RunSettings
from nse_plugin.runs.stopping import StopRules
from nse_plugin.runs.undo import undo_round
from nse_plugin.session.session import EditSession
from tests.runs.runs import (
    hparams,
    interrupt,
    protocol,
    requests,
    same_run,
    scheduler,
    session,
    weights,
)
from tests.tiny import same_bits, tiny_model, tiny_tokenizer

DOWN = "transformer.h.1.mlp.c_proj.weight"


def answers_again(request: EditRequest, target: str) -> EditRequest:
    return dataclasses.replace(request, target_new=target)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A scheduler after its run, which is not to be changed."""
    made = scheduler(tmp_path_factory.mktemp("whole"))
    assert made.run().status == "complete"
    return made


def test_a_list_and_an_iterator_make_the_same_rounds(whole, tmp_path):
    made = scheduler(tmp_path, iter(requests()))
    made.run()
    assert same_bits(weights(whole), weights(made)) and same_run(whole.run_dir, tmp_path)
    # an iterator's answers are frozen as they come, of the same untouched model
    first, late = ((folder / "frozen.jsonl").read_text() for folder in (whole.run_dir, tmp_path))
    assert late == first


def test_disk_for_consolidations(tmp_path):
    """In three rounds: none, one of all edits (also where it is that of the last round), or three
    with a third, two thirds and all."""
    plain = hparams(tmp_path)
    disk = {
        (every, below): estimate(
            tiny_model("gpt2"),
            dataclasses.replace(plain, consolidate_every_edits=every, consolidate_below=below),
            round_size=2,
            n_requests=6,
        ).disk
        for every, below in [(0, 0.0), (10, 0.0), (6, 0.0), (10, 0.9)]
    }
    none = disk[0, 0.0]
    assert none < disk[10, 0.0] == disk[6, 0.0]
    assert disk[10, 0.9] - none == 2 * (disk[6, 0.0] - none)


def test_rounds_in_which_nothing_is_written(tmp_path, monkeypatch):
    """Every residual is below alpha: the model is unchanged, so its perplexity is measured once,
    and the run can be resumed."""
    measured = []
    monkeypatch.setattr(evaluation, "perplexity", lambda *_: measured.append(1) or 7.0)
    settings = hparams(tmp_path, alpha=1e9)
    interrupt(scheduler(tmp_path / "a", hparams=settings), after=1)
    rest = scheduler(tmp_path / "a", hparams=settings)
    untouched = {name: tensor.clone() for name, tensor in weights(rest).items()}
    result = rest.run()
    lines = result.files.lines
    assert result.status == "nothing_written" and not any(line["changed"] for line in lines)
    assert [line["edit"]["status"]["residual_left"] for line in lines] == [2, 2, 2]
    assert all(layer["norm"] == 0 for line in lines for layer in line["edit"]["layers"].values())
    assert same_bits(weights(rest), untouched)
    assert len(measured) == 1 and result.final["measurement"]["perplexity"] == 7.0


@pytest.mark.parametrize("changes", [dict(v_lr=1e30), dict(upper_bound=1e-4, alpha=0.0)])
def test_a_run_that_writes_nothing_never_says_complete(tmp_path, changes, caplog):
    """No value leaves its start, or all are out of bounds."""
    result = scheduler(tmp_path, hparams=hparams(tmp_path, **changes)).run()
    assert result.status == "nothing_written"
    assert json.loads((tmp_path / "final.json").read_text())["status"] == "nothing_written"
    assert "no round changed the model" in caplog.text
    again = scheduler(tmp_path, hparams=hparams(tmp_path, **changes))
    assert again.run().final == result.final
    left_out = [line["left_out"] for line in result.files.lines]
    if "upper_bound" in changes:
        assert left_out == [[0, 1], [2, 3], [4, 5]]
        assert "round 2: 2 of 2 requests are out of bounds and were left out (cases 2, 3)" in (
            caplog.text
        )
        assert "upper_bound 0.0001" in caplog.text
    else:
        assert left_out == [[], [], []]


def test_an_iterator_is_resumed(tmp_path, device):
    def run(folder):
        subject = session(device=device.name, dtype=device.dtype)
        return scheduler(tmp_path / folder, iter(requests()), subject=subject)

    whole = run("a")
    whole.run()
    interrupt(run("b"), after=1)
    rest = run("b")
    rest.run()
    assert same_bits(weights(whole), weights(rest)) and same_run(tmp_path / "a", tmp_path / "b")


def test_a_stream_may_go_on_differently_after_a_cut(tmp_path):
    """Frozen but not yet edited when the process ended: that round may be of other requests."""
    scheduler(tmp_path / "a", iter(requests(4))).run()
    frozen = (tmp_path / "a/frozen.jsonl").read_text().splitlines(keepends=True)
    interrupt(scheduler(tmp_path / "b", iter(requests())), after=1)
    (tmp_path / "b/frozen.jsonl").write_text("".join(frozen))
    stream = [*requests(2), *requests(6)[4:]]
    made = scheduler(tmp_path / "b", iter(stream))
    made.run()
    whole = scheduler(tmp_path / "c", iter(stream))
    whole.run()
    assert same_bits(weights(made), weights(whole)) and same_run(tmp_path / "b", tmp_path / "c")


def test_empty_streams(tmp_path):
    with pytest.raises(RequestError, match="list of requests is empty"):
        scheduler(tmp_path / "a", []).run()
    result = scheduler(tmp_path / "b", iter([])).run()
    assert result.status == "nothing_written" and not result.files.lines


def test_answers_are_frozen_before_anything_is_edited(tmp_path):
    seen = []

    def watch(event, facts):
        if event == "phase" and facts["name"] == "edit" and not seen:
            seen.append(len((tmp_path / "frozen.jsonl").read_text().splitlines()))

    scheduler(tmp_path, listeners=[watch]).run()
    assert seen == [3]


def test_no_state_of_the_model_is_asked_twice(tmp_path, monkeypatch):
    """Neither for a round and for all edits, nor of a model that no round has changed."""
    asked: list[int] = []

    def counted(model, tokenizer, some, protocol):
        asked.extend(request.case_id for request in some)
        return metrics.ask(model, tokenizer, some, protocol)

    for asking in (scheduling, evaluation):
        monkeypatch.setattr(asking, "ask", counted)
    scheduler(tmp_path / "a", protocol=protocol(every=2)).run()
    # frozen; rounds 1 and 2 with all edits after it; round 3 with all edits at the end
    assert asked == [*range(6), 0, 1, 2, 3, 0, 1, 4, 5, 0, 1, 2, 3]
    asked.clear()
    result = scheduler(tmp_path / "b", hparams=hparams(tmp_path, alpha=1e9)).run()
    assert asked == [*range(6)] and result.final["measurement"]["all"]["locality"] == 1


def test_rounds_that_another_run_has_asked_are_not_asked_again(whole, tmp_path, monkeypatch):
    lines = [json.loads(line) for line in (whole.run_dir / "frozen.jsonl").open()]
    known = {tuple(line["requests"]): line["answers"] for line in lines[:2]}
    asked = []
    real = scheduling.ask
    monkeypatch.setattr(scheduling, "ask", lambda *a: asked.append(a[2]) or real(*a))
    scheduler(tmp_path, frozen=known).run()
    assert [[r.case_id for r in some] for some in asked] == [[4, 5]]
    assert same_run(whole.run_dir, tmp_path)


@pytest.mark.parametrize("as_list", [True, False])
def test_a_start_that_fails_leaves_the_folder_to_a_corrected_one(tmp_path, as_list):
    long = dataclasses.replace(requests(1)[0], prompt="word " * 60 + "{} is")
    (tmp_path / "empty").mkdir()
    for name in ("new/run", "empty"):
        with pytest.raises(RequestError, match="rewrite of case 0 has .* tokens"):
            scheduler(tmp_path / name, [long] if as_list else iter([long])).run()
    assert [path.name for path in tmp_path.rglob("*") if path.name != "stats"] == ["empty"]
    assert scheduler(tmp_path / "empty", requests(2)).run().status == "complete"
    with pytest.raises(DataError, match="holds another run"):
        scheduler(tmp_path / "empty", [long]).run()


def test_repeats_are_counted_and_superseded_answers_no_longer_expected(tmp_path):
    base = requests(4)
    asked_anew = answers_again(base[1], "doctor")
    stream = [*base, base[0], asked_anew, base[1], base[1]]  # what stood before is no repeat
    result = scheduler(tmp_path, stream, protocol=protocol(every=1)).run()
    lines = result.files.lines
    assert [line["case_ids"] for line in lines] == [[0, 1], [2, 3], [1], [1]]
    assert [line["superseded"] for line in lines] == [0, 0, 1, 1]
    assert [line["repeats"] for line in lines] == [0, 0, 1, 1]
    assert result.final["repeats"] == 2 and result.final["in_effect"] == 4
    asked = [
        {row["edited"]: row["n"] for row in line["measurement"]["retention"]} for line in lines
    ]
    assert asked == [{1: 2}, {1: 2, 2: 2}, {1: 1, 2: 2, 3: 1}, {1: 1, 2: 2, 4: 1}]


def test_samples_bound_what_is_asked(tmp_path):
    result = scheduler(tmp_path, protocol=protocol(every=1, retention=2, generation=1)).run()
    point = result.final["measurement"]
    assert point["all"]["n"] == 2 and point["generation"]["n"] == 1
    assert sum(row["n"] for row in point["retention"]) == 2
    off = protocol(every=0, retention=0, generation=0, fluency=0, weights=False, key_space=0)
    off = dataclasses.replace(off, answers=0)
    point = scheduler(tmp_path / "off", protocol=off, held_out=()).run().final["measurement"]
    assert point == {"tested": 3, "in_effect": 6}


def test_what_is_said_of_the_weights(tmp_path):
    made = scheduler(tmp_path, protocol=protocol(directions=2))
    result = made.run()
    point, model = result.final["measurement"], made.backend.model
    original = session().model.get_parameter(DOWN)
    norm = (model.get_parameter(DOWN) - original).detach().norm() / original.detach().norm()
    assert point["relative_change"][DOWN] == pytest.approx(float(norm), rel=1e-5)
    assert 0 < point["direction_drift"][DOWN] < 1
    assert 0 < point["key_share"]["1"] <= 6 / 24
    keys = made.backend.session.ledger.some_keys([1], limit=99)[1]
    assert torch.equal(made.backend.keys(6)[1], keys)
    assert torch.equal(made.backend.keys(3)[1], keys[:, [0, 2, 5]])
    assert len(RunFiles(tmp_path).ledger) == 3


# --- stop rules ----------------------------------------------------------------------------------


def third_round_collapses(action, **changes):
    """A bound that only a measurement after the second round and later ones can break."""
    return dict(
        protocol=protocol(every=2),
        stop_rules=StopRules(max_perplexity=1e-3, on_collapse=action),
        **changes,
    )


@pytest.mark.parametrize("as_list", [True, False])
def test_undo_keeps_the_state_before(tmp_path, as_list):
    stream = requests() if as_list else iter(requests())
    made = scheduler(tmp_path / "a", stream, **third_round_collapses("undo"))
    result = made.run()
    assert result.status == "collapsed"
    assert result.final["stop"]["rule"] == "max_perplexity" and result.final["rounds"] == 2
    one = scheduler(tmp_path / "b", requests(2))
    measured = one.run().final["measurement"]
    assert same_bits(weights(made), weights(one))
    assert len(RunFiles(tmp_path / "a").ledger) == 1
    assert result.final["measurement"] == measured and measured["tested"] == 1
    stream = requests() if as_list else iter(requests())
    again = scheduler(tmp_path / "a", stream, **third_round_collapses("undo"))
    assert again.run().final == result.final and same_bits(weights(again), weights(one))


@pytest.mark.parametrize(("action", "status", "rounds"), [("stop", "stopped", 2),
                                                          ("continue", "complete", 3)])  # fmt: skip
def test_stop_keeps_the_round_and_continue_writes_the_others(tmp_path, action, status, rounds):
    made = scheduler(tmp_path, **third_round_collapses(action))
    result = made.run()
    assert (result.status, result.final["rounds"]) == (status, rounds)
    assert len(RunFiles(tmp_path).ledger) == rounds
    again = scheduler(tmp_path, **third_round_collapses(action))
    assert again.run().final == result.final and same_bits(weights(again), weights(made))


def test_weights_that_move_too_far_end_a_run_without_a_measurement(whole, tmp_path):
    lines = RunFiles(whole.run_dir).lines
    moved = [max(e["relative_change"] for e in x["edit"]["layers"].values()) for x in lines]
    weights_now = weights(whole)
    now = {
        name: float((weights_now[name] - original).norm() / original.norm())
        for name, original in whole.backend.originals().items()
    }
    assert moved[-1] == pytest.approx(max(now.values()), rel=1e-4)
    rules = StopRules(max_change=(moved[0] + max(moved)) / 2)
    result = scheduler(tmp_path, stop_rules=rules, protocol=protocol(every=0)).run()
    assert result.status == "collapsed" and result.final["stop"]["rule"] == "max_change"
    assert result.final["rounds"] == next(i for i, x in enumerate(moved, 1) if x > rules.max_change)
    assert len(RunFiles(tmp_path).ledger) == result.final["rounds"] - 1


def test_retention_and_relative_perplexity(tmp_path):
    rules = StopRules(min_retention=1.0)
    result = scheduler(tmp_path / "a", stop_rules=rules).run()
    assert result.final["stop"]["rule"] == "min_retention"
    rules = StopRules(max_perplexity_ratio=0.01)
    result = scheduler(tmp_path / "b", stop_rules=rules).run()
    base = json.loads((tmp_path / "b/manifest.json").read_text())["base"]["perplexity"]
    assert result.final["stop"]["bound"] == pytest.approx(base / 100)


@pytest.mark.parametrize(
    ("score", "action", "status", "rounds"),
    [("efficacy", "undo", "collapsed", 3), ("locality", "continue", "complete", 4)],
)
def test_until_collapse_compares_with_the_run_s_first_measurement(
    tmp_path, monkeypatch, score, action, status, rounds
):
    measured = {1: 0.5, 2: 0.41, 3: 0.39, 4: 0.6}  # a share of 0.8 of the first is 0.4

    def scripted(protocol, model, history, number):
        return {
            "tested": number,
            "all": {"efficacy": 0.5, "locality": 0.5, score: measured[number]},
        }

    monkeypatch.setattr(scheduling, "measure_all", scripted)
    rules = StopRules(until_collapse=0.8, on_collapse=action)
    how = dict(round_size=1, protocol=protocol(every=1), stop_rules=rules)
    interrupt(scheduler(tmp_path, requests(4), **how), after=2)
    result = scheduler(tmp_path, requests(4), **how).run()  # the first is read from disk
    assert (result.status, result.final["rounds"]) == (status, rounds)
    said = dict(rule=f"until_collapse.{score}", value=0.39, bound=0.4, action=action)
    assert result.files.lines[2]["stop"] == said
    assert len(RunFiles(tmp_path).ledger) == rounds - (action == "undo")


@pytest.mark.parametrize(("action", "status"), [("undo", "collapsed"), ("stop", "stopped"),
                                                ("continue", "complete")])  # fmt: skip
def test_a_value_that_is_not_finite(tmp_path, monkeypatch, action, status):
    from nse_plugin.methods import spread

    real = spread.compute_values

    def broken(layout, rows, *rest, **named):
        if rows[0].case_id == 2:
            raise NotFiniteError("case 2")
        return real(layout, rows, *rest, **named)

    monkeypatch.setattr(spread, "compute_values", broken)
    rules = StopRules(on_collapse=action)
    made = scheduler(tmp_path, stop_rules=rules)
    result = made.run()
    assert result.status == status
    line = result.files.lines[1]
    assert line["stop"]["rule"] == "non_finite" and line["file"] is None
    assert len(RunFiles(tmp_path).ledger) == (2 if action == "continue" else 1)
    again = scheduler(tmp_path, stop_rules=rules)
    assert again.run().final == result.final and same_bits(weights(again), weights(made))


def test_the_final_scores_are_of_the_last_round_though_it_was_not_measured(
    whole, tmp_path, monkeypatch
):
    sound = RunFiles(whole.run_dir).final
    problems = iter([None, None, "weight"])
    monkeypatch.setattr(SessionBackend, "problem", lambda _: next(problems))
    rules = StopRules(on_collapse="continue")
    result = scheduler(tmp_path, stop_rules=rules).run()
    assert result.files.lines[-1]["scores"] is None
    assert result.final["measurement"]["all"] == sound["measurement"]["all"]
    assert result.final["measurement"]["answers"] == sound["measurement"]["answers"]


def test_no_perplexity_is_past_every_bound():
    rules = StopRules(max_perplexity=5)
    broken = rules.check_scores({"perplexity": None}, {"perplexity": 2.0}, None)
    assert broken == {"rule": "max_perplexity", "value": None, "bound": 5, "action": "undo"}
    assert rules.check_scores({"perplexity": 4.0}, {}, None) is None
    assert StopRules(non_finite=False).check_write("weights", None) is None


@pytest.mark.parametrize(
    ("rule", "bound"),
    [("min_retention", 0.5), ("until_collapse", 0.25), ("max_perplexity", 8.0),
     ("max_perplexity_ratio", 4.0), ("max_change", 0.75)],
)  # fmt: skip
def test_a_score_on_its_bound_is_within_it(rule, bound):
    """With a min_retention of 1 all edits may be in effect."""
    now = {"perplexity": 8.0, "all": {"efficacy": 0.5, "locality": 0.25}}
    base, first = {"perplexity": 2.0}, {"all": {"efficacy": 1.0, "locality": 1.0}}

    def broken(bound):
        rules = StopRules(**{rule: bound})
        return rules.check_write(None, 0.75) or rules.check_scores(now, base, first)

    assert broken(bound) is None
    past = bound + (-1e-6 if rule.startswith("max") else 1e-6)
    assert broken(past)["rule"].startswith(rule)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(on_collapse="unde"), "did you mean 'undo'"),
        (dict(max_perplexity=0), "max_perplexity is 0"),
        (dict(min_retention=2), "min_retention is 2"),
        (dict(until_collapse=80), "until_collapse is 80"),
    ],
)
def test_bad_rules(values, message):
    with pytest.raises(HparamsError, match=message):
        StopRules(**values)


def test_a_rule_without_its_measurement_is_an_error(tmp_path):
    with pytest.raises(HparamsError, match="bounds perplexity, which is not measured"):
        scheduler(tmp_path, held_out=(), stop_rules=StopRules(max_perplexity=9))
    rules = StopRules(until_collapse=0.8)
    for name, size in (("retention",) * 2, ("locality",) * 2, ("retention", "every")):
        with pytest.raises(HparamsError, match=f"bounds {name}, which is not measured"):
            scheduler(tmp_path, stop_rules=rules, protocol=protocol(**{size: 0}))


# --- methods of the host -------------------------------------------------------------------------


def stub_apply(model, tok, records, hparams, copy, return_orig_weights, keep_original_weight):
    """A method of the host: random, and different with each request."""
    weight = model.get_parameter(hparams.name)
    before = {hparams.name: weight.detach().clone()}
    for record in records:
        assert record["prompt"] and record["target_new"]
        weight.data.add_(torch.randn(weight.shape) * hparams.size)
    return model, before


def editor(apply=stub_apply, **settings):
    values = {"alg_name": "STUB", "name": DOWN, "size": 0.01, "layers": [1], **settings}
    model = tiny_model("gpt2", n_embd=16, n_inner=24, n_layer=2, n_head=2)
    return SimpleNamespace(
        model=model, tok=tiny_tokenizer(), apply_algo=apply, hparams=SimpleNamespace(**values)
    )


def test_a_host_method_is_scheduled_kept_and_resumed(tmp_path):
    whole = scheduler(tmp_path / "a", subject=editor(), hparams=None)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    result = whole.run()
    assert torch.equal(state, torch.get_rng_state())
    assert result.status == "complete" and list(result.files.retention_matrix()) == [2, 3]
    assert result.final["measurement"]["relative_change"][DOWN] > 0
    with pytest.raises(DataError, match="host's method 'STUB'.* whole matrices .* undone alone"):
        undo_round(tmp_path / "a", 2)
    for part in (1, 2):
        place = tmp_path / f"b{part}"
        interrupt(scheduler(place, subject=editor(), hparams=None), after=part)
        rest = scheduler(place, subject=editor(), hparams=None)
        rest.run()
        assert same_bits(weights(rest), weights(whole)) and same_run(place, tmp_path / "a")


def test_a_host_method_of_a_name_of_ours_is_not_opened_as_ours(tmp_path):
    """It has no ledger, so the model would be the untouched one."""
    scheduler(tmp_path / "run", subject=editor(alg_name="ROME"), hparams=None).run()
    for use, what in ((open_run, "be opened"), (EditFolder, "be added to")):
        with pytest.raises(DataError, match=f"host's method 'ROME'.* can {what}"):
            use(tmp_path / "run")
    assert not can_consolidate(RunFiles(tmp_path / "run"))


def test_a_host_round_is_undone(tmp_path):
    made = scheduler(
        tmp_path, iter(requests()), subject=editor(size=float("nan")), hparams=None,
    )  # fmt: skip
    assert made.run().status == "collapsed"
    assert same_bits(weights(made), editor().model)
    rules = third_round_collapses("undo")
    made = scheduler(tmp_path / "b", subject=editor(), hparams=None, **rules)
    assert made.run().status == "collapsed"
    one = scheduler(tmp_path / "c", requests(2), subject=editor(), hparams=None)
    one.run()
    assert same_bits(weights(made), weights(one))


def test_host_methods_that_cannot_be_kept(tmp_path):
    def other(model, *rest, **kw):
        return torch.nn.Linear(1, 1), {}

    def silent(model, *rest, **kw):
        model.get_parameter(DOWN).data = model.get_parameter(DOWN).data + 1
        return model, {"transformer.wte.weight": model.get_parameter("transformer.wte.weight")}

    def unnamed(model, *rest, **kw):
        return model, {"no.such": torch.zeros(1)}

    for number, (apply, message) in enumerate(
        [(other, "another model object"), (silent, f"changed {DOWN}"), (unnamed, "'no.such'")]
    ):
        with pytest.raises(HostError, match=message):
            scheduler(tmp_path / str(number), subject=editor(apply), hparams=None).run()
    with pytest.raises(HostError, match="has no model, tok, apply_algo"):
        backend_of(SimpleNamespace(), hparams(tmp_path))


def test_an_editor_with_our_method_uses_its_session(tmp_path):
    ours = editor()
    ours.hparams = hparams(tmp_path)
    made = scheduler(tmp_path, subject=ours, hparams=None)
    made.run()
    assert len(EditSession.of(ours.model).ledger) == 3


# --- listeners and the command -------------------------------------------------------------------


def test_listeners_hear_of_every_round(tmp_path, monkeypatch, capsys):
    shown, written = [], {}
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackageError, match="pip install wandb"):
        listeners.WandB("p", "n")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingPackageError, match="pip install tensorboard"):
        listeners.TensorBoard(tmp_path)
    stub = types.ModuleType("torch.utils.tensorboard")

    class SummaryWriter:
        def __init__(self, folder):
            written["folder"] = folder

        def add_scalar(self, name, value, step):
            written[name, step] = value

        def close(self):
            written["closed"] = True

    stub.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub)
    run = types.SimpleNamespace(
        log=lambda values, step: written.update({("wandb", step): values}), finish=lambda: None
    )
    wandb = types.ModuleType("wandb")
    wandb.init = lambda **_: run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    told = [
        listeners.Lines(shown.append), listeners.TensorBoard(tmp_path / "tb"), listeners.Bars(),
        listeners.WandB("p", "n"),
    ]  # fmt: skip
    lines = scheduler(tmp_path / "run", listeners=told).run().files.lines
    assert len(shown) == 4 and shown[1].startswith("round 2: 2 edits, efficacy ")
    assert shown[3].startswith("time: ") and "edit " in shown[3]
    assert "perplexity" in shown[1] and "perplexity" not in shown[0]
    assert written["scores/locality", 2] == lines[1]["scores"]["locality"]
    assert written["measurement/all/efficacy", 2] == lines[1]["measurement"]["all"]["efficacy"]
    assert written["closed"] and ("wandb", 3) in written
    assert "locality=" in capsys.readouterr().err


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A YAML of the whole run, on the embedded GPT-2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "h.yaml").write_text(
        "alg_name: NSE\nmodel_name: atlas:gpt2\nlayers: [1, 2]\nmom2_adjustment: false\n"
        "v_num_grad_steps: 4\nn_contexts: 1\n"
    )
    (tmp_path / "run.yaml").write_text(
        "hparams: h.yaml\ndata: atlas:6\nround_size: 3\nout: r\n"
        "protocol: {every: 1, generation: 2, fluency: 0, perplexity: 5}\n"
        "stop:\n  on_collapse: stop\n"
    )
    return tmp_path


def test_the_command_runs_a_yaml_and_resumes(small, capsys):
    assert cli.main(["run", "--config", "run.yaml", "--order", "grouped"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("round ") == 2 and "complete: 6 edits in 2 rounds" in shown
    manifest = json.loads(Path("r/manifest.json").read_text())
    assert manifest["run"]["protocol"]["every"] == 1 and manifest["run"]["order"] == "grouped"
    assert cli.main(["run", "--config", "run.yaml", "--order", "grouped"]) == 0
    assert "nothing was left to do: 2 rounds done before" in capsys.readouterr().out
    assert cli.main(["run", "--config", "run.yaml", "--order", "grouped", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    final = json.loads(Path("r/final.json").read_text())
    assert found == {"out": "r", "status": "complete", **final}
    assert cli.main(["run", "--config", "run.yaml"]) == 1
    assert "order was 'grouped', is 'given'" in capsys.readouterr().err
    arguments = ["--out", "s", "--max-perplexity", "1", "--data", "atlas", "--limit", "4"]
    assert cli.main(["run", "--config", "run.yaml", *arguments]) == 3
    assert "stopped: 3 edits in 1 round;" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "atlas"], "hparams is missing; give --hparams"),
        (["--hparams", "NSE/atlas-gpt2", "--data", "gone.json"], "there is no file 'gone.json'"),
        (["--hparams", "NSE/atlas-gpt2", "--data", "atlas:x"], "data is 'atlas:x'"),
        (["--hparams", "NSE/nothing", "--data", "atlas"], "no hparams file 'NSE/nothing'"),
        (["--config", "gone.yaml"], "there is no file 'gone.yaml'"),
        (["--config", "bad.yaml"], "unknown key 'roundsize'; did you mean 'round_size'"),
        (["--config", "run.yaml", "--round-size", "0"], "round_size is 0"),
        (["--config", "run.yaml", "--limit", "0"], "limit is 0"),
        (["--config", "run.yaml", "--held-out", "gone"], "held-out text 'gone'"),
        (["--config", "run.yaml", "--data", "atlas:999999"], "999999 asks for more than the"),
    ],
)
def test_bad_arguments_of_the_command(small, arguments, message, capsys):
    Path("bad.yaml").write_text("roundsize: 2\n")
    assert cli.main(["run", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused_before_the_model_is_loaded(
    small, monkeypatch, capsys
):
    monkeypatch.setattr("nse_plugin.runs.start.load_model", None)
    (small / "r").mkdir()
    (small / "r" / "thesis.tex").write_text("x")
    assert cli.main(["run", "--config", "run.yaml"]) == 1
    assert "r holds something else (thesis.tex)" in capsys.readouterr().err


def test_options_go_before_the_file(small):
    settings = RunSettings.read("run.yaml", {"out": "x", "protocol": {"every": 7}, "seed": None})
    assert (settings.out, settings.round_size, settings.seed) == ("x", 3, 0)
    assert settings.protocol["every"] == 7 and settings.protocol["generation"] == 2


@pytest.mark.parametrize("name", ["FT", "LoRA", "GRACE", "UltraEdit"])
def test_the_bounds_hold_for_methods_that_train(name, tmp_path):
    settings = {
        "FT": dict(layers=[0, 1], num_steps=2),
        "UltraEdit": dict(layers=[0, 1], lr=1e-2),
        "LoRA": dict(target_modules=["c_attn", "c_proj"], num_steps=2),
        "GRACE": dict(inner_params=["transformer.h[1].mlp.c_fc.weight"], n_iter=2),
    }[name]
    trained = METHODS[name].hparams(alg_name=name, model_name="tiny", **settings)
    made = scheduler(tmp_path, hparams=trained)
    made.run()
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("round-*"))]
    budget = json.loads((tmp_path / "manifest.json").read_text())["budget"]
    assert len(sizes) == budget["rounds"] == 3
    assert 0.05 * budget["disk_per_round"] < sizes[-1] <= budget["disk_per_round"]
    assert sum(sizes) <= budget["disk"]
