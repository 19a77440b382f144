"""OVERTONE around EasyEdit's own FT, LoRA, MELO and WISE."""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import importlib
import math
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

from nse_plugin.easyedit import checkout
from nse_plugin.easyedit.editor import base_editor
from nse_plugin.easyedit.hparams import hparams_of
from nse_plugin.easyedit.losses import TERMS, with_objective
from nse_plugin.easyedit.overtone import base_hparams
from nse_plugin.errors import HostError, HparamsError
from nse_plugin.hparams import OvertoneHparams
from nse_plugin.runs.identity import as_json
from tests.contract.conftest import fact
from tests.contract.test_edits import same, state

pytestmark = pytest.mark.usefixtures("easyedit")

FT: dict[str, Any] = dict(
    alg_name="FT", layers=[2], num_steps=3, lr=5e-3, objective_optimization="target_new",
    rewrite_module_tmp="model.layers.{}.mlp.down_proj.weight", layer_module_tmp="model.layers.{}",
    mlp_module_tmp="model.layers.{}.mlp", attn_module_tmp="model.layers.{}.self_attn",
    ln_f_module="model.norm", lm_head_module="lm_head",
)  # fmt: skip
LORA: dict[str, Any] = dict(
    alg_name="LoRA", lora_type="lora", layers=[], num_steps=3, lr=5e-3, rank=4, lora_alpha=8,
    lora_dropout=0.0, target_modules=["q_proj", "v_proj"],
)  # fmt: skip
WISE: dict[str, Any] = dict(
    alg_name="WISE", inner_params=["model.layers[2].mlp.down_proj.weight"], n_iter=3,
    act_margin=[5.0, 20.0, 10.0],
)  # fmt: skip
EDITORS = ["FT", "LoRA", "WISE", "MELO"]
each = pytest.mark.parametrize("name", EDITORS)
SMOOTH = {"lambda_": 0.1, "epsilon": 0.05, "n_sigma": 1.0}


@pytest.fixture(autouse=True, scope="module")
def nothing_old_to_collect():
    """WISE collects garbage three times per edit, and EasyEdit brings a million objects along."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def keys(saved):
    """The keys of an editor's YAML, for a tiny model."""

    def make(name: str, **changes: Any) -> dict[str, Any]:
        if name == "MELO":
            found = {**melo(saved["gpt2"]), "model_name": saved["gpt2"]}
        else:
            found = {**{"FT": FT, "LoRA": LORA, "WISE": WISE}[name], "model_name": saved["llama"]}
        return {**found, "device": "cpu", **changes}

    return make


def melo(folder: str) -> dict[str, Any]:
    base = OvertoneHparams.from_hparams("OVERTONE/MELO/gpt2-xl").base
    grace = dict(base.grace, num_iter=3, num_block=6)
    model = dict(base.model, target_modules=["transformer.h.2.mlp.c_fc"],
                 grace_layer="transformer.h.1.mlp.c_fc")  # fmt: skip
    lora = dict(base.lora, cls_name=folder)
    return dict(alg_name="MELO", max_length=64, grace=grace, model=model, lora=lora)


@pytest.fixture
def around(keys):
    """An editor of nse_plugin with OVERTONE around one of EasyEdit's."""

    def make(name: str, base: dict[str, Any] | None = None, **settings: Any) -> Any:
        config = {"alg_name": "OVERTONE", "base": keys(name, **(base or {}))}
        hparams = OvertoneHparams.from_dict(config)
        return base_editor().from_hparams(dataclasses.replace(hparams, **{**SMOOTH, **settings}))

    return make


@pytest.fixture
def plain(keys):
    """EasyEdit's own editor, its own loss."""

    def make(name: str, **changes: Any) -> Any:
        values = keys(name, **changes)
        needed = DEFAULTS[name]
        return checkout.part("easyeditor:BaseEditor").from_hparams(hparams_of(needed | values))

    return make


