"""EasyEdit's own methods under our scheduler: kept on disk, resumed, measured like ours."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from nse_plugin import cli
from nse_plugin.easyedit import checkout
from nse_plugin.easyedit.editor import ReadyModel
from nse_plugin.runs.scheduler import SequentialScheduler
from tests.contract.test_state import rome_hparams
from tests.runs.runs import HELD_OUT, interrupt, protocol, requests
from tests.tiny import bits, same_bits, tiny_model, tiny_tokenizer


def ft_hparams(layer, model_name):
    return checkout.part("easyeditor:FTHyperParams")(
        alg_name="FT", model_name=model_name, device="cpu", layers=[layer], num_steps=3, lr=1e-3,
        weight_decay=0, kl_factor=0, norm_constraint=5e-3, objective_optimization="target_new",
        rewrite_module_tmp="transformer.h.{}.mlp.c_proj", layer_module_tmp="transformer.h.{}",
        mlp_module_tmp="transformer.h.{}.mlp", attn_module_tmp="transformer.h.{}.attn",
        ln_f_module="transformer.ln_f", lm_head_module="transformer.wte",
    )  # fmt: skip


def scheduled(make_hparams, folder, **more):
    """A scheduler over EasyEdit's editor with a fresh model."""
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    editor_class = checkout.part("easyeditor.editors.editor:BaseEditor")
    tokenizer.padding_side = "right"
    editor = editor_class.from_hparams(make_hparams(2, ReadyModel(model, tokenizer)))
    run = SequentialScheduler(editor, requests(), 2, protocol(), folder, held_out=HELD_OUT, **more)
    return run, model


@pytest.mark.parametrize("make_hparams", [ft_hparams, rome_hparams], ids=["FT", "ROME"])
def test_a_method_of_easyedit_is_scheduled_and_resumed(easyedit, make_hparams, tmp_path):
    whole, model = scheduled(make_hparams, tmp_path / "whole")
    before = bits(model)
    result = whole.run()
    assert result.status == "complete" and result.final["rounds"] == 3
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all(name.startswith("transformer.h.2.mlp.c_proj.") for name in changed)
    assert result.final["measurement"]["all"]["efficacy"] is not None

    interrupt(scheduled(make_hparams, tmp_path / "cut")[0], after=1)
    second, resumed = scheduled(make_hparams, tmp_path / "cut")
    again = second.run()
    assert again.status == "complete"
    assert same_bits(model, resumed)
    assert again.final["measurement"]["all"] == result.final["measurement"]["all"]


def test_nse_run_takes_a_yaml_of_easyedit(easyedit, saved, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {**vars(ft_hparams(2, saved["gpt2"])), "lr": "1e-3"}  # as YAML 1.1 reads it
    (tmp_path / "ft.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    records = [request.to_dict() for request in requests(4)]
    (tmp_path / "facts.json").write_text(json.dumps(records), encoding="utf-8")
    arguments = ["--hparams", "ft.yaml", "--data", "facts.json", "--round-size", "2"]
    assert cli.main(["run", *arguments, "--out", "run"]) == 0
    assert "complete: 4 edits in 2 rounds" in capsys.readouterr().out
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({**values, "alg_name": "FTT"}))
    assert cli.main(["run", "--hparams", "bad.yaml", "--data", "facts.json"]) == 1
    assert "no method 'FTT'; did you mean 'FT'" in capsys.readouterr().err
