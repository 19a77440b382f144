"""Exports as an adapter, as matrices and as a model, and imports that are equal bit for bit."""

from __future__ import annotations

import json
import os
import subprocess

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from nse_plugin.errors import DataError, HparamsError, ModelError, SessionError
from nse_plugin.export import from_delta, from_peft, to_delta, to_full, to_peft
from nse_plugin.export.adapter import _warn_of_rank
from nse_plugin.export.folder import MANIFEST, new_folder
from nse_plugin.methods.consolidate import consolidate
from nse_plugin.methods.nse import edit_round
from nse_plugin.session.ledger_files import save_round
from nse_plugin.session.session import EditSession
from tests.tiny import (
    bits,
    same_bits,
    some_requests,
    tiny_hparams,
    tiny_model,
    tiny_tokenizer,
)

FAMILIES = ["gpt2", "llama", "gemma2"]
IDS = torch.randint(1, 299, (4, 12), generator=torch.Generator().manual_seed(0))


def edited(family, tmp_path, **changes):
    """A tiny model after a round on layers 1, 2 and one on layer 0."""
    model = tiny_model(family, **changes)
    session = EditSession.of(model, tiny_tokenizer())
    settings = dict(
        stats_dir=str(tmp_path / "stats"), v_num_grad_steps=3, mom2_adjustment=False, n_contexts=1,
        context_length=3, max_iterations=1,
    )  # fmt: skip
    edit_round(session, some_requests(2), tiny_hparams(**settings))
    edit_round(session, some_requests(3)[2:], tiny_hparams(layers=[0], **settings))
    return model, session


@torch.no_grad()
def logits(model, ids=IDS):
    return model(input_ids=ids).logits.float()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_is_the_edited_model(family, tmp_path):
    model, session = edited(family, tmp_path)
    fits = to_peft(session, tmp_path / "adapter")
    assert len({path.stat().st_mode for path in (tmp_path / "adapter").iterdir()}) == 1
    assert sorted(fits) == [0, 1, 2] and {fits[1].rank, fits[0].rank} == {2, 1}
    assert all(fit.rank == fit.full_rank and fit.relative_error < 1e-6 for fit in fits.values())
    clean = tiny_model(family)
    untouched = logits(clean)
    adapted = peft.PeftModel.from_pretrained(clean, str(tmp_path / "adapter"))
    with_adapter = {n.split(".lora_")[0] for n, _ in adapted.named_parameters() if "lora_" in n}
    wanted = {session.layout.down_name(layer).removesuffix(".weight") for layer in (0, 1, 2)}
    assert with_adapter == {f"base_model.model.{name}" for name in wanted}
    assert (logits(model) - untouched).abs().max() > 1e-2
    assert (logits(adapted) - logits(model)).abs().max() < 1e-4
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), untouched)
    merged = adapted.merge_and_unload()
    assert (logits(merged) - logits(model)).abs().max() < 1e-4


def test_what_a_killed_export_left_is_removed(tmp_path):
    killed = subprocess.Popen(["true"])
    killed.wait()
    left = [tmp_path / f"delta.{name}.tmp" for name in (killed.pid, os.getppid(), "mine")]
    for folder in left:
        (folder / "more").mkdir(parents=True)
    with new_folder(tmp_path / "other"):
        pass
    assert all(folder.exists() for folder in left), "of other exports"
    with new_folder(tmp_path / "delta"):
        pass
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == sorted(["delta", f"delta.{os.getppid()}.tmp", "delta.mine.tmp", "other"])


def test_more_factors_than_rank_and_fewer(tmp_path):
    model, session = edited("llama", tmp_path)
    for _ in range(20):
        record = _record(session, 3, torch.randn(32, 3), torch.randn(3, 48))
        with session.round([3]):
            session.write(record.writes[0])
            session.commit(record)
    fits = to_peft(session, tmp_path / "full")
    assert fits[3].rank == 32  # 60 factors, d_model 32
    small = to_peft(session, tmp_path / "small", rank=5)
    assert small[3].rank == 5 and small[0].rank == 1 and small[0].relative_error < 1e-6
    s = torch.linalg.svdvals(session.weights.change(session.layout.down_name(3)).double())
    best = float(s[5:].norm() / s.norm())
    assert small[3].relative_error == pytest.approx(best, rel=1e-4)
    adapted = peft.PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "full"))
    assert (logits(adapted) - logits(model)).abs().max() < 1e-3  # of a change 30 times the weights
    noted = json.loads((tmp_path / "small" / MANIFEST).read_text())["parameters"]
    assert noted[session.layout.down_name(3)]["relative_error"] == small[3].relative_error


