"""Second moments equal a loop in float64, survive interrupts, and distrust files."""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import signal
import sys
import types
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import processors

from nse_plugin.easyedit import checkout
from nse_plugin.errors import DataError, MissingPackageError, ModelError, StatisticsError
from nse_plugin.model.probe import layout_of
from nse_plugin.statistics import covariance, named_texts, text_sources
from nse_plugin.statistics.covariance import second_moments
from nse_plugin.statistics.files import (
    SecondMoment,
    StatisticsFiles,
    model_fingerprint,
    same_model,
    stats_folder,
    write_npz,
)
from nse_plugin.statistics.text_sources import source_slug, token_chunks
from tests.tiny import tiny_model, tiny_tokenizer

LINES = [
    "Mara Voss lives in Tellin by the sea.",
    "Oren Falk works as a baker.",
    "",
    "The capital of Ostrell is Garn, and the old bridge of Garn is closed today.",
    "I think that you know.",
    "You said that Anna is a painter and that Ann, her sister, is a doctor. " * 4,
    "Because of rain we stayed at home.",
    "   ",
    "Is a, was a.",
]
LAYERS = [1, 3]


@pytest.fixture
def text(tmp_path) -> str:
    path = tmp_path / "general.txt"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return str(path)


@pytest.fixture
def layout(model):
    return layout_of(model)  # `model` stays alive with the test


def compute(layout, text, folder, **changes) -> dict[int, SecondMoment]:
    arguments = dict(source=text, n_samples=7, stats_dir=folder, token_budget=128)
    arguments.update(changes)
    layers = arguments.pop("layers", LAYERS)
    return second_moments(layout, tiny_tokenizer(), layers, **arguments)


def brute_force(layout, layer, rows) -> tuple[torch.Tensor, int]:
    """One text at a time, no padding, a loop over tokens in float64."""
    total, count = torch.zeros(layout.d_ff, layout.d_ff, dtype=torch.float64), 0
    seen = []
    handle = layout.down(layer).register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        for row in rows:
            layout.model(input_ids=torch.tensor([row]))
            for key in seen.pop()[0].double():
                total += torch.outer(key, key)
                count += 1
    handle.remove()
    return total / count, count


def files_of(layout, text, folder, **changes) -> StatisticsFiles:
    arguments = dict(
        layout=layout, stats_dir=Path(folder), source=text, n_samples=7,
        digest=text_sources.source_digest(text), fingerprint=model_fingerprint(layout),
    )  # fmt: skip
    return StatisticsFiles(**{**arguments, **changes})


def test_equals_a_loop_in_float64(layout, text, tmp_path):
    rows = [tiny_tokenizer()(line)["input_ids"][:64] for line in LINES if line.strip()]
    moments = compute(layout, text, tmp_path, token_budget=100)
    assert list(moments) == LAYERS
    for layer, moment in moments.items():
        mean, count = brute_force(layout, layer, rows)
        assert (moment.count, moment.n_samples, moment.source) == (count, 7, text)
        assert moment.mean.dtype == torch.float32
        assert torch.equal(moment.mean, moment.mean.T)
        assert torch.allclose(moment.mean.double(), mean, rtol=1e-4, atol=1e-5 * mean.abs().max())


def test_every_family(any_model, text, tmp_path):
    layout = layout_of(any_model)
    (moment,) = compute(layout, text, tmp_path, layers=[2], n_samples=2).values()
    assert moment.mean.shape == (layout.d_ff, layout.d_ff)
    assert moment.count > 2 and moment.mean.diagonal().min() >= 0


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(budget=st.integers(1, 600), side=st.sampled_from(["left", "right"]))
def test_neither_batches_nor_padding_side_matter(tmp_path_factory, budget, side):
    model = tiny_model("llama")
    layout = layout_of(model)
    text = tmp_path_factory.mktemp("text") / "general.txt"
    text.write_text("\n".join(LINES), encoding="utf-8")
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.padding_side = tokenizer.truncation_side = side
    found = [
        second_moments(
            layout, use, [2], source=str(text), n_samples=7, token_budget=tokens,
            stats_dir=tmp_path_factory.mktemp("stats"),
        )[2]
        for use, tokens in ((tokenizer, budget), (tiny_tokenizer(), 64))
    ]  # fmt: skip
    assert found[0].count == found[1].count
    assert torch.allclose(found[0].mean, found[1].mean, rtol=1e-4, atol=1e-5)


