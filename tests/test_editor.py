"""The embedded editor: EasyEdit's arguments and schema, no side effects."""

from __future__ import annotations

import copy as copying
import json
import logging
import random
from types import SimpleNamespace

import pytest
import torch

from nse_plugin import editor as embedded
from nse_plugin import host as hosting
from nse_plugin.editor import BaseEditor
from nse_plugin.errors import HparamsError, ModelError, RequestError
from nse_plugin.evaluation.edit_quality import compute_edit_quality
from nse_plugin.requests import EditRequest
from nse_plugin.session.records import RoundRecord, Write
from nse_plugin.session.session import EditSession
from tests.tiny import fresh_tokenizer, wide_model

PROMPTS = ["Alice lives in", "Bob works in", "The capital of France is"]
SUBJECTS = ["Alice", "Bob", "France"]
TARGETS = ["Rome", "Oslo", "the sea"]
LOCALITY = {
    "near": {"prompt": ["Carol lives in", None, ["Oslo is", "Where"]],
             "ground_truth": ["Paris", None, ["a", "b"]]},
}  # fmt: skip
PORTABILITY = {"hop": {"prompt": ["a", "b", "c"], "ground_truth": ["d", "e", "f"]}}
ALL = {
    "prompts": PROMPTS, "target_new": TARGETS, "ground_truth": ["Paris", "Rome", "Paris"],
    "rephrase_prompts": ["Where does Alice live?", "Bob has a job in", "France has the capital"],
    "locality_inputs": LOCALITY, "portability_inputs": PORTABILITY, "subject": SUBJECTS,
}  # fmt: skip


class FakeMethod:
    """Adds noise to one matrix, different at each call, and records the requests of each call."""

    def __init__(self, weight_name, scale=0.5):
        self.weight_name, self.scale, self.calls = weight_name, scale, []

    def __call__(self, model, tok, requests, hparams, copy=False, return_orig_weights=True,
                 keep_original_weight=False, train_ds=None, **kw):  # fmt: skip
        if copy:
            model = copying.deepcopy(model)
        session = EditSession.of(model, tok or fresh_tokenizer())
        original = model.get_parameter(self.weight_name).detach().clone()
        generator = torch.Generator().manual_seed(len(self.calls))
        noise = self.scale * torch.randn(original.shape, generator=generator)
        d_ff = session.layout.d_ff
        change = noise.T.contiguous()  # [d_model, d_ff]
        write = Write(1, 1, torch.arange(d_ff), None, change, (), None)
        with session.round([1]):
            session.write(write)
            number, keys = session.ledger.next_number(), {1: torch.zeros(d_ff, 1)}
            session.commit(RoundRecord(number, "NSE", (), (write,), keys, d_ff=d_ff))
        self.calls.append(list(requests))
        return model, {self.weight_name: original}


@pytest.fixture
def editor(monkeypatch):
    method = FakeMethod("transformer.h.1.mlp.c_proj.weight")
    monkeypatch.setattr(embedded, "apply_function", lambda name: method)
    model = wide_model("gpt2")
    hparams = SimpleNamespace(
        alg_name="NSE", model_name=(model, fresh_tokenizer("left")), device="cpu",
        model_parallel=False, max_length=40, batch_size=1,
    )  # fmt: skip
    return BaseEditor.from_hparams(hparams)


def weight_of(editor, model=None):
    parameter = (model or editor.model).get_parameter(editor.apply_algo.weight_name)
    return parameter.detach().clone()


def measured(editor, model, record):
    return compute_edit_quality(model, "", editor.hparams, editor.tok, record, "cpu")


# --- metrics and restoring ----------------------------------------------------------------------


def test_each_post_is_measured_on_its_own_edit(editor):
    twin = copying.deepcopy(editor.model)
    metrics, *_ = editor.edit(**ALL)
    again = FakeMethod(editor.apply_algo.weight_name)
    for metric in metrics:
        record = metric["requested_rewrite"]
        assert metric["pre"] == measured(editor, twin, record)
        _, originals = again(twin, None, [record], None)
        post = measured(editor, twin, record)
        assert metric["post"]["rewrite_acc"] == post["rewrite_acc"]
        for kind, outputs in post["locality"].items():
            assert metric["post"]["locality"][kind] == outputs
        twin.get_parameter(again.weight_name).data.copy_(originals[again.weight_name])