def _record(session, layer, left, right):
    from nse_plugin.session.records import RoundRecord, Write

    write = Write(layer, 0, torch.arange(right.shape[1]), left, right, (), 1.0)
    keys = {layer: torch.randn(right.shape[1], 1)}
    return RoundRecord(
        session.ledger.next_number(), "test", (), (write,), keys, d_ff=session.layout.d_ff
    )


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("gpt2", torch.float32), ("llama", torch.bfloat16), ("gemma2", torch.bfloat16)],
)
def test_a_delta_is_imported_bit_for_bit(family, dtype, tmp_path):
    model, session = edited(family, tmp_path, dtype=dtype)
    to_delta(session, tmp_path / "delta")
    clean = tiny_model(family, dtype=dtype)
    original = bits(clean)
    back = from_delta(clean, tiny_tokenizer(), tmp_path / "delta")
    assert same_bits(model, clean) and not same_bits(clean, original)
    for name in back.weights.names():  # also below the rounding of bfloat16
        assert torch.equal(back.weights.change(name), session.weights.change(name))
    plain = tiny_model(family, dtype=dtype)
    plain.load_state_dict(load_file(tmp_path / "delta" / "weights.safetensors"), strict=False)
    assert same_bits(model, plain)
    assert [(r.number, r.method, r.layers()) for r in back.ledger] == [(1, "import", [0, 1, 2])]
    to_delta(back, tmp_path / "again")
    again = tiny_model(family, dtype=dtype)
    from_delta(again, tiny_tokenizer(), tmp_path / "again")
    assert same_bits(model, again)
    back.undo_last()
    assert same_bits(clean, original)


def test_a_consolidation_is_exported_in_place_of_its_rounds(tmp_path):
    model = tiny_model("llama")
    session = EditSession.of(model, tiny_tokenizer())
    settings = dict(mom2_adjustment=False, n_contexts=1, max_iterations=1)
    hparams = tiny_hparams(stats_dir=str(tmp_path), **settings)
    for request in some_requests(3):
        edit_round(session, [request], hparams)
    consolidate(session, hparams, without=[2])
    to_delta(session, tmp_path / "delta")
    clean = tiny_model("llama")
    from_delta(clean, tiny_tokenizer(), tmp_path / "delta")
    assert same_bits(model, clean)
    fits = to_peft(session, tmp_path / "adapter")
    assert {fit.rank for fit in fits.values()} == {2}, "of two edits"
    adapted = peft.PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "adapter"))
    assert (logits(adapted) - logits(model)).abs().max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_is_imported(family, tmp_path):
    model, session = edited(family, tmp_path)
    to_peft(session, tmp_path / "adapter")
    clean = tiny_model(family)
    original = bits(clean)
    back = from_peft(clean, tiny_tokenizer(), tmp_path / "adapter")
    assert (logits(clean) - logits(model)).abs().max() < 1e-4
    assert len(back.ledger) == 1 and back.ledger[0].summary()["edits"] == 0
    save_round(tmp_path, back.ledger[0])
    edited_on = tiny_hparams(mom2_adjustment=False, n_contexts=1, stats_dir=str(tmp_path))
    edit_round(back, some_requests(1), edited_on)
    back.undo_last()
    fits = to_peft(back, tmp_path / "again")
    assert [fit.rank for fit in fits.values()] == [1, 2, 2]
    back.undo_last()
    assert same_bits(clean, original)