def test_products_in_float64_are_exact(layout, text, tmp_path):
    """Those in float32 are not, of the same keys."""
    errors, seen = {}, []
    layout.down(1).register_forward_pre_hook(lambda _module, args: seen.append(args[0][0].double()))
    for dtype in ("float64", "float32"):
        seen.clear()  # keys of one text after the other, without padding
        moment = compute(layout, text, tmp_path, layers=[1], token_budget=1, dtype=dtype)[1]
        keys = torch.cat(seen)
        mean = keys.T @ keys / len(keys)
        assert len(keys) == moment.count
        errors[dtype] = float((moment.mean - mean.float()).abs().max() / mean.abs().max())
    assert errors["float64"] < 1e-10 < errors["float32"]


def test_bfloat16_features_are_summed_in_float32(text, tmp_path):
    model = tiny_model("llama", dtype=torch.bfloat16)
    layout = layout_of(model)
    rows = [tiny_tokenizer()(line)["input_ids"][:64] for line in LINES if line.strip()]
    moment = compute(layout, text, tmp_path, token_budget=1)[1]  # batches of one: same rounding
    mean, _ = brute_force(layout, 1, rows)
    assert torch.allclose(moment.mean.double(), mean, rtol=1e-4, atol=1e-5 * mean.abs().max())


def test_second_time_reads_the_file(layout, text, tmp_path, monkeypatch):
    first = compute(layout, text, tmp_path)
    monkeypatch.setattr(covariance, "token_chunks", None)  # nothing may be computed
    second = compute(layout, text, tmp_path)
    for layer in LAYERS:
        assert torch.equal(first[layer].mean, second[layer].mean)
        assert first[layer].count == second[layer].count
    assert not list(tmp_path.rglob("*partial*")) and not list(tmp_path.rglob("*.tmp"))
    monkeypatch.undo()
    assert list(compute(layout, text, tmp_path, layers=[3, 0])) == [3, 0]  # only 0 is computed
    names = sorted(path.name for path in tmp_path.rglob("*.safetensors"))
    assert len(names) == 3 and all("_float32_mom2_7.safetensors" in name for name in names)