PLAIN: dict[str, Any] = dict(batch_size=1, weight_decay=0, kl_factor=0, norm_constraint=False)
DEFAULTS: dict[str, dict[str, Any]] = {
    "FT": PLAIN,
    "LoRA": PLAIN,
    "WISE": dict(
        mask_ratio=0.2, edit_lr=1.0, norm_constraint=1.0, act_ratio=0.88, save_freq=500,
        merge_freq=1000, merge_alg="ties", objective_optimization="only_label", densities=0.53,
        weights=1.0, retrieve=True, replay=False,
    ),
    "MELO": dict(task="hall", lora_task_type="CAUSAL_LM", check_dir=None, model_parallel=False),
}  # fmt: skip
"""What our hyperparameters have defaults for, and EasyEdit's have not."""


def edit(editor, number=0, **options):
    torch.manual_seed(0)
    np.random.seed(0)
    loc = {"loc_prompts": ["The river of Garn is"]}
    return editor.edit(**fact(number), **loc, **{"verbose": False, **options})


# --- it runs --------------------------------------------------------------------------------------


@each
def test_it_runs_under_the_editors_own_name(around, name):
    editor = around(name)
    before = state(editor.model)
    (metric,), *_ = edit(editor)
    assert editor.alg_name == editor.hparams.alg_name == name
    assert as_json(editor.hparams)["overtone"]["epsilon"] == 0.05  # in a run's manifest
    assert 0 <= metric["post"]["rewrite_acc"][0] <= 1
    if name != "MELO":  # EasyEdit leaves a MELO on the model
        assert same(before, state(editor.model))


@pytest.mark.parametrize("name", ["FT", "LoRA", "WISE"])
def test_edits_follow_each_other(around, name):
    """Not MELO: EasyEdit itself puts a second MELO around the first, and fails."""
    editor = around(name)
    both = {k: fact(0)[k] + fact(1)[k] for k in fact(0)} | {"loc_prompts": ["The river is"] * 2}
    metrics, *_ = editor.edit(**both, sequential_edit=True, verbose=False)
    assert len(metrics) == 2


@each
def test_without_smoothing_it_is_the_editor_itself(around, plain, name):
    _, ours, _ = edit(around(name, **NONE, base=MARGINS.get(name)), sequential_edit=True)
    _, theirs, _ = edit(plain(name), sequential_edit=True)
    ours, theirs = state(ours), state(theirs)
    assert ours.keys() == theirs.keys()
    for parameter in ours:
        torch.testing.assert_close(ours[parameter], theirs[parameter], rtol=1e-5, atol=1e-6)


NONE = {"lambda_": 1.0, "epsilon": 0.0}
MARGINS = {"WISE": {"margin_factor": 1.0}}


@each
def test_the_editor_itself_is_untouched_before_and_after(around, plain, name):
    def plainly():
        return state(edit(plain(name), sequential_edit=True)[1])

    before = plainly()
    smoothed = state(edit(around(name), sequential_edit=True)[1])
    assert same(before, plainly()) and not same(before, smoothed)


# --- one step's gradient --------------------------------------------------------------------------


@contextmanager
def first_step():
    """What the first optimizer step inside is about to use: parameters and gradients, as copies."""
    seen: list[list[tuple[torch.Tensor, torch.Tensor]]] = []

    def look(optimizer, *_):
        if not seen:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            seen.append([(p.detach().clone(), p.grad.clone())
                         for p in parameters if p.grad is not None])  # fmt: skip

    hook = register_optimizer_step_pre_hook(look)
    try:
        yield seen
    finally:
        hook.remove()


def by_hand(logits, target):
    """OVERTONE's unclipped loss of one token, step by step in float64 (methods.md, section 2)."""
    s = logits.double()
    pi = torch.softmax(s, dim=0)
    kept = s > s.max() - SMOOTH["n_sigma"] * s.std()
    filtered = torch.where(kept, pi, 0.0)
    filtered = (filtered / filtered.sum()).detach()
    onehot = F.one_hot(torch.tensor(target), len(s)).double()
    taught = SMOOTH["lambda_"] * onehot + (1 - SMOOTH["lambda_"]) * filtered
    if taught.argmax() != target:
        taught = onehot
    return sum(t * (math.log(t) - pi[k].log()) for k, t in enumerate(taught.tolist()) if t > 0)


