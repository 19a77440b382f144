"""What OVERTONE's loss costs beside cross entropy, forward and backward, at two vocabularies.

Beside it stands what surrounds a loss in training: the matrix product of the output head, and a
whole step of a small model (6 layers of width 512).

    python benchmarks/overtone_overhead.py [--tokens 64] [--repeats 9] [--device cpu]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from nse_plugin.hparams.overtone import SETTINGS
from nse_plugin.objectives.overtone import Overtone

VOCABULARIES = (32_000, 128_256)
WIDTH = 512
FULL = Overtone(**SETTINGS["LoRA"])
UNFILTERED, ONE_HOT = replace(FULL, filter=False), replace(FULL, lambda_=1.0)
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross entropy": lambda logits, targets: F.cross_entropy(logits, targets),
    "OVERTONE": lambda logits, targets: FULL(logits, targets).train.mean(),
    "OVERTONE, no filter": lambda logits, targets: UNFILTERED(logits, targets).train.mean(),
    "OVERTONE, lambda 1": lambda logits, targets: ONE_HOT(logits, targets).train.mean(),
}


def milliseconds(call: Callable[[], None], repeats: int, device: torch.device) -> float:
    """Median time of a call, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return 1e3 * median(times[1:])


def like_a_models(tokens: int, vocab: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Logits [tokens, vocab] with a few likely tokens each, and targets of which half are known."""
    torch.manual_seed(0)
    logits = 2.5 * torch.randn(tokens, vocab)
    targets = torch.randint(0, vocab, (tokens,))
    logits[torch.arange(tokens), targets] += torch.tensor([12.0, 4.0]).repeat(tokens)[:tokens]
    return logits.to(device), targets.to(device)


def loss_step(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor
) -> Callable[[], None]:
    """Forward and backward of a loss alone."""

    def step() -> None:
        leaf = logits.detach().requires_grad_(True)
        loss(leaf, targets).backward()

    return step


def head_step(tokens: int, vocab: int, device: torch.device) -> Callable[[], None]:
    """The output head's product and the way back to its input."""
    head = torch.randn(vocab, WIDTH, device=device)
    hidden = torch.randn(tokens, WIDTH, device=device)
    out = torch.randn(tokens, vocab, device=device)

    def step() -> None:
        leaf = hidden.detach().requires_grad_(True)
        (leaf @ head.T).backward(out)

    return step


def model_step(tokens: int, vocab: int, device: torch.device) -> Callable[[], None]:
    """Forward and backward of the model without any loss, gradients for the layers' weights."""
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=6,
        num_attention_heads=8,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(device)
    model.lm_head.weight.requires_grad_(False)
    model.model.embed_tokens.weight.requires_grad_(False)
    ids = torch.randint(0, vocab, (max(1, tokens // 16), 16), device=device)
    out = torch.randn(*ids.shape, vocab, device=device)

    def step() -> None:
        model(input_ids=ids, use_cache=False).logits.backward(out)

    return step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    print(f"{options.tokens} target tokens, {device}, {torch.get_num_threads()} thread(s), ms\n")
    print("| vocabulary | " + " | ".join(LOSSES) + " | output head | 6-layer model | "
          "extra, of a model step |")  # fmt: skip
    print("|---" * (len(LOSSES) + 4) + "|")
    for vocab in VOCABULARIES:
        logits, targets = like_a_models(options.tokens, vocab, device)
        times = [
            milliseconds(loss_step(loss, logits, targets), options.repeats, device)
            for loss in LOSSES.values()
        ]
        around = [
            milliseconds(build(options.tokens, vocab, device), options.repeats, device)
            for build in (head_step, model_step)
        ]
        extra = (times[1] - times[0]) / (times[0] + around[1])
        shown = " | ".join(f"{value:.1f}" for value in (*times, *around))
        print(f"| {vocab} | {shown} | {extra:+.1%} |")


if __name__ == "__main__":
    main()
