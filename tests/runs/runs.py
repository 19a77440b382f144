"""A tiny run: a random model with few parameters, requests with probes of every kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from nse_plugin.evaluation.protocol import Protocol
from nse_plugin.requests import EditRequest, Probe
from nse_plugin.runs.reading import RunFiles
from nse_plugin.runs.scheduler import SequentialScheduler
from nse_plugin.session.session import EditSession
from tests.tiny import bits, some_requests, tiny_hparams, tiny_model, tiny_tokenizer

HELD_OUT = ("Mara Voss lives in Tellin by the sea.", "The capital of Ostrell is Garn.")
SMALL = dict(n_embd=16, n_inner=24, n_layer=2, n_head=2)


def requests(n: int = 6) -> list[EditRequest]:
    """Edits with a true answer, paraphrases, locality and portability; the sixth asks anew."""
    plain = some_requests(6)
    found = []
    for i, r in enumerate(plain):
        neighbour = plain[(i + 1) % 6]
        found.append(
            EditRequest(
                i,
                r.prompt,
                r.subject,
                r.target_new,
                ground_truth=plain[(i + 2) % 6].target_new,
                rephrase_prompts=(f"I think that {r.text}", f"Therefore {r.text}"),
                locality={
                    "neighborhood": (
                        Probe(neighbour.text, "Tellin"),
                        Probe("The old bridge is", "closed"),
                    )
                },
                portability={"one_hop": (Probe(f"{r.subject} is a", "doctor"),)},
                forms={"reversal": (Probe(f"{r.target_new} is where we find", r.subject),)},
            )
        )
    return found[:n]


def protocol(**changes) -> Protocol:
    settings = dict(every=2, generation=3, generation_tokens=4, fluency=0, retention=100)
    return Protocol(**{**settings, **changes})


def hparams(folder: Path, **changes):
    settings = dict(
        layers=[0, 1], v_num_grad_steps=3, mom2_adjustment=False, n_contexts=1, context_length=3,
        max_iterations=1, stats_dir=str(folder / "stats"),
    )  # fmt: skip
    return tiny_hparams(**{**settings, **changes})


def session(family: str = "gpt2", device: str = "cpu", **changes) -> EditSession:
    sizes = SMALL if family == "gpt2" else {}
    model = tiny_model(family, **{**sizes, **changes}).to(device)
    found = EditSession.of(model, tiny_tokenizer())
    found.kept = model  # a session does not keep its model alive
    return found


def scheduler(folder: Path, stream=None, **changes) -> SequentialScheduler:
    settings = dict(
        round_size=2,
        protocol=protocol(),
        run_dir=folder,
        hparams=hparams(folder),
        held_out=HELD_OUT,
    )
    subject = changes.pop("subject", None) or session()
    stream = requests() if stream is None else stream
    return SequentialScheduler(subject, stream, **{**settings, **changes})


def interrupt(scheduler: SequentialScheduler, after: int) -> None:
    """Run, and interrupt the run after this many rounds."""
    rounds = iter(range(1, after + 1))

    def listener(event, facts):
        if event == "round" and next(rounds) == after:
            raise KeyboardInterrupt

    scheduler._listeners = (*scheduler._listeners, listener)
    with pytest.raises(KeyboardInterrupt):
        scheduler.run()


def weights(scheduler: SequentialScheduler):
    """All parameters, by name."""
    return bits(scheduler.backend.model)


def same_run(one: str | Path, other: str | Path) -> bool:
    """Whether two finished runs measured the same, times aside."""
    first, second = (
        comparable([list(files.lines), files.final]) for files in (RunFiles(one), RunFiles(other))
    )
    return first == second


def same_round_files(one: Path, other: Path) -> bool:
    """Whether two runs have the same files of rounds, to the bit, times aside."""
    names = [sorted(p.relative_to(run) for p in run.rglob("round-*")) for run in (one, other)]
    return names[0] == names[1] != [] and all(
        _round_file(one / name) == _round_file(other / name) for name in names[0]
    )


def _round_file(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What a file of a round says, times aside, and its tensors' bytes with dtype and shape."""
    with safe_open(path, "pt") as file:
        metadata = {key: json.loads(text) for key, text in file.metadata().items()}
    tensors = {
        name: f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + tensor.numpy().tobytes()
        for name, tensor in load_file(path).items()
    }
    return comparable(metadata), tensors


def comparable(value: Any, but: tuple[str, ...] = ("seconds", "sha256")) -> Any:
    """A line, manifest or result without what differs from run to run: times, hashes of files."""
    if isinstance(value, dict):
        return {k: comparable(v, but) for k, v in value.items() if k not in but}
    return [comparable(item, but) for item in value] if isinstance(value, list) else value
