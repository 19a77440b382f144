"""One contract, three ways to an editor: the embedded host, EasyEdit through nse_plugin, and
EasyEdit's own class after ``register()``.

    pytest tests/contract                              # the embedded host; EasyEdit is skipped
    EASYEDIT_ROOT=/path/to/EasyEdit pytest tests/contract
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from nse_plugin.easyedit import checkout
from nse_plugin.hparams import NSEHparams
from tests.contract.records import BENCHMARKS, Benchmark, shared, write
from tests.tiny import some_requests, tiny_hparams, tiny_model, tiny_tokenizer

HOSTS = ["embedded", "easyedit", "easyedit's own class"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """EasyEdit writes logs/ into the working directory and adds a log handler per editor."""
    monkeypatch.chdir(tmp_path)
    log = logging.getLogger("easyeditor.editors.editor")
    handlers = list(log.handlers)
    yield
    for handler in set(log.handlers) - set(handlers):
        handler.close()
    log.handlers = handlers


@pytest.fixture(params=HOSTS)
def host(request) -> str:
    """Each way in turn."""
    if request.param != "embedded":
        request.getfixturevalue("easyedit")
    return request.param


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> dict[str, str]:
    """Folders of tiny models, with their family in the name, as EasyEdit wants it."""
    folders = {}
    for family in ("gpt2", "llama"):
        folder = tmp_path_factory.mktemp("models") / f"tiny-{family}"
        tiny_model(family).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        folders[family] = str(folder)
    return folders


@pytest.fixture
def editor_class(host):
    """The BaseEditor of a host, with our methods in reach."""
    return editor_class_of(host)


def editor_class_of(host: str) -> type:
    if host == "embedded":
        from nse_plugin.editor import BaseEditor

        return BaseEditor
    from nse_plugin.easyedit.editor import base_editor

    if host == "easyedit":
        return base_editor()
    from nse_plugin.easyedit.register import register

    register()
    return checkout.part("easyeditor:BaseEditor")


@pytest.fixture
def make_editor(editor_class, saved):
    """Build an editor on a tiny model read from disk."""

    def make(family: str = "gpt2", **settings: Any) -> Any:
        return editor_class.from_hparams(quick(model_name=saved[family], **settings))

    return make


def quick(**settings: Any) -> Any:
    """Hyperparameters of an edit that takes a tenth of a second.

    Statistics are kept in a folder of this test run, so that they are computed once per model.
    """
    defaults = dict(n_contexts=1, context_length=4, v_num_grad_steps=4, stats_dir=_statistics())
    return tiny_hparams(**{**defaults, **settings})


def atlas_hparams(family: str, **settings: Any) -> Any:
    """The hyperparameters that ship for an embedded model, with statistics over fewer texts."""
    hparams = NSEHparams.from_hparams(f"NSE/atlas-{family}")
    defaults = dict(mom2_n_samples=200, stats_dir=_statistics(), n_contexts=1)
    return dataclasses.replace(hparams, **{**defaults, **settings})


@functools.cache
def _statistics() -> str:
    folder = tempfile.mkdtemp(prefix="nse-plugin-stats-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def facts(n: int = 3) -> dict[str, list[Any]]:
    """Arguments of ``edit`` for some facts."""
    requests = some_requests(n)
    return {
        "prompts": [request.text for request in requests],
        "target_new": [request.target_new for request in requests],
        "ground_truth": ["Garn"] * n,
        "subject": [request.subject for request in requests],
    }


def fact(number: int) -> dict[str, list[Any]]:
    """Arguments of ``edit`` for one of them."""
    return {name: column[number : number + 1] for name, column in facts(number + 1).items()}


def probes(n: int = 3) -> dict[str, Any]:
    """Locality, portability and rephrasing for :func:`facts`, each shape that EasyEdit takes."""
    single = {"prompt": ["The river of Garn is"] * n, "ground_truth": ["closed"] * n}
    several = {
        "prompt": [["Anna is a", "Her sister is a"]] * (n - 1) + [None],
        "ground_truth": [["painter", "doctor"]] * (n - 1) + [None],
    }
    return {
        "rephrase_prompts": ["I think that you know where it is:"] * n,
        "locality_inputs": {"near": single, "far": several},
        "portability_inputs": {"hop": dict(single)},
    }


@pytest.fixture(params=BENCHMARKS)
def benchmark(request) -> Benchmark:
    return BENCHMARKS[request.param]


@pytest.fixture(params=["written here", "shared"])
def path(request, benchmark, tmp_path) -> Path:
    if request.param == "shared":
        return shared(benchmark.shared)
    return write(tmp_path, benchmark.records)
