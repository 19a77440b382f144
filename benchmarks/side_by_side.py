"""CPU seconds per edit of this package, EasyEdit and the published NSE code, interleaved.

All edit the same requests after the same context texts with the same second moments, threads and
settings, in turns and in one process; between turns the edited matrices are put back.  Each
implementation computes its own values.  Of ours, the floor per edit is printed too: the
floating-point operations of the matrix products of one round, divided by the rate of large
products on this machine, which is printed first.

    EASYEDIT_ROOT=... NSE_ROOT=... python -m benchmarks.side_by_side --data counterfact.json
        [--model smollm2-135m] [--edits 5] [--repeats 1] [--methods NSE MEMIT ROME AlphaEdit FT]

Without one of the two environment variables its rows are left out.  Neither program is changed: the
published code asks for a GPU by name, and "cuda" is made to mean the CPU while it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import fmean
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import transformers
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.shared import matrix_rate
from nse_plugin.data.models import load_model
from nse_plugin.data.streams import read_data
from nse_plugin.easyedit import checkout
from nse_plugin.hparams import NSEHparams
from nse_plugin.methods.registry import METHODS
from nse_plugin.session.session import EditSession
from nse_plugin.statistics.covariance import second_moments
from nse_plugin.statistics.files import write_npz

HOST = {
    "MEMIT": ("memit.memit_main", "apply_memit_to_model"),
    "AlphaEdit": ("alphaedit.AlphaEdit_main", "apply_AlphaEdit_to_model"),
    "ROME": ("rome.rome_main", "apply_rome_to_model"),
    "FT": ("ft.ft_main", "apply_ft_to_model"),
}
SPREAD = ("NSE", "MEMIT", "AlphaEdit")
"""Ours, which run with the papers' Adam and with ``v_optimizer: polyak``."""
OURS = ("ours", "polyak")
POLYAK_STEPS = 10
"""Evaluations of the loss of a value with it."""
N_SAMPLES = 20
SETTINGS: dict[str, Any] = dict(
    v_num_grad_steps=25, v_lr=0.5, v_weight_decay=0.5, clamp_norm_factor=0.75, kl_factor=0.0625,
    mom2_adjustment=True, mom2_dataset="factbook", mom2_n_samples=N_SAMPLES, mom2_dtype="float32",
)  # fmt: skip
FT = dict(num_steps=25, lr=5e-4, batch_size=1, norm_constraint=None, weight_decay=0,
          objective_optimization="target_new")  # fmt: skip


def settings_of(method: str, layers: list[int], last: int) -> dict[str, Any]:
    """The keys of one method, the same for every implementation."""
    if method == "FT":
        return dict(FT, layers=layers[-1:])
    if method == "ROME":
        return dict(SETTINGS, layers=layers[-1:], v_loss_layer=last)
    own = {"nullspace_threshold": 2e-2, "L2": 10.0} if method == "AlphaEdit" else {}
    weight = {} if method == "AlphaEdit" else {"mom2_update_weight": 300.0}
    return dict(SETTINGS, layers=layers, v_loss_layer=last, **weight, **own)


