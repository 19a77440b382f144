"""NSE under EasyEdit's names, and in EasyEdit itself as docs/upstream.md says."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from nse_plugin import apply_nse_to_model
from nse_plugin.easyedit import checkout
from nse_plugin.methods.nse import edit_round
from nse_plugin.session.session import EditSession
from tests.contract.conftest import facts, quick
from tests.test_package import ROOT
from tests.tiny import some_requests, tiny_model, tiny_tokenizer

RECORDS = [
    {"prompt": r.text, "subject": r.subject, "target_new": r.target_new} for r in some_requests(3)
]
BLOCK = re.compile(r"^```(python|diff) (easyeditor/\S+)\n((?:.*\n)*?)```$", re.MULTILINE)


def by_session(model):
    """The weights after an edit of the session, and the session."""
    session = EditSession.of(model, tiny_tokenizer())
    edit_round(session, some_requests(3), quick(batch_size=3))
    return model.state_dict(), session


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_function_writes_what_a_session_writes(family):
    before = tiny_model(family).state_dict()
    wanted, session = by_session(tiny_model(family))
    for options in ({}, {"return_orig_weights": True}, {"copy": True, "train_ds": None}):
        model = tiny_model(family)
        edited, held = apply_nse_to_model(
            model, tiny_tokenizer(), RECORDS, quick(batch_size=3), **options
        )
        assert (edited is model) == ("copy" not in options)
        assert all(torch.equal(edited.state_dict()[name], wanted[name]) for name in wanted)
        names = session.weights.names() if "return_orig_weights" in options else []
        assert set(held) == set(names)
        assert all(torch.equal(tensor, before[name]) for name, tensor in held.items())
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def test_its_arguments_are_those_of_easyedits_functions(easyedit):
    theirs = inspect.signature(checkout.part("easyeditor:apply_memit_to_model")).parameters
    ours = inspect.signature(apply_nse_to_model).parameters
    assert list(ours)[:4] == list(theirs)[:4]
    for name in ("copy", "return_orig_weights", "keep_original_weight"):
        assert ours[name].default is theirs[name].default


def with_nse(easyedit: checkout.Host, folder: Path) -> Path:
    """EasyEdit's checkout with what docs/upstream.md adds; all other files are links."""
    package = easyedit.path / "easyeditor"
    for link in package.rglob("*.py"):
        place = folder / "easyeditor" / link.relative_to(package)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(link)
    blocks = BLOCK.findall((ROOT / "docs" / "upstream.md").read_text(encoding="utf-8"))
    assert len(blocks) == 6
    for kind, name, text in blocks:
        path = folder / name
        if kind == "diff":
            context, added = (line[1:] for line in text.splitlines())
            content = path.read_text(encoding="utf-8")
            assert content.count(f"{context}\n") == 1, context
            text = content.replace(f"{context}\n", f"{context}\n{added}\n")
            path.unlink()
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


EDIT = """
import json, sys
from easyeditor import BaseEditor, NSEHyperParams
from safetensors.torch import save_file
import nse_plugin
settings, facts = json.load(open("settings.json"))
editor = BaseEditor.from_hparams(NSEHyperParams.from_dict(settings))
metrics, model, _ = editor.batch_edit(**facts, sequential_edit=True, verbose=False)
assert len(metrics) == 3 and model is editor.model
save_file({name: p.detach().clone() for name, p in model.named_parameters()}, "edited.safetensors")
names = nse_plugin.register().names
assert "NSE-plugin" in names and "NSE" not in names
"""


def test_the_page_s_lines_make_nse_a_method_of_easyedit(easyedit, saved, tmp_path):
    hparams = quick(model_name=saved["gpt2"], batch_size=3, device="cpu")
    (tmp_path / "settings.json").write_text(json.dumps([hparams.to_dict(), facts(3)]))
    checkout_path = with_nse(easyedit, tmp_path / "checkout")
    environment = {
        **os.environ,
        checkout.ROOT_VARIABLE: str(checkout_path),
        "PYTHONPATH": f"{checkout_path}{os.pathsep}{ROOT}",
    }
    done = subprocess.run(
        [sys.executable, "-c", "from nse_plugin.model import make_torchvision_importable as make;"
         f"make()\n{EDIT}"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wanted, _ = by_session(AutoModelForCausalLM.from_pretrained(saved["gpt2"]))
    found = load_file(tmp_path / "edited.safetensors")
    assert found and all(torch.equal(found[name], wanted[name]) for name in found)