def loss_of(editor, text, target):
    """Mean over a text's target tokens, clipped, and the number of them."""
    ids = editor.tok(text + target)["input_ids"]
    n = len(ids) - len(editor.tok(text)["input_ids"])
    logits = editor.model(input_ids=torch.tensor([ids])).logits[0]
    losses = [by_hand(logits[i - 1], ids[i]) for i in range(len(ids) - n, len(ids))]
    return sum(loss.clamp(min=SMOOTH["epsilon"]) for loss in losses) / n, sum(losses) / n, n


PROMPT, TARGET = fact(2)["prompts"][0], " " + fact(2)["target_new"][0]


def test_fts_first_step_has_overtones_gradient(around):
    editor = around("FT")
    weight = editor.model.model.layers[2].mlp.down_proj.weight
    loss, _, n = loss_of(editor, PROMPT, TARGET)
    (expected,) = torch.autograd.grad(loss, weight)
    with first_step() as seen:
        edit(editor, 2)
    ((_, gradient),) = seen[0]
    assert n > 1 and gradient.abs().max() > 1e-3
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_loras_first_step_has_overtones_gradient(around):
    """With B = 0, dL/dB = alpha/rank dL/dW A^T, and W's gradient needs no adapter."""
    editor = around("LoRA", base={"target_modules": ["q_proj"], "layers": [1]})
    loss, _, _ = loss_of(editor, PROMPT, TARGET)
    (of_w,) = torch.autograd.grad(loss, editor.model.model.layers[1].self_attn.q_proj.weight)
    with first_step() as seen:
        edit(editor, 2)
    (a, of_a), (b, of_b) = seen[0]
    assert a.shape == (4, 32) and not b.any() and not of_a.any()
    expected = 8 / 4 * of_w @ a.T
    assert of_b.abs().max() > 1e-3
    torch.testing.assert_close(of_b, expected, rtol=1e-4, atol=1e-6)


def test_wises_first_step_has_overtones_gradient(around):
    """The margins have no gradient as long as the copy is the original."""
    editor = around("WISE")
    weight = editor.model.model.layers[2].mlp.down_proj.weight
    untouched = copy.deepcopy(editor.model)
    with first_step() as seen:
        _, edited, _ = edit(editor, 2, sequential_edit=True)
    ((_, gradient),) = seen[0]
    contexts = importlib.import_module("easyeditor.models.wise.utils").CONTEXT_TEMPLATES_CACHE
    editor.model, weight = untouched, untouched.model.layers[2].mlp.down_proj.weight
    weight.requires_grad_()
    total = 0
    for context in contexts:
        loss, _, n = loss_of(editor, context.format(PROMPT), TARGET)
        total += loss * n / (n + 1)  # EasyEdit averages over one place too many
    (expected,) = torch.autograd.grad(total / len(contexts), weight)
    mask = edited.get_adapter_layer().weight_mask.view_as(gradient).bool()
    assert gradient[mask].abs().max() > 1e-3 and not gradient[~mask].any()
    torch.testing.assert_close(gradient[mask], expected[mask], rtol=1e-4, atol=1e-6)


def test_melos_first_loss_is_overtones(around, monkeypatch):
    editor = around("MELO")
    _, value, _ = loss_of(editor, PROMPT, TARGET)
    losses = []
    melo = checkout.part("easyeditor.models.melo.melo:LORA")
    whole = melo.edit
    monkeypatch.setattr(melo, "edit", _then(whole, lambda self: losses.extend(self.losses)))
    edit(editor, 2)
    assert losses[0] == pytest.approx(value.item(), rel=1e-4)


def _then(function, look):
    """The function, and a look at its first argument when it is done."""

    @functools.wraps(function)
    def both(self, *arguments):
        function(self, *arguments)
        look(self)

    return both


# --- stopping -------------------------------------------------------------------------------------


def test_an_editor_stops_on_the_unclipped_loss(around, capsys):
    """FT stops below 0.01, where a loss clipped at 0.0105 never gets to."""
    editor = around("FT", base={"num_steps": 200, "lr": 1e-2}, lambda_=1.0, epsilon=0.0105)
    editor.model.lm_head.weight.data *= 4  # the tiny model cannot be sure of anything without
    edit(editor)
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()
              if line.startswith("Batch loss")]  # fmt: skip
    assert len(losses) < 200 and losses[-1] < 0.01