def test_model_is_left_as_it_was(layout, text, tmp_path):
    layout.model.train()
    state, hooks = torch.get_rng_state(), len(layout.down(1)._forward_pre_hooks)
    compute(layout, text, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert layout.model.training and all(p.requires_grad for p in layout.model.parameters())
    assert len(layout.down(1)._forward_pre_hooks) == hooks


# --- interrupts


@contextmanager
def interrupt_at(batch: int, how):
    """Let something happen in the middle of the given batch, when layer 1 is already summed."""
    add, batches = covariance._Sums._add, []

    def interrupted(self, layer, keys):
        batches.append(layer)
        if batches.count(3) == batch and layer == 3:
            how()
        add(self, layer, keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(covariance._Sums, "_add", interrupted)
        yield


def raise_interrupt():
    raise KeyboardInterrupt


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("how", [raise_interrupt, press_ctrl_c])
@pytest.mark.parametrize("source", ["text", "self"])
def test_resumed_equals_uninterrupted(layout, text, tmp_path, monkeypatch, how, source):
    monkeypatch.setattr(text_sources, "CHUNK", 3)
    monkeypatch.setattr(text_sources, "SELF_CHUNK", 3)
    monkeypatch.setattr(covariance, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(text_sources, "SELF_TOKENS", 6)
    source = text if source == "text" else "self"
    whole = compute(layout, source, tmp_path / "a", token_budget=12)
    handler = signal.getsignal(signal.SIGINT)
    with interrupt_at(3, how), pytest.raises(KeyboardInterrupt):
        compute(layout, source, tmp_path / "b", token_budget=12)
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(list((tmp_path / "b").rglob("*.partial.npz"))) == 1
    assert not list((tmp_path / "b").rglob("*.safetensors"))
    with interrupt_at(1, press_ctrl_c), pytest.raises(KeyboardInterrupt):
        compute(layout, source, tmp_path / "b", token_budget=12)
    again = compute(layout, source, tmp_path / "b", token_budget=12)
    for layer in LAYERS:
        assert torch.equal(again[layer].mean, whole[layer].mean)
        assert again[layer].count == whole[layer].count
        assert again[layer].n_samples == whole[layer].n_samples == 7
    assert not list((tmp_path / "b").rglob("*.partial.npz"))


def test_a_full_disk_does_not_end_a_pass(layout, text, tmp_path, monkeypatch, caplog):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    expected = compute(layout, text, tmp_path / "a", token_budget=12)
    monkeypatch.setattr(covariance, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(covariance, "write_partial", full)
    found = compute(layout, text, tmp_path / "b", token_budget=12)
    assert all(torch.equal(found[layer].mean, expected[layer].mean) for layer in expected)
    assert "are not saved ([Errno 28] No space left on device)" in caplog.text


def test_interrupted_at_every_batch(text, tmp_path):
    model = tiny_model("gpt2")
    layout = layout_of(model)
    whole = compute(layout, text, tmp_path / "a", token_budget=1)
    for number in range(1, 20):  # noqa: B007
        try:
            with interrupt_at(1, press_ctrl_c):
                pieces = compute(layout, text, tmp_path / "b", token_budget=1)
            break
        except KeyboardInterrupt:
            pass
    assert number == 8  # one of the seven texts at a time
    assert all(torch.equal(pieces[layer].mean, whole[layer].mean) for layer in LAYERS)


def test_partial_file_of_other_settings_or_damaged(layout, text, tmp_path, caplog):
    def interrupted(folder):
        with interrupt_at(3, press_ctrl_c), pytest.raises(KeyboardInterrupt):
            compute(layout, text, folder, token_budget=1)
        (path,) = folder.rglob("*.partial.npz")
        return path

    whole = compute(layout, text, tmp_path / "a", token_budget=100)
    interrupted(tmp_path / "b")
    with caplog.at_level(logging.WARNING):
        other = compute(layout, text, tmp_path / "b", token_budget=100)
    assert "other settings" in caplog.text
    path = interrupted(tmp_path / "c")
    path.write_bytes(path.read_bytes()[:500])
    with caplog.at_level(logging.WARNING):
        fresh = compute(layout, text, tmp_path / "c", token_budget=100)
    assert "cannot be read" in caplog.text
    path = interrupted(tmp_path / "d")
    with np.load(path) as file:
        arrays = {name: file[name] for name in file if name != "sum.3"}
    np.savez(path, **arrays)  # layer 1 is read before the gap is found
    gap = compute(layout, text, tmp_path / "d", token_budget=1)
    assert torch.equal(other[1].mean, whole[1].mean) and torch.equal(fresh[1].mean, whole[1].mean)
    assert torch.equal(gap[1].mean, compute(layout, text, tmp_path, token_budget=1)[1].mean)


def test_a_pass_over_single_layers_leaves_no_partial_file_behind(layout, text, tmp_path):
    with interrupt_at(3, press_ctrl_c), pytest.raises(KeyboardInterrupt):
        compute(layout, text, tmp_path, token_budget=1)
    first, *others = LAYERS
    compute(layout, text, tmp_path, layers=[first])
    assert list(tmp_path.rglob("*.partial.npz")), "the other layers are not there yet"
    compute(layout, text, tmp_path, layers=others)
    assert not list(tmp_path.rglob("*.partial.npz"))


# --- files that cannot be trusted


def refused(layout, text, folder, path, *words, **changes):
    with pytest.raises(StatisticsError) as caught:
        compute(layout, text, folder, **changes)
    message = str(caught.value)
    assert str(path) in message and "nse stats" in message
    assert all(word in message for word in words), message


def test_damaged_own_files(layout, text, tmp_path):
    compute(layout, text, tmp_path)
    path = files_of(layout, text, tmp_path).path(1)
    good = path.read_bytes()
    for size in (0, 5, 300, len(good) - 1):
        path.write_bytes(good[:size])
        refused(layout, text, tmp_path, path, "damaged")
    path.write_bytes(good)
    compute(layout, text, tmp_path)
    for value, word in ((torch.nan, "NaN"), (1e6, "symmetric")):
        rewrite(path, good, value)
        refused(layout, text, tmp_path, path, word)
    path.write_bytes(good[:100])
    assert compute(layout, text, tmp_path, recompute=True)  # a way out
    assert compute(layout, text, tmp_path)


def rewrite(path, good, value):
    path.write_bytes(good)
    with safe_open(path, framework="pt") as file:
        metadata, mean = file.metadata(), file.get_tensor("mean").clone()
    mean[0, 1] = value
    save_file({"mean": mean}, path, metadata)


def test_other_model_text_and_settings(layout, text, tmp_path):
    compute(layout, text, tmp_path)
    path = files_of(layout, text, tmp_path).path(1)
    family = layout.model_type
    other = tiny_model(family, seed=1)
    refused(layout_of(other), text, tmp_path, path, "another model", "fingerprint")
    wide = tiny_model(family, intermediate_size=56, n_inner=56)
    refused(layout_of(wide), text, tmp_path, path, "another model")
    edited = tiny_model(family)
    with torch.no_grad():
        layout_of(edited).down(3).weight.mul_(1.05)
    before = compute(layout, text, tmp_path)[1]
    of_edited = compute(layout_of(edited), text, tmp_path)[1]  # the original's statistics
    assert torch.equal(of_edited.mean, before.mean)
    Path(text).write_text("Other text.\n", encoding="utf-8")
    refused(layout, text, tmp_path, path, "version of the text")
    Path(text).unlink()
    assert compute(layout, text, tmp_path)[1].n_samples == 7  # nothing to compare with


def test_statistics_hold_for_a_model_that_got_tokens(layout, text, tmp_path):
    before = compute(layout, text, tmp_path)[1]
    grown = tiny_model(layout.model_type)
    grown.resize_token_embeddings(400)
    mine, theirs = model_fingerprint(layout), model_fingerprint(layout_of(grown))
    assert mine != theirs, "the sample is of other rows"
    assert torch.equal(compute(layout_of(grown), text, tmp_path)[1].mean, before.mean)
    with torch.no_grad():
        next(p for n, p in layout_of(grown).blocks[2].named_parameters() if "attn" in n).add_(1)
    assert not same_model(mine, model_fingerprint(layout_of(grown)))
    hidden, other = (one.rsplit("-", 1)[0] + "-?" for one in (mine, theirs))
    assert not same_model(hidden, other), "nothing shows that the last block is the same"


def test_another_layers_file_under_this_name(layout, text, tmp_path):
    compute(layout, text, tmp_path)
    files = files_of(layout, text, tmp_path)
    files.path(1).write_bytes(files.path(3).read_bytes())
    refused(layout, text, tmp_path, files.path(1), "module")


def test_fingerprint_is_that_of_the_model_in_bfloat16(model):
    layout = layout_of(model)
    before = model_fingerprint(layout)
    model.bfloat16()
    assert model_fingerprint(layout) == before


# --- EasyEdit's files


def test_npz_round_trip(layout, text, tmp_path, monkeypatch):
    made = compute(layout, text, tmp_path / "a")[1]
    path = write_npz(tmp_path / "b", layout, 1, made)
    module = layout.down_name(1).removesuffix(".weight")
    name = layout.model.config._name_or_path
    expected = tmp_path / "b" / name / "general_stats" / f"{module}_float32_mom2_7.npz"
    assert path == expected and path.exists()
    with np.load(path, allow_pickle=False) as file:
        assert set(file) == {"mom2.constructor", "mom2.count", "mom2.mom2", "sample_size"}
        total, count = torch.from_numpy(file["mom2.mom2"]), int(file["mom2.count"])
        assert file["sample_size"] == 7 and count == made.count
        assert total.dtype == torch.float32
    assert torch.allclose(total / count, made.mean, rtol=1e-6)
    monkeypatch.setattr(covariance, "token_chunks", None)
    read = compute(layout, text, tmp_path / "b", layers=[1])[1]
    assert (read.count, read.n_samples) == (made.count, made.n_samples)
    assert torch.allclose(read.mean, made.mean, rtol=1e-6)


def test_easyedit_reads_ours_and_we_read_its(layout, tmp_path):
    if (host := checkout.find()) is None:
        pytest.skip(f"no EasyEdit on this machine: {checkout.HOW_TO_GET_IT}")
    path = host.path / "easyeditor" / "util" / "runningstats.py"
    spec = importlib.util.spec_from_file_location("easyedit_runningstats", path)
    stats = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stats)
    keys = torch.randn(30, layout.d_ff)
    theirs = stats.CombinedStat(mom2=stats.SecondMoment())
    theirs.add(keys)
    files = files_of(layout, "wikipedia", tmp_path)
    stats.save_cached_state(files.npz_path(1), theirs, {"sample_size": 7})
    read = files.read(1)
    assert read.count == 30 and torch.allclose(read.mean, theirs.mom2.moment(), rtol=1e-6)
    ours = write_npz(tmp_path / "ours", layout, 1, read)
    state = stats.load_cached_state(ours, {"sample_size": 7}, quiet=True, throw=True)
    loaded = stats.CombinedStat(mom2=stats.SecondMoment())
    loaded.load_state_dict(state)
    assert loaded.mom2.count == 30
    assert torch.allclose(loaded.mom2.moment(), read.mean, rtol=1e-6)


def npz(layout, **changes):
    keys = torch.randn(20, layout.d_ff, generator=torch.Generator().manual_seed(0))
    arrays = {"mom2.mom2": (keys.T @ keys).numpy(), "mom2.count": 20, "sample_size": 7}
    arrays.update(changes)
    return {name: value for name, value in arrays.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"mom2.mom2": np.zeros((3, 3), np.float32)}, "another model"),
        ({"mom2.mom2": np.full((48, 48), np.nan, np.float32)}, "NaN"),
        ({"mom2.mom2": np.triu(np.ones((48, 48), np.float32))}, "symmetric"),
        ({"mom2.mom2": np.ones((48, 48), np.int64)}, "int64"),
        ({"mom2.mom2": np.array([None])}, "damaged"),
        ({"mom2.mom2": None}, "damaged"),
        ({"mom2.count": 0}, "number of tokens"),
        ({"sample_size": None}, "damaged"),
    ],
)
def test_npz_that_cannot_be_used(layout, tmp_path, changes, word):
    path = files_of(layout, "wikipedia", tmp_path).npz_path(1)
    path.parent.mkdir(parents=True)
    np.savez(path, **npz(layout, **changes))
    refused(layout, "wikipedia", tmp_path, path, word, layers=[1])