def test_sequential_edits_stay_and_pre_is_the_model_before_the_first(editor):
    twin = copying.deepcopy(editor.model)
    before = weight_of(editor)
    metrics, _, originals = editor.edit(**ALL, sequential_edit=True)
    again = FakeMethod(editor.apply_algo.weight_name)
    pres = [measured(editor, twin, metric["requested_rewrite"]) for metric in metrics]
    for metric, pre in zip(metrics, pres):
        _, last = again(twin, None, [metric["requested_rewrite"]], None)
        assert metric["pre"] == pre
        post = measured(editor, twin, metric["requested_rewrite"])
        assert metric["post"]["locality"].get("near_output") == post["locality"].get("near_output")
    assert torch.equal(weight_of(editor), weight_of(editor, twin))
    assert not torch.equal(weight_of(editor), before)
    assert torch.equal(originals[again.weight_name], last[again.weight_name])


def test_batch_edit_counts_on_and_measures_pre_first(editor):
    editor.hparams.batch_size = 2
    twin = copying.deepcopy(editor.model)
    metrics, model, _ = editor.batch_edit(**ALL, sequential_edit=True)
    assert [metric["case_id"] for metric in metrics] == [0, 1, 2]
    assert [len(call) for call in editor.apply_algo.calls] == [2, 1]
    assert [r.case_id for call in editor.apply_algo.calls for r in call] == [0, 1, 2]
    assert metrics[0]["time"] == metrics[1]["time"] >= 0
    assert all(m["pre"] == measured(editor, twin, m["requested_rewrite"]) for m in metrics)
    last = measured(editor, model, metrics[2]["requested_rewrite"])
    assert metrics[2]["post"]["locality"]["near_output"] == last["locality"]["near_output"]


@pytest.mark.parametrize("sequential", [False, True])
def test_copy_leaves_the_editors_model_alone(editor, sequential):
    before = weight_of(editor)
    _, model, _ = editor.edit(**ALL, copy=True, sequential_edit=sequential)
    assert torch.equal(weight_of(editor), before) and model is not editor.model
    changes = weight_of(editor, model) - before
    steps = [
        0.5 * torch.randn(before.shape, generator=torch.Generator().manual_seed(n))
        for n in range(3)
    ]
    assert torch.allclose(changes, sum(steps) if sequential else steps[-1], atol=1e-4)


def test_normal_edit_writes_all_at_once(editor):
    before = weight_of(editor)
    metrics, *_ = editor.normal_edit(PROMPTS, TARGETS, subject=SUBJECTS)
    assert metrics is None and torch.equal(weight_of(editor), before)
    assert len(editor.apply_algo.calls) == 1 and len(editor.apply_algo.calls[0]) == 3
    editor.normal_edit(PROMPTS, TARGETS, sequential_edit=True, subject=SUBJECTS)
    assert not torch.equal(weight_of(editor), before)


def test_weights_are_restored_when_measuring_fails(editor, monkeypatch):
    before = weight_of(editor)
    calls = []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return [{"locality": {}, "portability": {}}]

    monkeypatch.setattr(embedded, "compute_many", failing)
    with pytest.raises(RuntimeError):
        editor.edit(PROMPTS[0], TARGETS[0], subject=SUBJECTS[0])
    assert torch.equal(weight_of(editor), before)


# --- input --------------------------------------------------------------------------------------


def test_single_texts_do_as_lists(editor):
    metrics, *_ = editor.edit(
        "Alice lives in", "Rome", "Paris", subject="Alice", rephrase_prompts="Where is Alice?",
        locality_inputs={"near": {"prompt": "Oslo is", "ground_truth": "a"}},
        loc_prompts="nothing", keep_original_weight=True, train_ds=None,
    )  # fmt: skip
    assert metrics[0]["requested_rewrite"]["loc_prompt"] == "nothing"
    assert len(metrics) == 1 and metrics[0]["post"]["locality"]["near_acc"]


def test_templates_and_requests_reach_the_method_as_they_are(editor):
    editor.edit("{} lives in", "Rome", subject="Alice")
    request = EditRequest("x/1", "{} and {}".replace("{}", "Alice", 1), "Alice", "Rome")
    metrics, *_ = editor.edit_requests([request, {"prompt": "Bob is", "subject": "Bob",
                                                  "target_new": "Rome"}])  # fmt: skip
    calls = [call[0] for call in editor.apply_algo.calls]
    assert [call.prompt for call in calls] == ["{} lives in", request.prompt, "{} is"]
    assert calls[1] is request
    assert [call.case_id for call in calls] == [0, "x/1", 1]
    assert [metric["case_id"] for metric in metrics] == [0, 1]
    by_name, *_ = editor.edit(requests=[request])
    assert by_name[0]["requested_rewrite"] == metrics[0]["requested_rewrite"]