@pytest.mark.parametrize("rslora", [False, True])
def test_a_foreign_adapter_with_scaling(rslora, tmp_path):
    model = tiny_model("qwen2")
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["down_proj"], layers_to_transform=[1, 3],
        rank_pattern={r"layers\.3\.mlp\.down_proj": 2}, use_rslora=rslora, init_lora_weights=False,
        alpha_pattern={r"layers\.1\.mlp\.down_proj": 9},
    )  # fmt: skip
    adapted = peft.get_peft_model(model, config).eval()
    adapted.save_pretrained(tmp_path / "foreign")
    clean = tiny_model("qwen2")
    session = from_peft(clean, tiny_tokenizer(), tmp_path / "foreign")
    assert (logits(clean) - logits(adapted)).abs().max() < 1e-4
    assert session.ledger[0].layers() == [1, 3]
    other = peft.get_peft_model(tiny_model("qwen2"), peft.LoraConfig(target_modules=["q_proj"]))
    other.save_pretrained(tmp_path / "attention")
    with pytest.raises(ModelError, match=r"q_proj, which is no MLP down-projection"):
        from_peft(tiny_model("qwen2"), tiny_tokenizer(), tmp_path / "attention")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_full_model_loads_anywhere(family, tmp_path):
    model, session = edited(family, tmp_path, dtype=torch.bfloat16)
    session.tokenizer.chat_template = "{{ messages[0].content }}"
    model.generation_config.update(max_length=33)
    to_full(session, tmp_path / "full")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "full", dtype="auto")
    assert same_bits(model, loaded) and loaded.dtype == torch.bfloat16
    assert loaded.generation_config.max_length == 33
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "full")
    assert len(tokenizer) == len(tiny_tokenizer())
    assert tokenizer.chat_template == session.tokenizer.chat_template
    assert EditSession.of(model) is session
    with pytest.raises(SessionError, match="no edit session yet"):
        EditSession.of(loaded)
    with pytest.raises(DataError, match="kind 'full', not 'delta'"):
        from_delta(model, tiny_tokenizer(), tmp_path / "full")


@pytest.fixture
def exported(tmp_path):
    _, session = edited("llama", tmp_path)
    to_peft(session, tmp_path / "peft")
    to_delta(session, tmp_path / "delta")
    return tmp_path


def test_another_model(exported):
    for take, kind in ((from_peft, "peft"), (from_delta, "delta")):
        for other in (tiny_model("llama", seed=1), tiny_model("gpt2")):
            before = bits(other)
            with pytest.raises(ModelError, match="made from another model"):
                take(other, tiny_tokenizer(), exported / kind)
            assert same_bits(other, before)


def test_other_weights(exported):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[0, 0] += 1e-3
    before = bits(model)
    with pytest.raises(ModelError, match=r"^model.layers.2.mlp.down_proj.weight is not the matrix"):
        from_delta(model, tiny_tokenizer(), exported / "delta")
    assert same_bits(model, before)
    with pytest.raises(ModelError, match="is bfloat16, and .* made from float32"):
        rounded = tiny_model("llama").to(torch.bfloat16)
        from_delta(rounded, tiny_tokenizer(), exported / "delta")
    model = tiny_model("llama")
    session = from_delta(model, tiny_tokenizer(), exported / "delta")
    with pytest.raises(SessionError, match="has 1 rounds already"):
        from_delta(model, tiny_tokenizer(), exported / "delta")
    EditSession.forget(model)
    with pytest.raises(ModelError, match="holds the edited weights of .* already"):
        from_delta(model, tiny_tokenizer(), exported / "delta")
    assert len(session.ledger) == 1