class CudaIsCpu(TorchFunctionMode):
    """Inside, the device "cuda" is the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cuda:
            return args[0]
        args = tuple("cpu" if isinstance(a, str) and a == "cuda" else a for a in args)
        kwargs = {
            k: "cpu" if k == "device" and v == "cuda" else v for k, v in (kwargs or {}).items()
        }
        return function(*args, **kwargs)


def _blocks_give_tuples(nethook: ModuleType) -> None:
    """Show it the outputs of blocks as tuples, as transformers gave them then."""
    real, copied = nethook.invoke_with_optional_args, nethook.recursive_copy

    def copy_of(x, *args, **kwargs):
        found = copied(x, *args, **kwargs)
        return (found,) if isinstance(found, torch.Tensor) else found

    def invoke(function, *args, **kwargs):
        output = kwargs.get("output")
        if not isinstance(output, torch.Tensor):
            return real(function, *args, **kwargs)
        edited = real(function, *args, **{**kwargs, "output": (output,)})
        return edited[0] if isinstance(edited, tuple) else edited

    nethook.invoke_with_optional_args, nethook.recursive_copy = invoke, copy_of


class Setup:
    """Model, requests, contexts and second moments that all implementations share."""

    def __init__(self, given: argparse.Namespace, stats_dir: str) -> None:
        settings = NSEHparams(
            alg_name="NSE", model_name=given.model, layers=[0], device="cpu", stats_dir=stats_dir
        )
        self.model, self.tokenizer, _ = load_model(settings)
        self.theirs = copy.deepcopy(self.model)
        self.session = EditSession.of(self.model, self.tokenizer)
        layout = self.session.layout
        self.layers, self.last = given.layers, layout.n_layers - 1
        self.requests = read_data(given.data, given.edits, 0)
        self.stats_dir = stats_dir
        self.contexts = self.session.untouched.contexts(settings)
        source = given.statistics or SETTINGS["mom2_dataset"]
        self.moments = second_moments(
            layout, self.tokenizer, self.layers, source=source, n_samples=N_SAMPLES,
            stats_dir=stats_dir,
        )  # fmt: skip
        for layer, moment in self.moments.items():
            write_npz(stats_dir, layout, layer, moment)
        self.source = source
        self.losses: dict[tuple[str, str], list[float | None]] = {}
        """Of the values of the last round, by method and optimizer."""
        self.rows = {layer: layout.down_name(layer) for layer in self.layers}

    def ours(self, method: str, **changes: Any) -> Callable[[], None]:
        """One round of this package."""
        kind = METHODS[method].hparams
        values = settings_of(method, self.layers, self.last) | changes
        if "mom2_dataset" in values:
            values |= {"mom2_dataset": self.source, "stats_dir": self.stats_dir}
        hparams = kind(alg_name=method, model_name="side by side", device="cpu", **values)

        def run() -> None:
            record = METHODS[method].edit_round(self.session, self.requests, hparams)
            losses = [outcome.z_loss for outcome in record.outcomes]
            self.losses[method, changes.get("v_optimizer", "")] = losses

        return run

    def easyedit(self, method: str) -> Callable[[], None]:
        """The same round by EasyEdit's function."""
        name, function = HOST[method]
        module = importlib.import_module(f"easyeditor.models.{name}")
        values = settings_of(method, self.layers, self.last)
        texts = [f"{text}{{}}" for text in self.contexts]
        host = SimpleNamespace(
            **values, **self._templates(), alg_name=method, model_name="llama", device=0,
            fact_token="subject_last", layer_selection="all", stats_dir=self.stats_dir,
            P_loc="there is none", context_template_length_params=[[5, 10]],
        )  # fmt: skip
        host.device = "cpu"
        if "mom2_dataset" in values:
            host.mom2_dataset = self.source
        host.__dict__.setdefault("batch_size", 1)
        requests = [
            {"case_id": r.case_id, "prompt": r.prompt if method != "FT" else r.text,
             "subject": r.subject, "target_new": r.target_new}
            for r in self.requests
        ]  # fmt: skip

        def run() -> None:
            module.CONTEXT_TEMPLATES_CACHE = ["{}", *texts] if method == "ROME" else [["{}"], texts]
            for cache in ("cache_c_new", "P_loaded"):
                if hasattr(module, cache):
                    setattr(module, cache, False)
            for group in [[r] for r in requests] if method in ("ROME", "FT") else [requests]:
                getattr(module, function)(self.theirs, self.tokenizer, group, host)

        return run

    def published(self) -> Callable[[], None]:
        """NSE by its published code."""
        root = os.environ["NSE_ROOT"]
        sys.path.insert(0, root)
        sys.modules["rome.layer_stats"] = stub = ModuleType("rome.layer_stats")
        stub.layer_stats = stub.get_cov = None  # what it would compute is handed to it
        before = os.getcwd()
        os.chdir(root)  # it reads globals.yml from the working folder
        try:
            module = importlib.import_module("nse.nse_main")
        finally:
            os.chdir(before)
        _blocks_give_tuples(sys.modules["util.nethook"])
        gpt2 = self.session.layout.model_type == "gpt2"
        host = SimpleNamespace(
            **settings_of("NSE", self.layers, self.last), **self._templates(),
            model_name="gpt2-xl" if gpt2 else "Llama3-8B", fact_token="subject_last",
            layer_selection="all", alpha=0.0, upper_bound=1e9, max_iterations=2,
            neuron_threshold=1.001,
        )  # fmt: skip
        name = self.theirs.config._name_or_path.replace("/", "_")
        for layer, moment in self.moments.items():
            key = (name, host.rewrite_module_tmp.format(layer))
            module.COV_CACHE[key] = moment.mean
        module.CONTEXT_TEMPLATES_CACHE = [["{}"], [f"{text}{{}}" for text in self.contexts]]
        requests = [
            {"case_id": r.case_id, "prompt": r.prompt, "subject": r.subject,
             "target_new": {"str": r.target_new}}
            for r in self.requests
        ]  # fmt: skip
        d_ff = self.session.layout.d_ff

        def run() -> None:
            previous = torch.zeros(len(self.layers), d_ff, d_ff)
            with CudaIsCpu():
                module.apply_nse_to_model(
                    self.theirs, self.tokenizer, requests, host, cache_c=previous
                )

        return run

    def put_back(self) -> None:
        """Undo what the last turn wrote."""
        self.session.undo_all()
        originals = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, parameter in self.theirs.named_parameters():
                if name in self.rows.values():
                    parameter.copy_(originals[name])

    def _templates(self) -> dict[str, str]:
        templates = self.session.layout.templates()
        embedding, head = self.theirs.get_input_embeddings(), self.theirs.get_output_embeddings()
        if head.weight is embedding.weight:  # a tied head is found by the name of the embedding
            names = {module: name for name, module in self.theirs.named_modules()}
            templates["lm_head_module"] = names[embedding]
        return templates


