"""Cost of evaluation: tokens computed over tokens needed, and CPU seconds per probe.

    python benchmarks/evaluation.py [--model smollm2-135m] [--data earth:20]

Needed are the tokens of each prompt, once for all of its answers, and all but the last of each
answer.  The second line scores the same pairs without sharing, in batches cut by size alone.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from unittest import mock

import torch

from nse_plugin.data.models import load_model
from nse_plugin.data.streams import read_data
from nse_plugin.evaluation.metrics import ask
from nse_plugin.evaluation.settings import Protocol
from nse_plugin.hparams import NSEHparams
from nse_plugin.model import answers
from nse_plugin.model.prompts import EncodedPrompt, micro_batches


def main() -> None:
    """Score the same probes both ways and print both lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="atlas:gpt2")
    parser.add_argument("--data", default="atlas:200")
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = NSEHparams(alg_name="NSE", model_name=given.model, layers=[0], device="cpu")
    model, tokenizer, _ = load_model(settings)
    requests = read_data(given.data, None, 0)
    computed = 0

    def count(_module: torch.nn.Module, _args: tuple, kwargs: dict) -> None:
        nonlocal computed
        computed += kwargs["input_ids"].numel()

    model.register_forward_pre_hook(count, with_kwargs=True)
    shared_rows, needed = answers._rows, 0

    def counting_rows(pairs: Sequence[EncodedPrompt]) -> list[answers._Row]:
        nonlocal needed
        needed += tokens_needed(pairs)
        return shared_rows(pairs)

    def own_rows(pairs: Sequence[EncodedPrompt]) -> list[answers._Row]:
        return [answers._Row(pair.ids[:-1], [index]) for index, pair in enumerate(pairs)]

    def cut_by_size(
        order: Sequence[int], _widths: Sequence[int], sizes: Sequence[int], token_budget: int
    ) -> list[list[int]]:
        return [list(order[run]) for run in micro_batches(sizes, token_budget)]

    for name, changes in {
        "shared prompts, little padding": {"_rows": counting_rows},
        "neither": {"_rows": own_rows, "alike_batches": cut_by_size},
    }.items():
        computed, began = 0, time.process_time()
        with mock.patch.multiple(answers, **changes):
            answered = ask(model, tokenizer, requests, Protocol())
        seconds = time.process_time() - began
        probes = sum(len(items) for entry in answered for items in entry.values())
        print(
            f"{name}: {probes} probes, {computed / needed:.2f} tokens computed per token needed, "
            f"{1000 * seconds / probes:.2f} CPU-ms per probe"
        )


def tokens_needed(pairs: Sequence[EncodedPrompt]) -> int:
    """The tokens that a model has to read if each prompt is computed once for all its answers."""
    begun: dict[tuple[int, ...], set[tuple[int, ...]]] = defaultdict(set)
    for pair in pairs:
        prompt, answer = pair.ids[: pair.n_prompt], pair.ids[pair.n_prompt :]
        begun[prompt].update(answer[:length] for length in range(1, len(answer)))
    return sum(len(prompt) + len(answers) for prompt, answers in begun.items())


if __name__ == "__main__":
    main()