@pytest.mark.parametrize(
    ("take", "kind", "file"),
    [
        (from_delta, "delta", "change.safetensors"),
        (from_delta, "delta", MANIFEST),
        (from_peft, "peft", "adapter_model.safetensors"),
        (from_peft, "peft", "adapter_config.json"),
        (from_peft, "peft", MANIFEST),
    ],
)
def test_damaged_files(take, kind, file, exported):
    path = exported / kind / file
    whole = path.read_bytes()
    model = tiny_model("llama")
    before = bits(model)
    for broken in (whole[: len(whole) // 2], b"", b"[]"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="damaged|restore|not a whole"):
            take(model, tiny_tokenizer(), exported / kind)
    if file != MANIFEST:
        path.unlink()
        with pytest.raises(DataError, match="is not there|holds no"):
            take(model, tiny_tokenizer(), exported / kind)
    assert same_bits(model, before)


def test_bits_that_differ_take_the_import_back(exported):
    folder = exported / "delta"
    manifest = json.loads((folder / MANIFEST).read_text())
    tensors = load_file(folder / "change.safetensors")
    name = next(n for n in tensors if n.endswith("columns"))
    save_file({**tensors, name: tensors[name] * 2}, folder / "change.safetensors")
    (folder / MANIFEST).write_text(json.dumps({**manifest, "sha256": {}}))
    model = tiny_model("llama")
    before = bits(model)
    with pytest.raises(DataError, match="does not get the bits"):
        from_delta(model, tiny_tokenizer(), folder)
    assert same_bits(model, before) and not len(EditSession.of(model).ledger)


@pytest.mark.parametrize("write", [to_peft, to_delta, to_full])
def test_where_an_export_cannot_go(write, tmp_path):
    model, session = edited("gpt2", tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="holds files already; give the name of a new folder"):
        write(session, tmp_path / "taken")
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["notes.txt"]
    with pytest.raises(DataError, match="is a file"):
        write(session, tmp_path / "taken" / "notes.txt")
    with pytest.raises(DataError, match="cannot write"):
        write(session, tmp_path / "taken" / "notes.txt" / "deeper")
    (tmp_path / "empty").mkdir()
    write(session, tmp_path / "empty")
    session.undo_all()
    with pytest.raises(SessionError, match="nothing to export"):
        write(session, tmp_path / "none")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("none") or p.suffix == ".tmp"]
    assert model is session.model


def test_ranks_and_foreign_changes(tmp_path):
    model, session = edited("gpt2", tmp_path)
    with pytest.raises(HparamsError, match="rank is 0"):
        to_peft(session, tmp_path / "a", rank=0)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight[0, 0] += 1
    with pytest.raises(SessionError, match="not by this session"):
        to_peft(session, tmp_path / "a")


def test_a_folder_that_holds_files_is_refused(tmp_path, monkeypatch):
    _, session = edited("gpt2", tmp_path)
    to_delta(session, tmp_path / "delta")
    monkeypatch.chdir(tmp_path / "delta")
    with pytest.raises(DataError, match=r"^\. holds files already"):
        to_delta(session, ".")


def test_a_middle_round_undone(tmp_path):
    model, session = edited("gpt2", tmp_path)
    session.undo(1)
    assert list(to_peft(session, tmp_path / "adapter")) == [0]
    adapted = peft.PeftModel.from_pretrained(tiny_model("gpt2"), str(tmp_path / "adapter"))
    assert (logits(adapted) - logits(model)).abs().max() < 1e-4


@pytest.mark.parametrize("equal", [True, False])
def test_all_layers_get_one_rank_by_default(tmp_path, equal):
    model, session = edited("llama", tmp_path)
    fits = to_peft(session, tmp_path / "adapter", equal_ranks=equal)
    ranks = {fit.rank for fit in fits.values()}
    assert len(ranks) > 1
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {len(t) for n, t in tensors.items() if "lora_A" in n} == (
        {max(ranks)} if equal else ranks
    )
    assert bool(config["rank_pattern"]) is not equal
    assert config["lora_alpha"] == config["r"] == max(ranks)
    # a layer of another rank is scaled by 1 like the others, in PEFT and here
    adapted = peft.PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path / "adapter"))
    assert (logits(adapted) - logits(model)).abs().max() < 1e-4
    clean = tiny_model("llama")
    from_peft(clean, tiny_tokenizer(), tmp_path / "adapter")
    assert (logits(clean) - logits(model)).abs().max() < 1e-4


@pytest.mark.parametrize(("rank", "level"), [(600, "WARNING"), (20, "INFO"), (16, None)])
def test_ranks_that_servers_do_not_take_are_named(rank, level, caplog):
    with caplog.at_level("INFO"):
        _warn_of_rank(rank)
    assert [record.levelname for record in caplog.records] == ([level] if level else [])
    if level == "WARNING":
        assert "--max-rank 512" in caplog.text


@pytest.mark.parametrize("by", ["wrapper", "transformers"])
def test_a_model_with_an_adapter_of_peft_is_not_exported_whole(tmp_path, tokenizer, by):
    model = tiny_model("gpt2")
    config = peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    if by == "wrapper":
        model = peft.get_peft_model(model, config)
    else:
        model.add_adapter(config)
    session = EditSession.of(model.eval(), tokenizer)
    edit_round(session, some_requests(1), tiny_hparams(mom2_adjustment=False))
    with pytest.raises(SessionError, match="writes the adapter and not the edits"):
        to_full(session, tmp_path / "full")
    assert not (tmp_path / "full").exists()
