"""The cost of an NSE round on a GPU.

    python -m benchmarks.gpu [--out gpu.md]

First come the tests marked ``cuda``, then rounds of 1, 10 and 100 edits of a model of Llama 3 8B's
shapes with random weights, which needs no download.  Prints a Markdown table, a row per round:
seconds per edit, by part; the highest memory of the device; and the time of the values over their
floor, which is their floating-point operations at the rate of one large product on the device.

The model and the statistics are random, so what is measured is time and memory, and every value
takes all of its steps.  It can be tried anywhere:

    python -m benchmarks.gpu --device cpu --dtype float32 --layers 2 --d-model 64 --d-ff 128 \
        --heads 4 --kv-heads 2 --vocab 1024 --edited 0 1 --rounds 1 3 --steps 2
"""

from __future__ import annotations

import argparse
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.shared import SENTENCES, matrix_rate, synchronise
from nse_plugin import EditSession, NSEHparams
from nse_plugin.data import atlas
from nse_plugin.data.readers import parse_records
from nse_plugin.methods import spread
from nse_plugin.methods.nse import edit_round
from nse_plugin.requests import EditRequest

ROOT = Path(__file__).parents[1]
PARTS = ("values", "keys", "solve", "write")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a test failed."""
    given = options(arguments)
    failed = 0
    if given.device.startswith("cuda") and not given.no_tests:
        tests = ["-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", "tests"]
        failed = subprocess.run([sys.executable, *tests], cwd=ROOT, check=False).returncode
        print(f"\ntests marked cuda: {'FAILED' if failed else 'passed'}\n", flush=True)
    model, tokenizer = random_model(given)
    session = EditSession.of(model, tokenizer)
    requests = parse_records(atlas.edit_set(max(given.rounds), seed=0))
    hparams = settings(given)
    session.untouched.use_contexts(hparams, SENTENCES)
    covariances = {layer: random_covariance(given, layer) for layer in given.edited}
    with mock.patch.object(session.untouched, "covariances", lambda _hparams: covariances):
        first = edit_round(session, requests[:1], hparams)  # warms up, too
        session.undo_all()
        lines = heading(given, first.seconds["solve"])
        shape = (given.d_model, given.d_ff)
        rate = matrix_rate(*shape, 2048, device=given.device, dtype=given.dtype)
        for size in given.rounds:
            lines.append(row(session, requests[:size], hparams, rate, given.device))
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text, encoding="utf-8")
    return int(bool(failed))


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Shapes are Llama 3 8B's, edited layers those of the paper, unless said otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--d-model", type=int, default=4096)
    parser.add_argument("--d-ff", type=int, default=14336)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--edited", type=int, nargs="+", default=[4, 5, 6, 7, 8])
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 10, 100], help="edits of each")
    parser.add_argument("--steps", type=int, default=25, help="evaluations of a value's loss")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the table here")
    given = parser.parse_args(arguments)
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; try it with --device cpu and small shapes")
    given.dtype = getattr(torch, given.dtype)
    return given


def random_model(given: argparse.Namespace) -> tuple[Any, Any]:
    """A model that is made on the device, so that nothing passes through the CPU; a tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    tokenizer = AutoTokenizer.from_pretrained(atlas.model_dir("llama"))
    config = LlamaConfig(
        hidden_size=given.d_model, intermediate_size=given.d_ff, num_hidden_layers=given.layers,
        num_attention_heads=given.heads, num_key_value_heads=given.kv_heads,
        vocab_size=max(given.vocab, len(tokenizer)),
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(given.device):
        return AutoModelForCausalLM.from_config(config, dtype=given.dtype).eval(), tokenizer


def settings(given: argparse.Namespace) -> NSEHparams:
    """The paper's for Llama 3 8B, without bounds on residuals, which depend on the weights."""
    return NSEHparams(
        alg_name="NSE", model_name="random", layers=given.edited, v_lr=0.1, v_stop_loss=0.0,
        v_num_grad_steps=given.steps, mom2_update_weight=15000, max_iterations=1,
    )  # fmt: skip


def random_covariance(given: argparse.Namespace, layer: int) -> torch.Tensor:
    """A regular C [d_ff, d_ff], float32 in main memory, where a session keeps those of a text."""
    draw = torch.Generator().manual_seed(layer)
    keys = torch.randn(given.d_ff, 64, generator=draw)
    return (keys @ keys.T / 64).fill_diagonal_(2.0 + 1e-3 * given.d_ff)


def row(
    session: EditSession,
    requests: Sequence[EditRequest],
    hparams: NSEHparams,
    rate: float,
    device: str,
) -> str:
    """One round, measured, and once more to count the operations of its values."""
    reset_peak(device)
    start = time.perf_counter()
    record = edit_round(session, requests, hparams)
    synchronise(device)
    seconds = time.perf_counter() - start
    memory = peak(device)
    session.undo_all()
    counter = FlopCounterMode(display=False)

    def counted(*values, **more):
        with counter:
            return compute(*values, **more)

    compute = spread.compute_values
    with mock.patch.object(spread, "compute_values", counted):
        edit_round(session, requests, hparams)
    session.undo_all()
    floor = counter.get_total_flops() / rate
    parts = [f"{record.seconds.get(part, 0.0) / len(requests):.4f}" for part in PARTS]
    cells = [str(len(requests)), f"{seconds / len(requests):.4f}", *parts, f"{memory:.2f}",
             f"{record.seconds['values'] / floor:.2f}"]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def heading(given: argparse.Namespace, factored: float) -> list[str]:
    """What was measured on what, and the head of the table."""
    on_gpu = given.device.startswith("cuda")
    machine = torch.cuda.get_device_name(given.device) if on_gpu else platform.machine()
    heads = ("edits in the round", "s per edit", *PARTS, "peak GiB", "values / floor")
    return [
        f"{machine}, torch {torch.__version__}, {str(given.dtype).removeprefix('torch.')}; "
        f"random weights: {given.layers} layers, d_model {given.d_model}, d_ff {given.d_ff}; "
        f"edited layers {', '.join(map(str, given.edited))}; {given.steps} evaluations of each "
        f"value's loss, {len(SENTENCES)} contexts. Seconds of the parts are per edit. The first "
        f"round, in which the covariances are factored, spent {factored:.2f} s in its solves.",
        "",
        f"| {' | '.join(heads)} |",
        "|" + "---:|" * len(heads),
    ]


def reset_peak(device: str) -> None:
    """Begin to look for the highest memory; of a CPU it is that of the process so far."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: str) -> float:
    """Highest memory in GiB."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30


if __name__ == "__main__":
    sys.exit(main())
