"""``nse export`` on run directories of both commands that make them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
import yaml
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from nse_plugin import cli
from nse_plugin.data import atlas
from nse_plugin.export import from_delta
from nse_plugin.runs.reading import RunFiles
from tests.runs.runs import scheduler
from tests.tiny import atlas_model, same_bits, tiny_model, tiny_tokenizer


def check_cards(out, run):
    """Each export says what was edited and how; so do its files of tensors."""
    requests = [request for found in RunFiles(run).requests().values() for request in found]
    for kind in ("peft", "delta", "full"):
        card = (out / kind / "README.md").read_text(encoding="utf-8")
        head = yaml.safe_load(card.split("---")[1])
        assert head["base_model"] == "atlas-gpt2" and head["license"] == "other"
        for request in requests:
            row = f"| {request.text} | {request.ground_truth} | {request.target_new} | in effect |"
            assert row in card
        assert "efficacy 100.0%" in card and "v_lr: 0.3" in card and str(Path.home()) not in card
        for path in (out / kind).glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                said = file.metadata()
            assert (said["base_model"], said["methods"]) == ("atlas-gpt2", "NSE")
            assert (said["edits"], said["rounds"], said["format"]) == ("4", "2", "pt")


def by_card(folder):
    """The model as the card's own lines load it, with the places filled in."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code = code.replace("this-folder", str(folder))
    names = {}
    exec(code.replace("path/to/atlas-gpt2", str(atlas.model_dir("gpt2"))), names)
    return names["model"].eval()


def test_the_command_on_a_demo(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nse_plugin.runs.demo.N_OTHER", 20)
    run, out = str(tmp_path / "run"), tmp_path / "out"
    assert cli.main(["demo", "--edits", "4", "--rounds", "2", "--out", run]) == 0
    capsys.readouterr()
    for kind in ("peft", "delta", "full"):
        assert cli.main(["export", run, "--to", kind, "--out", str(out / kind)]) == 0
    shown = capsys.readouterr()
    assert "relative error" in shown.out and "4 edits of 2 rounds on atlas-gpt2" in shown.out
    full = AutoModelForCausalLM.from_pretrained(out / "full")
    clean, tokenizer = atlas_model("gpt2")
    from_delta(clean, tokenizer, out / "delta")
    assert same_bits(full, clean)
    check_cards(out, run)
    loaded = {kind: by_card(out / kind) for kind in ("peft", "delta", "full")}
    assert same_bits(loaded["delta"], clean) and same_bits(loaded["full"], clean)
    ids = tokenizer("Tiathiax Goneisom plays the", return_tensors="pt").input_ids
    assert torch.allclose(loaded["peft"](ids).logits, clean(ids).logits, atol=1e-4)
    rank = ["export", run, "--to", "peft", "--max-rank", "1", "--out", str(out / "r"), "--json"]
    assert cli.main(rank) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["efficacy"] < found["efficacy_of_all"] == 1 and found["asked"] == 4
    card = (out / "r" / "README.md").read_text(encoding="utf-8")
    assert "| at the end, with the whole change |" in card and "holds a part of the change" in card
    assert f"Efficacy with this rank {found['efficacy']:.1%}, with the whole change 100.0%" in card
    assert cli.main(["export", run, "--to", "full", "--out", str(out / "full")]) == 1
    options = ["--out", str(out / "b"), "--rank", "2"]
    assert cli.main(["export", run, "--to", "delta", *options]) == 1
    assert cli.main(["export", str(tmp_path), "--to", "peft", *options]) == 1
    shown = capsys.readouterr().err
    assert "holds files already" in shown and "--max-rank is for" in shown
    assert "holds no manifest.json" in shown


def test_the_command_on_a_run(tmp_path, capsys):
    plain = tiny_model("gpt2", n_embd=16, n_inner=24, n_layer=2, n_head=2)
    plain.save_pretrained(tmp_path / "tiny-gpt2")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny-gpt2")
    made = scheduler(tmp_path / "run")
    made.run()
    path = tmp_path / "run" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["run"]["hparams"]["model_name"] = str(tmp_path / "tiny-gpt2")
    path.write_text(json.dumps(manifest))
    arguments = ["export", str(tmp_path / "run"), "--to", "delta", "--device", "cpu", "--out"]
    assert cli.main([*arguments, str(tmp_path / "delta")]) == 0
    from_delta(plain, tiny_tokenizer(), tmp_path / "delta")
    assert same_bits(made.backend.model, plain)
    tiny_model("gpt2", seed=3).save_pretrained(tmp_path / "tiny-gpt2")
    assert cli.main([*arguments, str(tmp_path / "other")]) == 1
    assert "is another model now than when" in capsys.readouterr().err
