"""The cost of compressing an adapter to a small rank: 100 edits in 10 rounds, both atlas models.

Writes the tables of docs/export.md, between its two marks.

    python benchmarks/export_rank.py [--models atlas:gpt2 atlas:llama] [--ranks 64 32 16 8]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch
from peft import PeftModel

from nse_plugin.data.models import load_model
from nse_plugin.evaluation.model_state import share_given
from nse_plugin.export import to_peft
from nse_plugin.files import write_text
from nse_plugin.runs.demo import Demo
from nse_plugin.runs.reopen import open_run
from nse_plugin.runs.settings import DemoSettings
from nse_plugin.version import __version__

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def scores(demo: Demo, model: torch.nn.Module) -> list[str]:
    """Efficacy, paraphrase and other facts of a model, in percent."""
    tokenizer = demo.session.tokenizer
    sets = [
        [(r.text, r.target_new) for r in demo.requests],
        [(text, r.target_new) for r in demo.requests for text in r.rephrase_prompts],
        [(r.text, str(r.ground_truth)) for r in demo.others],
    ]
    return [f"{100 * share_given(model, tokenizer, *zip(*pairs)):.1f}" for pairs in sets]


@torch.no_grad()
def distance(one: torch.nn.Module, other: torch.nn.Module, demo: Demo) -> float:
    """Largest difference of the logits of two models on the prompts of the edits."""
    worst = 0.0
    for request in demo.requests:
        ids = demo.session.tokenizer(request.text, return_tensors="pt")["input_ids"]
        difference = one(input_ids=ids).logits - other(input_ids=ids).logits
        worst = max(worst, float(difference.abs().max()))
    return worst


def table(demo: Demo, edited: torch.nn.Module, ranks: list[int | None], folder: Path) -> str:
    """One row per rank, in Markdown."""
    name, layers = demo.settings.model, sorted(demo.hparams.layers)
    lines = [
        "| adapter | rank by layer | "
        + " | ".join(f"error, layer {layer}" for layer in layers)
        + " | MB | max logit difference | efficacy % | paraphrase % | other facts % |",
        "|---" * (7 + len(layers)) + "|",
        "| (edited model) | | " + " | ".join("" for _ in layers) + " | | | "
        + " | ".join(scores(demo, edited)) + " |",
    ]  # fmt: skip
    for rank in ranks:
        out = folder / f"rank-{rank}"
        fits = to_peft(demo.session, out, rank=rank)
        clean, *_ = load_model(SimpleNamespace(model_name=name, device="cpu"))
        adapted = PeftModel.from_pretrained(clean, str(out)).eval()
        size = (out / "adapter_model.safetensors").stat().st_size / 1e6
        cells = [
            "exact" if rank is None else f"rank {rank}",
            ", ".join(str(fits[layer].rank) for layer in layers),
            *(f"{fits[layer].relative_error:.2g}" for layer in layers),
            f"{size:.2f}",
            f"{distance(adapted, edited, demo):.2g}",
            *scores(demo, adapted.get_base_model()),  # the adapter is at work in it
        ]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1])
    clean, *_ = load_model(SimpleNamespace(model_name=name, device="cpu"))
    lines.append("| (untouched model) | | " + " | ".join("" for _ in layers) + " | | | "
                 + " | ".join(scores(demo, clean)) + " |")  # fmt: skip
    return "\n".join(lines)


def page_part(model: str, edits: int, rounds: int, ranks: list[int], folder: Path) -> str:
    """The table of one model, below a line about its settings."""
    out = folder / "run"
    demo = Demo(DemoSettings(model, edits, rounds, 0, str(out)), print)
    demo.run()
    edited, demo.session = open_run(out)  # also what `nse export` does
    shape = demo.session.layout
    note = (
        f"{edits} edits in {rounds} rounds with NSE on {model} "
        f"(d_model {shape.d_model}, d_ff {shape.d_ff}), nse_plugin {__version__}, "
        f"torch {torch.__version__}, float32, CPU:"
    )
    return f"{note}\n\n{table(demo, edited, [None, *ranks], folder)}\n"


def main() -> None:
    """Edit, export at each rank, measure, and put the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["atlas:gpt2", "atlas:llama"])
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 32, 16, 8])
    parser.add_argument("--out", type=Path, default=Path("docs/export.md"))
    options = parser.parse_args()
    parts = []
    for model in options.models:
        with tempfile.TemporaryDirectory() as name:
            parts.append(page_part(model, options.edits, options.rounds, options.ranks, Path(name)))
    body = "\n".join(parts)
    page = options.out.read_text(encoding="utf-8")
    head, _, rest = page.partition(BEGIN)
    tail = rest.partition(END)[2]
    write_text(options.out, f"{head}{BEGIN}\n{body}{END}{tail}")


if __name__ == "__main__":
    main()