def test_what_a_request_may_hold_is_also_measured(editor):
    """The fields and values that EditRequest reads, in records that are not EasyEdit's."""
    asked = {"prompt": "Alice was born in", "subject": "Alice", "target_new": 1984}
    asked |= {"rephrase_prompts": ["Alice, born in", "Born in"], "rephrase_prompt": float("nan")}
    asked["locality"] = {"near": [{"prompt": "Bob is", "ground_truth": [["a", "b"]]}], "no": None}
    (metric,), *_ = editor.edit_requests([asked])
    assert metric["requested_rewrite"]["target_new"] == "1984"
    assert len(metric["post"]["rephrase_acc"]) == 2
    assert list(metric["pre"]["locality"]) == ["near_output"]


def test_the_callers_lists_are_not_changed(editor):
    inputs = copying.deepcopy(ALL)
    editor.edit(**inputs)
    assert inputs == ALL
    single = {"near": {"prompt": "Oslo is", "ground_truth": "a"}}
    editor.edit("Alice is", "Rome", subject="Alice", locality_inputs=single)
    assert single == {"near": {"prompt": "Oslo is", "ground_truth": "a"}}


BAD = [
    ({"prompts": []}, "3 target_new for 0 prompts"),
    ({"prompts": [], "target_new": [], "subject": []}, "empty"),
    ({"target_new": TARGETS[:2]}, "2 target_new for 3 prompts"),
    ({"subject": SUBJECTS[:1]}, "1 subject for 3 prompts"),
    ({"subject": "Alice"}, "1 subject for 3 prompts"),
    ({"subject": None}, "'subject' is missing"),
    ({"subject": ["Alice", "Bobby", "France"]}, "subject 'Bobby' is not in prompt"),
    ({"target_new": ["Rome", "", "x"]}, "target_new is ''"),
    ({"ground_truth": ["Paris"]}, "1 ground_truth for 3 prompts"),
    ({"rephrase_prompts": ["a", "b"]}, "2 rephrase_prompts for 3 prompts"),
    ({"locality_inputs": {"n": {"prompt": ["a"], "ground_truth": ["b"]}}}, "1 locality_inputs"),
    ({"locality_inputs": {"n": {"prompt": ["a"] * 3}}}, r"locality_inputs\['n'\] is"),
    ({"sequentail_edit": True}, "unknown argument 'sequentail_edit'"),
    ({"pre_edit": [{}]}, "pre_edit has 1 entries for 3 requests"),
    ({"prompts": ["Alice " * 200, *PROMPTS[1:]]}, "context"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
@pytest.mark.parametrize("call", ["edit", "batch_edit"])
def test_bad_input_is_named_before_anything_is_changed(editor, call, change, message):
    before = weight_of(editor)
    inputs = {**ALL, "ground_truth": None, "rephrase_prompts": None, **change}
    if "prompts" in change and len(change["prompts"]) != 3:
        inputs = {**inputs, "locality_inputs": None, "portability_inputs": None}
    with pytest.raises(RequestError, match=message):
        getattr(editor, call)(**inputs)
    assert torch.equal(weight_of(editor), before) and not editor.apply_algo.calls


def test_a_chunk_against_itself_is_refused_before_the_first_chunk(editor):
    editor.hparams.batch_size = 2
    prompts, subjects = (
        ["Bob is", "Alice is", "Anna is", "Anna is"],
        ["Bob", "Alice", "Anna", "Anna"],
    )
    with pytest.raises(RequestError, match="two targets"):
        editor.batch_edit(prompts, ["a", "b", "c", "d"], subject=subjects)
    assert not editor.apply_algo.calls


def test_batch_size_is_checked(editor):
    editor.hparams.batch_size = 10
    with pytest.raises(HparamsError, match=r"batch_size is 10.*batch_edit"):
        editor.edit(**ALL)
    with pytest.raises(HparamsError, match="batch_size is 10"):
        editor.edit_requests([])
    del editor.hparams.batch_size
    with pytest.raises(HparamsError, match="needs batch_size"):
        editor.batch_edit(**ALL)
    assert len(editor.edit(**ALL)[0]) == 3


def test_eval_metric_and_generation_are_passed_on(editor):
    metrics, *_ = editor.edit("Alice is", "Rome", subject="Alice", eval_metric="ppl",
                              test_generation=True)  # fmt: skip
    assert metrics[0]["post"]["rewrite_ppl"] > 0
    assert metrics[0]["post"]["fluency"]["ngram_entropy"] > 0


def test_pre_file_is_written_and_pre_edit_reads_it(editor, tmp_path):
    path = tmp_path / "new" / "pre.json"
    metrics, *_ = editor.edit(**ALL, pre_file=str(path))
    known = json.loads(path.read_text())
    assert known == [{"pre": metric["pre"]} for metric in metrics]
    assert [entry.name for entry in path.parent.iterdir()] == ["pre.json"]
    marked = [{"pre": {**entry["pre"], "mark": 1}} for entry in known]
    again, *_ = editor.edit(**ALL, pre_edit=marked)
    assert all(metric["pre"]["mark"] == 1 for metric in again)


# --- side effects -------------------------------------------------------------------------------


def test_nothing_happens_beside_the_work(editor, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    random.seed(3)
    states = torch.random.get_rng_state(), random.getstate()
    handlers = list(logging.getLogger().handlers)
    editor.edit(**ALL, test_generation=True, verbose=False)
    assert torch.equal(torch.random.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert list(tmp_path.iterdir()) == [] and logging.getLogger().handlers == handlers
    assert capsys.readouterr().out == ""
    assert editor.tok.padding_side == "left"


def test_the_host_has_no_other_parts():
    with pytest.raises(AttributeError):
        hosting.nothing  # noqa: B018


# --- loading ------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "tiny-llama"
    wide_model("llama").save_pretrained(folder)
    tokenizer = fresh_tokenizer("left")
    tokenizer.save_pretrained(folder)
    return folder


def hparams_for(name, **more):
    return SimpleNamespace(
        **{"alg_name": "NSE", "model_name": name, "device": "cpu", "model_parallel": False, **more}
    )


def test_a_folder_is_loaded(saved):
    editor = BaseEditor(hparams_for(str(saved)))
    assert editor.model.dtype == torch.float32 and not editor.model.training
    assert editor.model_name == str(saved) and editor.tok.padding_side == "left"
    assert BaseEditor(hparams_for(str(saved), fp16=True)).model.dtype == torch.float16
    assert BaseEditor(hparams_for(str(saved), dtype="bfloat16")).model.dtype == torch.bfloat16
    for wrong in ("int8", "brainfloat"):
        with pytest.raises(HparamsError, match=f"dtype is '{wrong}'"):
            BaseEditor(hparams_for(str(saved), dtype=wrong))


def test_a_model_that_cannot_be_loaded_is_named(saved, monkeypatch):
    with pytest.raises(ModelError, match=r"there is no model folder.*did you mean 'tiny-llama'"):
        BaseEditor(hparams_for(str(saved.parent / "tiny-lama")))
    with pytest.raises(ModelError, match=r"there is no model folder './hugging_cache/gpt2-xl'"):
        BaseEditor(hparams_for("./hugging_cache/gpt2-xl"))
    (saved / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot load model"):
        BaseEditor(hparams_for(str(saved)))

    def unreachable(name, **_options):
        raise OSError(f"no connection to look for {name}")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", unreachable)
    with pytest.raises(ModelError, match=r"(?s)model 'some/hub-name'.*hub id that can be"):
        BaseEditor(hparams_for("some/hub-name"))
    for odd in (3, ("a", "b"), (wide_model("gpt2"),)):
        with pytest.raises(ModelError, match="model_name is a"):
            BaseEditor(hparams_for(odd))


def test_devices(saved):
    for name in ("cpu", torch.device("cpu")):
        assert BaseEditor(hparams_for(str(saved), device=name)).device == torch.device("cpu")
    if not torch.cuda.is_available():
        for name in (0, "0", "cuda:1"):
            with pytest.raises(HparamsError, match="0 CUDA devices"):
                BaseEditor(hparams_for(str(saved), device=name))
    with pytest.raises(HparamsError, match="device is 'nowhere'"):
        BaseEditor(hparams_for(str(saved), device="nowhere"))


def test_a_ready_model_is_used_as_it_is(saved):
    model, tokenizer = wide_model("gpt2"), fresh_tokenizer("left")
    tokenizer.pad_token = None
    hparams = hparams_for((model, tokenizer))
    editor = BaseEditor(hparams)
    assert editor.model is model and editor.tok is tokenizer and tokenizer.pad_token is None
    assert editor.model_name == "tiny-gpt2" and hparams.model_name == (model, tokenizer)


def test_an_unknown_method_is_named():
    with pytest.raises(HparamsError, match="'NSA' is not a method"):
        BaseEditor(hparams_for((wide_model("gpt2"), fresh_tokenizer()), alg_name="NSA"))
    for wrong in (None, "NSE/atlas-gpt2"):
        with pytest.raises(HparamsError, match=f"hparams is {wrong!r}; give .*from_hparams"):
            BaseEditor(wrong)


def test_atlas_models_are_loaded_by_name(monkeypatch):
    editor = BaseEditor(hparams_for("atlas:gpt2", fp16=True))
    assert editor.model.dtype == torch.float16 and editor.model_name == "atlas:gpt2"
    with pytest.raises(ModelError, match="unknown atlas model 'atlas:bert'"):
        BaseEditor(hparams_for("atlas:bert"))
