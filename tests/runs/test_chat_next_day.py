"""Runs in chat that are opened again when the template gives another text, as the date in Llama
3.2's does."""

from __future__ import annotations

import json

import pytest
import yaml

from nse_plugin.errors import DataError
from nse_plugin.model.prompts import encode_request
from nse_plugin.runs.edits import EditFolder
from nse_plugin.runs.identity import prompt_format
from nse_plugin.runs.reading import RunFiles
from nse_plugin.runs.reopen import chat_tokenizer, open_run
from nse_plugin.runs.settings import RunSettings
from nse_plugin.runs.start import make_scheduler
from tests.runs.runs import interrupt, requests, same_run
from tests.tiny import tiny_hparams, tiny_model, tiny_tokenizer

FORMAT = {"chat": ["Day 1\nuser: ", "\nassistant: "]}


def save_tokenizer(folder, day):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        f"Day {day}\n{{% for turn in messages %}}{{{{ turn.role + ': ' + turn.content + '\\n' }}}}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    tokenizer.chat_template = None  # the object is shared


@pytest.fixture
def world(tmp_path):
    """A model on its first day, and a YAML for it."""
    tiny_model("llama", max_position_embeddings=256).save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model", 1)
    hparams = tiny_hparams(
        v_num_grad_steps=2, n_contexts=1, context_length=3, stats_dir=str(tmp_path / "stats"),
        mom2_adjustment=False,
    ).to_dict()  # fmt: skip
    hparams["model_name"] = str(tmp_path / "model")
    known = {name: value for name, value in hparams.items() if value is not None}
    (tmp_path / "nse.yaml").write_text(yaml.safe_dump(known), encoding="utf-8")
    return tmp_path


@pytest.fixture
def edited(world):
    """A folder with one edit of the first day, and the edit's tokens; it is the second day now."""
    folder = EditFolder(world / "edits", hparams=world / "nse.yaml", chat=True)
    folder.edit("{Anna} lives in", "Garn", neighbours=["Oren Falk works as a"])
    (request,) = folder.session.ledger[-1].requests
    ids = encode_request(folder.session.tokenizer, request, with_target=True).ids
    save_tokenizer(world / "model", 2)
    return world / "edits", request, ids


def test_a_folder_of_edits_keeps_the_texts_that_it_began_with(edited):
    folder, request, ids = edited
    again = EditFolder(folder, chat=True)
    assert prompt_format(again.session.tokenizer) == FORMAT
    assert encode_request(again.session.tokenizer, request, with_target=True).ids == ids
    assert again._asked("Who?", plain=False)[:2] == ("Who?", "Day 1\nuser: Who?\nassistant: ")
    turns = [{"role": role, "content": "Who?"} for role in ("user", "assistant", "user")]
    assert again._asked(turns, plain=False)[1].startswith("Day 1\nuser: Who?\nassistant: Who?\n")
    again.edit("{Mara} works as a", "baker", neighbours=["Oren Falk works as a"])
    again.consolidate()
    assert EditFolder(folder).undo()
    _, session = open_run(folder)
    assert prompt_format(session.tokenizer) == FORMAT


def test_a_damaged_format_is_named(edited):
    folder, _, _ = edited
    manifest = json.loads((folder / "manifest.json").read_text())
    for damaged in (["one"], ["before", 2], []):
        manifest["run"]["chat"] = damaged
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(DataError, match="manifest.json is damaged: chat is"):
            EditFolder(folder)


def test_a_run_is_resumed_with_the_texts_of_its_manifest(world):
    records = [{**request.to_dict(), "case_id": request.case_id} for request in requests(4)]
    (world / "facts.json").write_text(json.dumps(records), encoding="utf-8")

    settings = dict(hparams=str(world / "nse.yaml"), data=str(world / "facts.json"), chat=True)

    def scheduler(name):
        out = str(world / name)
        return make_scheduler(RunSettings(**settings, out=out, round_size=2, held_out=None))

    scheduler("whole").run()
    interrupt(scheduler("cut"), 1)
    save_tokenizer(world / "model", 2)
    scheduler("cut").run()
    assert RunFiles(world / "cut").manifest["run"]["chat"] == FORMAT["chat"]
    assert same_run(world / "cut", world / "whole")


def test_only_a_new_run_asks_the_template(edited, tmp_path):
    folder, _, _ = edited
    tokenizer = tiny_tokenizer()  # without a template
    assert prompt_format(chat_tokenizer(tokenizer, tmp_path / "none", folder)) == FORMAT
