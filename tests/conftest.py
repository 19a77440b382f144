"""Tiny random models of several families, and a tokenizer, made in milliseconds."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

from nse_plugin.easyedit import checkout
from nse_plugin.errors import HostError
from nse_plugin.files import CACHE_VARIABLE, cache_dir
from nse_plugin.model import make_torchvision_importable
from nse_plugin.statistics.named_texts import NAMED_TEXTS

make_torchvision_importable()  # before anything here imports transformers

from tests.browser import chromium, open_page  # noqa: F401  fixtures
from tests.devices import PLACES, PRETENDED, Place, place_of
from tests.tiny import FAMILY_NAMES, tiny_hparams, tiny_model, tiny_tokenizer

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts a background job
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    """Tests of a published model take minutes: they run where ``-m`` asks for them.

    On the pretended GPU one of the families is enough to find tensors that are mixed.
    """
    params = [getattr(getattr(item, "callspec", None), "params", {}) for item in items]
    too_many = [p.get("device") == PRETENDED and p.get("model") == "gpt2" for p in params]
    items[:] = [item for item, no in zip(items, too_many) if not no]
    if "real" not in config.option.markexpr:
        skip = pytest.mark.skip(reason="takes minutes on a published model; run: pytest -m real")
        for item in items:
            if item.get_closest_marker("real"):
                item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_disks():
    """Nothing here depends on what a loss of power leaves of a file."""
    real, os.fsync = os.fsync, lambda _descriptor: None
    yield
    os.fsync = real


@pytest.fixture(scope="session", autouse=True)
def statistics_of_this_run(tmp_path_factory):
    """Statistics without a place of their own are kept for this run, not in the user's cache.

    Those of the embedded models are of 600 sentences, enough for a covariance of full rank.
    """
    folder, usual = tmp_path_factory.mktemp("cache"), os.environ.get(CACHE_VARIABLE)
    text = NAMED_TEXTS["atlas"]
    with pytest.MonkeyPatch.context() as patch:
        few = replace(text, documents=lambda: text.documents()[:600])
        patch.setitem(NAMED_TEXTS, "atlas", few)
        patch.setattr(
            "nse_plugin.statistics.files.cache_dir",
            lambda: folder if os.environ.get(CACHE_VARIABLE) == usual else cache_dir(),
        )
        yield


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE tokenizer of a few hundred entries."""
    return tiny_tokenizer()


@pytest.fixture(params=FAMILY_NAMES)
def any_model(request):
    """A fresh tiny model of each family in turn."""
    return tiny_model(request.param)


@pytest.fixture(params=PLACES)
def device(request) -> Iterator[Place]:
    """The CPU in float32, and the GPU in float32 and bfloat16, or a pretended one in bfloat16.

    A test that names this among its arguments gets its ``model`` there; the others stay on the CPU.
    """
    with request.param.there():
        yield request.param


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    """A fresh tiny model: GPT-2 (Conv1D) and Llama (Linear, grouped heads)."""
    return place_of(request).put(tiny_model(request.param))


@pytest.fixture
def hparams(tmp_path):
    """Hyperparameters that edit a tiny model in little time, with statistics of its own."""
    return tiny_hparams(stats_dir=str(tmp_path))


@pytest.fixture
def no_drawings(monkeypatch):
    """Pages without their pictures, which take most of a page's time."""
    monkeypatch.setattr("nse_plugin.report.page.Picture.drawings", lambda _self, _name: [])


@pytest.fixture(scope="session")
def easyedit() -> checkout.Host:
    """The EasyEdit of this machine, imported.

    Skips with the reason where it cannot be had, and fails where EASYEDIT_ROOT asks for it.
    """
    refuse = pytest.fail if os.environ.get(checkout.ROOT_VARIABLE) else pytest.skip
    try:
        host = checkout.find()
        if host is None:
            refuse(f"no EasyEdit on this machine: {checkout.HOW_TO_GET_IT}")
        checkout.load(host)
    except HostError as error:
        refuse(str(error))
    return host
