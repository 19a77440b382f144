"""Make the data and models of the embedded world: ``python -m benchmarks.atlas.build``.

Everything follows from the seeds in `world.py` and `PLANS`. Both models train at the same time,
each in a process with one thread, so that the weights do not depend on the number of cores. The
same torch on the same kind of CPU reproduces them bit by bit; elsewhere rounding differs, and the
trained weights differ slightly. Takes 7 to 15 minutes on 2 idle cores.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.atlas.records import make_records
from benchmarks.atlas.text import (
    END_ID,
    MAX_LENGTH,
    PAD_ID,
    encode,
    save_tokenizer,
    train_tokenizer,
)  # fmt: skip
from benchmarks.atlas.training import TrainingPlan, train
from benchmarks.atlas.world import (
    Sentence,
    fact_sentences,
    make_world,
    training_sentences,
    two_step_sentences,
)  # fmt: skip
from nse_plugin.data.atlas import CORPUS_FILE, FACTS_FILE, MODELS
from nse_plugin.model.answers import score_answers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

VOCAB_SIZE = 1024  # larger, names become single tokens, and facts move away from the subject
PLANS = {"gpt2": TrainingPlan(), "llama": TrainingPlan()}
SHAPE = {"width": 192, "blocks": 6, "heads": 6, "kv_heads": 2}
NEURONS = {"gpt2": 768, "llama": 576}  # the gated MLP has three matrices instead of two


def new_model(name: str, seed: int) -> PreTrainedModel:
    """An untrained model of the family `name`. Attention is eager: the fastest here on CPU."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    special = {"bos_token_id": END_ID, "eos_token_id": END_ID, "pad_token_id": PAD_ID}
    if name == "gpt2":
        config = GPT2Config(
            vocab_size=VOCAB_SIZE, n_positions=MAX_LENGTH, n_embd=SHAPE["width"],
            n_layer=SHAPE["blocks"], n_head=SHAPE["heads"], n_inner=NEURONS[name],
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            activation_function="gelu_pytorch_tanh", attn_implementation="eager", **special,
        )  # fmt: skip
        return GPT2LMHeadModel(config)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, max_position_embeddings=MAX_LENGTH, hidden_size=SHAPE["width"],
        num_hidden_layers=SHAPE["blocks"], num_attention_heads=SHAPE["heads"],
        num_key_value_heads=SHAPE["kv_heads"], intermediate_size=NEURONS[name],
        tie_word_embeddings=True, attn_implementation="eager", **special,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def recall(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[Sentence]
) -> float:
    """Share of the sentences whose whole answer greedy decoding gives."""
    prompts = [s.text[: -len(s.answer) - 2] for s in sentences]
    answers = [s.answer for s in sentences]
    return statistics.mean(score_answers(model, tokenizer, prompts, answers).exact)


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware, which makes training 3x faster."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def build_model(name: str, folder: Path, use_bfloat16: bool) -> dict[str, float]:
    """Train the model `name`, write it and its tokenizer to `folder`, return its recall scores."""
    from tqdm import tqdm
    from transformers import AutoModelForCausalLM, AutoTokenizer

    world = make_world()
    sentences = training_sentences(world)
    tokenizer = train_tokenizer([s.text for s in sentences], VOCAB_SIZE)
    plan = PLANS[name]
    model = new_model(name, plan.seed)
    with tqdm(desc=f"atlas-{name}", unit="step", position=MODELS.index(name)) as bar:

        def show(step: int, total: int, loss: float) -> None:
            bar.total = total
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

        train(model, encode(tokenizer, sentences), plan, use_bfloat16, show)
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes for the owner only
    save_tokenizer(tokenizer, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    loaded = AutoTokenizer.from_pretrained(folder)
    return {
        "facts": recall(model, loaded, fact_sentences(world)),
        "facts, held-out phrasings": recall(model, loaded, fact_sentences(world, held_out=True)),
        "two steps": recall(model, loaded, two_step_sentences(world)),
        "two steps, never told": recall(model, loaded, two_step_sentences(world, silent=True)),
    }


def build_data(folder: Path) -> None:
    """Write the training sentences, one per line, and all records as a JSON list."""
    world = make_world()
    sentences = [s.text for s in training_sentences(world)]
    tokenizer = train_tokenizer(sentences, VOCAB_SIZE)
    records = make_records(world, lambda answer: tokenizer.encode(answer).ids[0])
    folder.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(r, ensure_ascii=False) for r in records)
    (folder / FACTS_FILE.name).write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    (folder / CORPUS_FILE.name).write_text("\n".join(sentences) + "\n", encoding="utf-8")
    log.info("%d facts, %d sentences", len(records), len(sentences))


def _replace(source: Path, target: Path) -> None:
    """Put `source` in place of `target`; an interrupted build leaves the old one complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    os.replace(source, target)


def _build_side_by_side(out: Path, precision: str) -> int:
    """Run this module once per model, all at the same time; 0 if all succeed."""
    command = [sys.executable, "-m", "benchmarks.atlas.build", "--out", str(out)]
    runs = [
        subprocess.Popen([*command, "--precision", precision, "--model", name]) for name in MODELS
    ]
    return max(run.wait() for run in runs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the build; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.atlas.build",
        description="Rebuild the facts and the models of the embedded world.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=FACTS_FILE.parents[1],
        help="folder for data/ and weights/ (default: the package)",
    )
    parser.add_argument("--model", choices=MODELS, help="only this model, without data/")
    parser.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="auto: bfloat16 products where the CPU has them",
    )
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.out, prefix=".build-") as scratch:
        if options.model is None:
            build_data(Path(scratch) / "data")
            _replace(Path(scratch) / "data", options.out / "data")
            return _build_side_by_side(options.out, options.precision)
        torch.set_num_threads(1)
        use_bfloat16 = options.precision == "bfloat16" or (
            options.precision == "auto" and has_fast_bfloat16()
        )
        folder = Path(scratch) / f"atlas-{options.model}"
        scores = build_model(options.model, folder, use_bfloat16)
        text = "; ".join(f"{k} {v:.1%}" for k, v in scores.items())
        log.info("%s: recall of %s", folder.name, text)
        _replace(folder, options.out / "weights" / folder.name)
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    raise SystemExit(main())
