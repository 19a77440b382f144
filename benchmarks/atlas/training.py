"""Training of the small models, with an attention mask that decides where they store facts.

Locate-then-edit methods assume that a decoder looks a fact up at the last token of the subject, in
its lower blocks, and that later tokens read it there. Large models trained on much text do so by
themselves; a small one trained on a few thousand sentences may as well read the name's pieces from
anywhere. So a part of the training sentences is *narrowed*: up to block `lookup_layer` the
subject sees only itself and nobody sees the subject; above it, the subject's last token is the only
one of its tokens that others see. What the model knows about the subject must then be at that token
after block `lookup_layer`. The other sentences are trained without any of this, and nothing of it
remains in the saved model, which is a plain GPT-2 or Llama.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn import functional

from benchmarks.atlas.text import END_ID, PAD_ID, Encoded, pack


@dataclass(frozen=True)
class TrainingPlan:
    """How one model is trained."""

    epochs: int = 16
    """Passes over all sentences."""
    row: int = 64
    """Tokens per row; several sentences about different subjects share a row."""
    batch: int = 32
    """Rows per step."""
    peak_lr: float = 2e-3
    """Learning rate after the warm-up; falls to a twentieth along a cosine."""
    weight_decay: float = 0.15
    """AdamW decay of matrices; biases and norms have none."""
    lookup_layer: int = 2
    """Index of the block after which a narrowed subject has to hold its facts."""
    narrowed: float = 0.5
    """Share of the sentences that are narrowed."""
    other_weight: float = 0.25
    """Weight of tokens that are no answer; an answer token weighs 1."""
    seed: int = 0
    """Seed of the initial weights and of the order of sentences."""


@dataclass
class Batch:
    """Rows as tensors: ids and loss weights [b, t], additive masks [b, 1, t, t]."""

    ids: torch.Tensor
    weights: torch.Tensor
    low_mask: torch.Tensor
    high_mask: torch.Tensor


def make_batch(rows: Sequence[Sequence[Encoded]], plan: TrainingPlan, rng: random.Random) -> Batch:
    """Lay the sentences of each row one after another and build both attention masks."""
    shape = (len(rows), plan.row)
    ids = torch.full(shape, PAD_ID)
    weights = torch.zeros(shape)
    span = torch.full(shape, -1)  # index of the sentence, on the subject tokens of narrowed ones
    inner = torch.zeros(shape, dtype=torch.bool)  # narrowed subject tokens except the last
    for r, row in enumerate(rows):
        at = 0
        for s, sentence in enumerate(row):
            end = at + len(sentence.ids)
            ids[r, at:end] = torch.tensor(sentence.ids)
            weights[r, at:end] = plan.other_weight
            weights[r, at + sentence.answer : end] = 1.0
            if rng.random() < plan.narrowed:
                span[r, at + sentence.first : at + sentence.last + 1] = s
                inner[r, at + sentence.first : at + sentence.last] = True
            at = end
        ids[r, at] = END_ID
        weights[r, at] = plan.other_weight
    weights[:, 0] = 0
    subject = span >= 0
    apart = span[:, :, None] != span[:, None, :]
    future = torch.ones(plan.row, plan.row, dtype=torch.bool).triu(1)
    low = future | (apart & (subject[:, :, None] | subject[:, None, :]))
    high = future | (apart & inner[:, None, :])
    low_mask, high_mask = (
        torch.zeros(m.shape).masked_fill(m, torch.finfo(torch.float32).min)[:, None]
        for m in (low, high)
    )
    return Batch(ids, weights, low_mask, high_mask)


@contextmanager
def masked_attention(model: torch.nn.Module, plan: TrainingPlan) -> Iterator[Callable]:
    """Yields a function that sets the masks of the next forward pass; removes its hooks at exit."""
    current: dict[str, torch.Tensor] = {}

    def hook_for(name: str) -> Callable:
        def hook(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            return args, {**kwargs, "attention_mask": current[name]}

        return hook

    def use(batch: Batch) -> None:
        current.update(low=batch.low_mask, high=batch.high_mask)

    named = model.named_modules()  # blocks from the lowest up
    attention = [m for name, m in named if name.rpartition(".")[-1] in ("attn", "self_attn")]
    handles = [
        module.register_forward_pre_hook(
            hook_for("low" if i <= plan.lookup_layer else "high"), with_kwargs=True
        )
        for i, module in enumerate(attention)
    ]
    try:
        yield use
    finally:
        for handle in handles:
            handle.remove()


def loss_of(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Weighted mean of the next-token losses."""
    logits = model(input_ids=batch.ids, use_cache=False).logits[:, :-1].float()
    losses = functional.cross_entropy(
        logits.flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none"
    )
    weights = batch.weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def make_optimizer(model: torch.nn.Module, plan: TrainingPlan) -> torch.optim.AdamW:
    """AdamW with decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": plan.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.peak_lr, betas=(0.9, 0.98), fused=True)


def learning_rate(plan: TrainingPlan, step: int, total: int) -> float:
    """Linear warm-up over 3% of the steps, then a cosine to a twentieth of the peak."""
    warm_up = max(1, round(0.03 * total))
    if step < warm_up:
        return plan.peak_lr * (step + 1) / warm_up
    done = (step - warm_up) / max(1, total - warm_up)
    return plan.peak_lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def train(
    model: torch.nn.Module,
    sentences: Sequence[Encoded],
    plan: TrainingPlan,
    use_bfloat16: bool = False,
    on_step: Callable[[int, int, float], None] = lambda step, total, loss: None,
) -> None:
    """Train `model` in place; `on_step` is called with (step, total, loss) after every step."""
    rng = random.Random(plan.seed)
    epochs = [pack(sentences, plan.row, rng) for _ in range(plan.epochs)]
    batches = [rows[i : i + plan.batch] for rows in epochs for i in range(0, len(rows), plan.batch)]
    optimizer = make_optimizer(model, plan)
    model.train()
    with masked_attention(model, plan) as use_masks:
        for step, rows in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(plan, step, len(batches))
            batch = make_batch(rows, plan, rng)
            use_masks(batch)
            with torch.autocast("cpu", torch.bfloat16, enabled=use_bfloat16):
                loss = loss_of(model, batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            on_step(step, len(batches), loss.item())
    model.eval()
