"""Seconds per edit of one NSE round, against a plain loop, as a ratio in one run.

The plain loop does one request at a time, its contexts as one padded batch, and every pass is a
full forward with logits everywhere, as in published locate-then-edit code.  It stops when ours
stops and writes the same weights to rounding (both checked here), so the ratio is speed alone.

    python benchmarks/edit_speed.py [--edits 100] [--models gpt2 llama] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import replace

import torch

from nse_plugin import NSEHparams
from nse_plugin.data import atlas
from nse_plugin.data.models import load_model
from nse_plugin.data.readers import parse_records
from nse_plugin.methods.nse import edit_round
from nse_plugin.model.hooks import quiet
from nse_plugin.model.layout import first_tensor
from nse_plugin.model.prompts import TokenBatch, encode_prompt, encode_request
from nse_plugin.session.session import EditSession


def plain_value(session, request, contexts, hparams):
    """z of one request by full passes over all of its rows; returns z and the steps taken."""
    layout, tokenizer = session.layout, session.tokenizer
    rows = [encode_request(tokenizer, request, c, with_target=True) for c in ("", *contexts)]
    rows.append(
        encode_prompt(tokenizer, f"{request.subject} is a", subject=(0, len(request.subject)))
    )
    batch = TokenBatch.of([r.ids[:-1] if r.n_target else r.ids for r in rows], "cpu")
    lookup = torch.tensor([r.subject_last for r in rows])
    every = torch.arange(len(rows))
    n_target = rows[0].n_target
    starts = torch.tensor([r.n_prompt - 1 for r in rows[:-1]])
    reads = starts[:, None] + torch.arange(n_target)
    targets = torch.tensor(rows[0].target_ids).expand(len(rows) - 1, -1)
    delta = torch.zeros(layout.d_model, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=hparams.v_lr)
    base = essence = None

    def add_delta(_module, _args, output):
        nonlocal base
        hidden = first_tensor(output).clone()
        if base is None:
            base = hidden[0, lookup[0]].detach().clone()
        hidden[every, lookup] += delta
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = layout.blocks[hparams.layers[-1]].register_forward_hook(add_delta)
    try:
        for step in range(hparams.v_num_grad_steps):
            logits = session.model(**batch.model_inputs(), use_cache=False).logits
            log_p = logits.log_softmax(-1)
            picked = log_p[every[:-1, None], reads].gather(2, targets[..., None])
            at_essence = log_p[-1, lookup[-1]]
            if essence is None:
                essence = at_essence.detach()
            loss = (
                -picked.mean()
                + hparams.kl_factor * (at_essence.exp() * (at_essence - essence)).sum()
                + hparams.v_weight_decay * delta.norm() / base.norm() ** 2
            )
            if loss < hparams.v_stop_loss or step == hparams.v_num_grad_steps - 1:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            bound = hparams.clamp_norm_factor * base.norm()
            with torch.no_grad():
                if delta.norm() > bound:
                    delta *= bound / delta.norm()
    finally:
        handle.remove()
    return (base + delta).detach(), step + 1


def plain_keys(session, request, contexts, layer, z_layer):
    """Key at a layer and h at the z-layer of one request, by full passes."""
    layout, tokenizer = session.layout, session.tokenizer
    rows = [encode_request(tokenizer, request, c) for c in ("", *contexts)]
    batch = TokenBatch.of([r.ids for r in rows], "cpu")
    at = (torch.arange(len(rows)), torch.tensor([r.subject_last for r in rows]))
    found = {}
    hooks = [
        layout.down(layer).register_forward_pre_hook(lambda _m, args: found.update(k=args[0][at])),
        layout.blocks[z_layer].register_forward_hook(
            lambda _m, _args, output: found.update(h=first_tensor(output)[at])
        ),
    ]
    with torch.no_grad():
        session.model(**batch.model_inputs(), use_cache=False)
    for hook in hooks:
        hook.remove()
    return 0.5 * found["k"][0] + 0.5 * found["k"][1:].mean(dim=0), found["h"][0]


def plain_round(session, requests, contexts, covariances, hparams):
    """One round, all neurons, without anything shared between requests; returns the steps."""
    layout, z_layer = session.layout, hparams.layers[-1]
    found = [plain_value(session, request, contexts, hparams) for request in requests]
    z = torch.stack([value for value, _ in found])
    for _ in range(hparams.max_iterations):
        h = [plain_keys(session, r, contexts, z_layer, z_layer)[1] for r in requests]
        active = ((z - torch.stack(h)).norm(dim=1) > hparams.alpha).nonzero()[:, 0].tolist()
        if not active:
            break
        for i, layer in enumerate(hparams.layers):
            pairs = [plain_keys(session, requests[j], contexts, layer, z_layer) for j in active]
            keys = torch.stack([key for key, _ in pairs], dim=1).double()
            residual = (z[active] - torch.stack([h for _, h in pairs])).double().T
            system = hparams.mom2_update_weight * covariances[layer].double() + keys @ keys.T
            change = residual / (len(hparams.layers) - i) @ torch.linalg.solve(system, keys).T
            with torch.no_grad():
                layout.down(layer).weight += layout.to_weight(change).float()
    for layer in hparams.layers:  # the previous keys of a next round
        for request in requests:
            plain_keys(session, request, contexts, layer, z_layer)
    return [steps for _, steps in found]


def measure(name: str, edits: int) -> dict:
    """Time both on one model."""
    hparams = NSEHparams.from_hparams(f"NSE/atlas-{name}")
    model, tokenizer, _ = load_model(replace(hparams, device="cpu"))
    assert hparams.neuron_threshold == 1.0  # plain_round writes all neurons
    session = EditSession.of(model, tokenizer)
    requests = parse_records(atlas.edit_set(edits, seed=0))
    contexts = session.untouched.contexts(hparams)
    covariances = session.untouched.covariances(hparams)  # once per model, so not part of an edit
    names = [session.layout.down_name(layer) for layer in hparams.layers]
    original = [model.get_parameter(n).detach().clone() for n in names]
    edit_round(session, requests[:2], hparams)  # warm up
    session.undo_all()

    start = time.perf_counter()
    record = edit_round(session, requests, hparams)
    ours = time.perf_counter() - start
    edited = [model.get_parameter(n).detach().clone() for n in names]
    session.undo_all()

    start = time.perf_counter()
    with quiet(model):
        steps = plain_round(session, requests, contexts, covariances, hparams)
    plain = time.perf_counter() - start
    return {
        "model": name,
        "edits": edits,
        "ours_s_per_edit": ours / edits,
        "plain_s_per_edit": plain / edits,
        "ratio": plain / ours,
        "mean_steps": sum(steps) / edits,
        "steps_equal": steps == [outcome.z_steps for outcome in record.outcomes],
        "weights_difference": max(
            float((w - model.get_parameter(n)).norm() / (w - w0).norm())
            for n, w, w0 in zip(names, edited, original)
        ),
        "seconds": record.seconds,
    }


def main() -> None:
    """Print one JSON object per model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--models", nargs="+", default=list(atlas.MODELS))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": options.threads,
        "results": [measure(name, options.edits) for name in options.models],
    }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