def test_what_is_known_is_not_taught(around):
    """With every token under epsilon there is no gradient, and the weights stay."""
    editor = around("FT", epsilon=1e4)
    before = state(editor.model)
    _, edited, _ = edit(editor, sequential_edit=True)
    assert same(before, state(edited))


# --- what cannot be replaced ----------------------------------------------------------------------


def everything(model):
    """Values, modules and settings of a model."""
    return state(model), {n: type(m) for n, m in model.named_modules()}, sorted(vars(model))


def unchanged(model, before):
    after = everything(model)
    return same(before[0], after[0]) and before[1:] == after[1:] and all(
        p.requires_grad for p in model.parameters())  # fmt: skip


def stepping(model, *_):
    """An editor that trains, names what the known one names, and uses none of it."""
    layer = model.model.layers[2].mlp
    layer.extra = nn.Linear(2, 2)
    weight = layer.down_proj.weight
    optimizer = torch.optim.SGD([weight], lr=1.0)
    loss = (weight**2).sum()
    loss.backward()
    optimizer.step()
    return CrossEntropyLoss, model.loss  # noqa: F821  # never reached


def other(*_):
    """A function that computes a loss in another way."""
    return F.cross_entropy


PLACES = {"FT": ("easyeditor.models.ft.ft_main", "execute_ft"),
          "LoRA": ("easyeditor.models.lora.lora_main", "execute_lora"),
          "WISE": ("easyeditor.models.wise.WISE:WISE", "_cal_ft_loss"),
          "MELO": ("easyeditor.models.melo.melo:LORA", "edit")}  # fmt: skip


def place_of(name):
    where, attribute = PLACES[name]
    return (checkout.part(where) if ":" in where else importlib.import_module(where)), attribute


@each
def test_a_place_that_has_changed_is_an_error_before_any_write(around, monkeypatch, name):
    editor = around(name)
    before = everything(editor.model)
    monkeypatch.setattr(*place_of(name), other)
    with pytest.raises(HostError, match=f"cross entropy of EasyEdit's {name} cannot be replaced"):
        edit(editor, sequential_edit=True)
    assert unchanged(editor.model, before)


@pytest.mark.parametrize("name", ["FT", "WISE"])
def test_a_module_without_the_name_is_an_error(around, monkeypatch, name):
    editor = around(name)
    module = importlib.import_module(TERMS[name].computed_in.partition(":")[0])
    monkeypatch.setattr(module, "CrossEntropyLoss", nn.NLLLoss)
    with pytest.raises(HostError, match="has no CrossEntropyLoss of torch"):
        edit(editor)
    assert module.CrossEntropyLoss is nn.NLLLoss


@pytest.mark.parametrize("name", ["LoRA", "MELO"])
def test_a_model_with_a_loss_of_its_own_is_an_error(around, monkeypatch, name):
    editor = around(name)
    monkeypatch.setattr(type(editor.model), "forward", other)
    function = with_objective(name, None)
    with pytest.raises(HostError, match="does not compute its loss by its loss_function"):
        function(editor.model, editor.tok, [], editor.hparams)


def test_another_method_in_the_table_is_an_error(around, monkeypatch):
    editor = around("FT")
    monkeypatch.setitem(checkout.method_table(), "FT", other)
    with pytest.raises(HostError, match="method table has another FT"):
        edit(editor)


def test_a_step_without_the_term_is_an_error_and_nothing_was_written(around, monkeypatch):
    editor = around("FT")
    before = everything(editor.model)
    monkeypatch.setattr(*place_of("FT"), stepping)
    with pytest.raises(HostError, match="was about to take a step of its optimizer without"):
        edit(editor, sequential_edit=True)
    assert unchanged(editor.model, before)


def test_adapters_are_removed_again(around, monkeypatch):
    """WISE puts its copy in before it computes anything."""
    editor = around("WISE")
    before = everything(editor.model)

    def own_loss(self, tokens, _):
        """Names CrossEntropyLoss, and goes without."""
        self.model(**tokens)
        weight = self.get_adapter_layer().new_weight
        return (weight**2).sum() if len(tokens) else CrossEntropyLoss  # noqa: F821

    monkeypatch.setattr(*place_of("WISE"), own_loss)
    with pytest.raises(HostError, match="without the term"):
        edit(editor, sequential_edit=True)
    assert unchanged(editor.model, before)