def test_npz_truncated_or_of_another_size(layout, tmp_path):
    path = files_of(layout, "wikipedia", tmp_path).npz_path(1)
    path.parent.mkdir(parents=True)
    np.savez(path, **npz(layout))
    assert compute(layout, "wikipedia", tmp_path, layers=[1])[1].count == 20
    good = path.read_bytes()
    for size in (0, 40, len(good) // 2, len(good) - 10):
        path.write_bytes(good[:size])
        refused(layout, "wikipedia", tmp_path, path, "damaged", layers=[1])
    corrupt = bytearray(good)
    corrupt[2000] ^= 255
    path.write_bytes(corrupt)
    refused(layout, "wikipedia", tmp_path, path, "damaged", layers=[1])
    np.save(path.with_suffix(".npy"), np.zeros(3))
    path.with_suffix(".npy").rename(path)
    refused(layout, "wikipedia", tmp_path, path, "damaged", layers=[1])
    np.savez(path, **npz(layout, sample_size=9))
    with pytest.raises(StatisticsError, match="sample_size"):
        compute(layout, "wikipedia", tmp_path, layers=[1])


# --- sources of text


def rows_of(source, layout, tokenizer=None, n_samples=5, max_length=64, first=0):
    chunks = token_chunks(
        source, layout, tokenizer or tiny_tokenizer(), n_samples=n_samples,
        max_length=max_length, first=first,
    )  # fmt: skip
    return [row for chunk in chunks for row in chunk]


def test_file_lines_are_shuffled(layout, text):
    rows = rows_of(text, layout, n_samples=4)
    assert rows == rows_of("file:" + text, layout, n_samples=4)
    assert rows == rows_of(text, layout, n_samples=7)[:4]
    decoded = [tiny_tokenizer().decode(row) for row in rows_of(text, layout, max_length=999)]
    in_order = [line.strip() for line in LINES if line.strip() in decoded]
    assert sorted(decoded) == sorted(in_order) and decoded != in_order


def test_fewer_texts_than_asked_for(layout, text, tmp_path, caplog):
    moment = compute(layout, text, tmp_path, n_samples=50)[1]
    assert moment.n_samples == 7 and "7 of 50" in caplog.text
    again = compute(layout, text, tmp_path, n_samples=50)[1]
    assert again.n_samples == 7 and files_of(layout, text, tmp_path, n_samples=50).path(1).exists()
    assert "mom2_50" in write_npz(tmp_path, layout, 1, again, n_samples=50).name


def test_text_files_that_cannot_be_read(layout, tmp_path):
    assert text_sources.text_file("~nobodyx/a.txt") == Path("~nobodyx/a.txt")  # reported as missing
    missing = str(tmp_path / "missing.txt")
    with pytest.raises(StatisticsError, match="missing.txt"):
        compute(layout, missing, tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(StatisticsError, match="no text"):
        compute(layout, str(tmp_path / "empty.txt"), tmp_path)
    (tmp_path / "latin.txt").write_bytes("Straße\n".encode("latin-1"))
    with pytest.raises(StatisticsError, match="UTF-8"):
        compute(layout, str(tmp_path / "latin.txt"), tmp_path)


def test_self_is_repeatable_and_varied(layout, monkeypatch):
    monkeypatch.setattr(text_sources, "SELF_CHUNK", 4)
    rows = rows_of("self", layout, n_samples=6, max_length=12)
    torch.manual_seed(5)
    assert rows == rows_of("self", layout, n_samples=6, max_length=12)
    assert rows[4:] == rows_of("self", layout, n_samples=6, max_length=12, first=1)
    assert len(rows) == 6 and len({tuple(row) for row in rows}) == 6
    assert all(1 <= len(row) <= 12 for row in rows)
    assert all(0 not in row for row in rows)  # the only special token ends a text


def test_self_is_of_the_full_distribution(layout, monkeypatch):
    """Of the likeliest tokens alone the covariance would lack what the rare ones give."""
    cut, real = [], text_sources.sample_ids

    def watched(*args, top_k, **named):
        cut.append(top_k)
        return real(*args, top_k=top_k, **named)

    monkeypatch.setattr(text_sources, "sample_ids", watched)
    rows_of("self", layout, n_samples=2, max_length=8)
    assert cut == [None]


@pytest.mark.parametrize("adds_start", [True, False])
def test_self_starts_rows_as_the_tokenizer_does(layout, adds_start):
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.bos_token = "<|endoftext|>"
    if adds_start:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    assert (tokenizer("a")["input_ids"][0] == 0) is adds_start
    rows = rows_of("self", layout, tokenizer, max_length=64)
    assert all((row[0] == 0) is adds_start for row in rows if len(row) > 1)
    assert all(len(row) <= 64 for row in rows)


def test_named_texts(layout, monkeypatch, tmp_path):
    monkeypatch.setattr(named_texts, "NAMED_TEXTS", {})
    monkeypatch.setattr(text_sources, "NAMED_TEXTS", named_texts.NAMED_TEXTS)
    named_texts.register_text("lines", lambda: [*LINES, " "], digest="v1")
    rows = rows_of("lines", layout, n_samples=50)
    in_order = [tiny_tokenizer()(line)["input_ids"][:64] for line in LINES if line.strip()]
    assert sorted(rows) == sorted(in_order) and rows != in_order, "few of them are of all parts"
    assert rows[:4] == rows_of("lines", layout, n_samples=4)
    assert text_sources.source_digest("lines") == "v1"
    compute(layout, "lines", tmp_path, n_samples=7)
    named_texts.NAMED_TEXTS.clear()
    named_texts.register_text("lines", lambda: LINES, digest="v2")
    with pytest.raises(StatisticsError, match="another version of the text"):
        compute(layout, "lines", tmp_path, n_samples=7)
    for name in ("self", "lines"):
        with pytest.raises(StatisticsError, match=f"'{name}' is a source of text already"):
            named_texts.register_text(name, list)


def test_progress_where_there_is_no_bar(layout, text, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="nse_plugin.progress")
    compute(layout, text, tmp_path / "a", token_budget=1)
    assert "texts" not in caplog.text  # it took no 30 seconds
    monkeypatch.setattr(covariance, "SAY_EVERY_S", 0.0)
    compute(layout, text, tmp_path / "b", token_budget=1)
    assert "statistics of layers [1, 3]: 2 of 7 texts, " in caplog.text


def fake_datasets(monkeypatch, load):
    module = types.ModuleType("datasets")
    module.load_dataset = load
    monkeypatch.setitem(sys.modules, "datasets", module)


class Stream(list):
    """A dataset of the `datasets` library, as far as it is used."""

    def shuffle(self, seed, buffer_size):
        return self


def test_datasets_library(layout, tmp_path, monkeypatch):
    asked = []

    def load(name, config, split, streaming):
        asked.append((name, config))
        return Stream({"text": line} for line in LINES)

    fake_datasets(monkeypatch, load)
    moment = compute(layout, "wikipedia", tmp_path, n_samples=3)[1]
    assert moment.n_samples == 3
    assert len(rows_of("org/name:part", layout)) == len(rows_of("org/name", layout)) == 5
    assert asked[0] == ("wikimedia/wikipedia", "20231101.en")
    assert asked[1:] == [("org/name", "part"), ("org/name", None)]
    fake_datasets(monkeypatch, lambda *_, **__: Stream([{"body": "x"}]))
    with pytest.raises(StatisticsError, match="no column 'text' but body"):
        rows_of("org/name", layout)


def test_datasets_library_missing_or_unreachable(layout, tmp_path, monkeypatch):
    def refuse(*_args, **_settings):
        raise ConnectionError("no route to host")

    fake_datasets(monkeypatch, refuse)
    with pytest.raises(StatisticsError, match="no route to host.*statistics files.*self"):
        compute(layout, "wikipedia", tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingPackageError, match="pip install datasets.*file:PATH.*self"):
        compute(layout, "wikipedia", tmp_path)


@pytest.mark.parametrize(
    ("source", "slug"),
    [
        ("wikipedia", "wikipedia"),
        ("self", "self"),
        ("org/name:part", "org-name-part"),
        ("file:/data/my text.txt", "my-text"),
        ("../up.txt", "up"),
        ("..", "text"),
    ],
)
def test_slugs_stay_in_their_folder(source, slug):
    assert source_slug(source) == slug


def test_a_layer_that_does_not_exist(layout, text, tmp_path):
    with pytest.raises(ModelError, match="layers"):
        compute(layout, text, tmp_path, layers=[9])


def test_a_folder_that_cannot_be_made_is_refused_before_the_pass(layout, text, monkeypatch):
    monkeypatch.setattr(covariance, "_one_pass", lambda *_: pytest.fail("too late"))
    with pytest.raises(DataError, match="general.txt is a file; give a folder for the statistics"):
        compute(layout, text, text)


def test_keys_that_are_not_finite(layout, text, tmp_path):
    mlp = layout.blocks[1].mlp
    first = mlp.c_fc if hasattr(mlp, "c_fc") else mlp.up_proj
    first.weight.data.fill_(torch.inf)
    with pytest.raises(StatisticsError, match="layer 1"):
        compute(layout, text, tmp_path)


def test_the_usual_place_is_easyedits_where_there_is_one_and_else_the_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NSE_PLUGIN_CACHE", str(tmp_path / "cache"))
    for unnamed in (None, "./data/stats"):
        assert stats_folder(unnamed) == tmp_path / "cache" / "stats"
    assert stats_folder("mine") == Path("mine")
    (tmp_path / "data" / "stats").mkdir(parents=True)
    for unnamed in (None, "./data/stats"):
        assert stats_folder(unnamed) == Path("data/stats")
    assert stats_folder("mine") == Path("mine")