def main() -> None:
    """Print a line per implementation and method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 5, 6, 7, 8])
    parser.add_argument("--statistics", help="source of the second moments; default factbook")
    parser.add_argument("--edits", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=["NSE", "MEMIT", "ROME", "AlphaEdit"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, one thread")
    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(given, folder)
        turns: dict[tuple[str, str], Callable[[], None]] = {}
        host = checkout.find() if os.environ.get(checkout.ROOT_VARIABLE) else None
        if host is not None:
            checkout.load(host)
            print(host)
        for method in given.methods:
            turns[method, "ours"] = setup.ours(method)
            if method in SPREAD:
                turns[method, "polyak"] = setup.ours(
                    method, v_optimizer="polyak", v_num_grad_steps=POLYAK_STEPS
                )
            if host is not None and method in HOST:
                turns[method, "EasyEdit"] = setup.easyedit(method)
            if method == "NSE" and os.environ.get("NSE_ROOT"):
                turns[method, "published"] = setup.published()
        layout = setup.session.layout
        rate = matrix_rate(layout.d_model, layout.d_ff, 128, clock=time.process_time)
        print(f"{rate / 1e9:.1f} GFLOP per CPU second in large matrix products")
        floors = {}
        for turn in (turn for turn in turns if turn[1] in OURS):  # warms up, too
            with FlopCounterMode(display=False) as counter:
                turns[turn]()
            floors[turn] = counter.get_total_flops() / rate
            setup.put_back()
        cpu = dict.fromkeys(turns, 0.0)
        wall = dict.fromkeys(turns, 0.0)
        for _ in range(given.repeats):
            for turn, run in turns.items():
                start, began = time.process_time(), time.perf_counter()
                with contextlib.redirect_stdout(io.StringIO()):
                    run()
                cpu[turn] += time.process_time() - start
                wall[turn] += time.perf_counter() - began
                setup.put_back()
        edits = given.edits * given.repeats
        for method, who in turns:
            mine = cpu[method, "ours"]
            line = f"{method:10} {who:10} {cpu[method, who] / edits:8.3f} CPU-s per edit  "
            line += f"{wall[method, who] / edits:8.3f} s  {cpu[method, who] / mine:6.2f} x ours"
            if who in OURS:
                floor = floors[method, who]
                line += f"  {cpu[method, who] / given.repeats / floor:.2f} x floor"
                line += f" ({floor / given.edits:.2f} CPU-s)"
            losses = setup.losses.get((method, "" if who == "ours" else who))
            if losses and method != "FT" and who in OURS:
                line += f"  loss of values {fmean(filter(None, losses)):.3f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