def test_an_editor_that_never_steps_has_to_use_the_term_too(around, monkeypatch):
    editor = around("LoRA")

    def idle(model, *_):
        return model if len(_) else model.loss

    monkeypatch.setattr(*place_of("LoRA"), idle)
    with pytest.raises(HostError, match="finished without having used the term"):
        edit(editor, sequential_edit=True)


@pytest.mark.parametrize("name", ["FT", "LoRA", "WISE"])
def test_an_error_half_way_leaves_the_model_as_it_was(around, name):
    from nse_plugin.objectives import nll

    class Failing:
        needs_reference, calls = False, 0

        def __call__(self, logits, targets, reference=None):
            self.calls += 1
            if self.calls == 3:
                raise MemoryError("the third time")
            return nll(logits, targets)

    editor = around(name)
    before = everything(editor.model)
    editor.apply_algo = with_objective(name, Failing())
    with pytest.raises(MemoryError, match="third"):
        edit(editor, sequential_edit=True)
    assert unchanged(editor.model, before)
    module = importlib.import_module(TERMS[name].computed_in.partition(":")[0])
    assert getattr(module, "CrossEntropyLoss", nn.CrossEntropyLoss) is nn.CrossEntropyLoss


@each
def test_a_copy_is_edited_and_left_without_our_loss(around, name):
    editor = around(name)
    before = everything(editor.model)
    options = {TERMS[name].copying: True}
    request = {"prompt": PROMPT, "target_new": "Quill", "subject": "Ostrell",
               "loc_prompt": "The river is", "ground_truth": "Garn"}  # fmt: skip
    edited, _ = editor.apply_algo(editor.model, editor.tok, [request], editor.hparams, **options)
    assert unchanged(editor.model, before)
    assert not same(before[0], state(edited))
    assert not any("_loss_function" in vars(module) for module in edited.modules())


# --- hyperparameters ------------------------------------------------------------------------------


def test_wises_margins_are_shrunk(keys):
    hparams = OvertoneHparams.from_dict({"alg_name": "OVERTONE", "base": keys("WISE")})
    found = base_hparams(hparams)
    assert type(found).__module__ == "easyeditor.models.wise.wise_hparams"
    assert (found.alpha, found.beta, found.gamma) == pytest.approx((3.0, 12.0, 6.0))
    assert (hparams.lambda_, hparams.epsilon, hparams.n_sigma) == (0.1, 0.05, 1.0)


@pytest.mark.parametrize("path", [
    "FT/llama-7b", "LoRA/llama-7b", "WISE/llama-7b", "WISE/mistral-7b", "WISE/gpt-j-6B",
    "MELO/gpt2-xl",
])  # fmt: skip
def test_easyedit_takes_the_yamls_that_ship(path):
    hparams = OvertoneHparams.from_hparams(f"OVERTONE/{path}")
    assert base_hparams(hparams).alg_name == path.partition("/")[0]


@pytest.mark.parametrize(("name", "settings", "what"), [
    ("FT", {"objective_optimization": "prompt_last"}, "prompt_last.*target_new only"),
    ("FT", {"rewrite_module_tmp": None}, "FT needs rewrite_module_tmp"),
    ("FT", {"stop_loss": 0.5}, "stop_loss is 0.5.*FT has no such setting.*our own FT"),
])  # fmt: skip
def test_settings_without_effect_are_refused(around, name, settings, what):
    with pytest.raises(HparamsError, match=what):
        edit(around(name, base=settings))


def test_a_frozen_reference_is_refused(around):
    with pytest.raises(HparamsError, match="unedited model's logits"):
        edit(around("LoRA", frozen_reference=True))


def test_easyedits_own_editor_class_cannot_undo_it(keys):
    hparams = OvertoneHparams.from_dict({"alg_name": "OVERTONE", "base": keys("LoRA")})
    base_editor()
    editor = checkout.part("easyeditor:BaseEditor").from_hparams(hparams)
    with pytest.raises(HostError, match="LoRA needs.*nse_plugin.BaseEditor"):
        edit(editor)
