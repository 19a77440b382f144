"""A small comparison on a tiny model that lies in a folder, as a worker process can load it."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from nse_plugin.compare.comparison import Comparison, read_comparison
from nse_plugin.compare.settings import CompareSettings
from nse_plugin.hparams.yaml_files import find_yaml
from tests.runs.runs import comparable, requests
from tests.tiny import tiny_model, tiny_tokenizer

NSE = dict(
    alg_name="NSE", model_name="tiny", layers=[1, 2], v_num_grad_steps=3, v_lr=0.1,
    v_weight_decay=0.05, clamp_norm_factor=4.0, mom2_adjustment=False, n_contexts=1,
    context_length=3, max_iterations=2, alpha=0.01,
)  # fmt: skip


def make_world(folder: Path) -> Path:
    """Model, YAMLs, data and held-out text in a folder."""
    model = tiny_model("gpt2")
    model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    for name, values in {"NSE": NSE, **_others()}.items():
        path = folder / "hparams" / name / "tiny.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
    records = []
    for request in requests(6):
        record = request.to_dict()
        record["case_id"] = request.case_id
        records.append(record)
    (folder / "facts.json").write_text(json.dumps(records), encoding="utf-8")
    (folder / "text.txt").write_text("Anna is a painter.\nThe river of Garn.\n", encoding="utf-8")
    return folder


def _others() -> dict[str, dict]:
    """The shipped settings of other methods, with few steps."""
    found = {}
    for name in ("FT", "LoRA", "GRACE"):
        values = yaml.safe_load(find_yaml(f"{name}/atlas-gpt2").read_text(encoding="utf-8"))
        found[name] = {**values, ("n_iter" if name == "GRACE" else "num_steps"): 2}
    return found


def options(world: Path, out: Path, **changes) -> dict:
    """Options of the command."""
    found = dict(
        methods="NSE,NSE:one-pass", models=f"tiny={world / 'model'}",
        data=str(world / "facts.json"), rounds=3, seeds="0,1", out=str(out), limit=None, order=None,
        schema=None, on_bad_record="stop", known=False, chat=False, every=2, reference=None,
        held_out=str(world / "text.txt"),
        hparams_dir=str(world / "hparams"), device=None, stats_dir=None, engine="serial", jobs=1,
        threads=1, until_collapse=None,
    )  # fmt: skip
    assert set(changes) <= set(found)
    return {**found, **changes}


def arguments(world: Path, out: Path, **changes) -> list[str]:
    """The same as they are written after the command."""
    return [
        part
        for name, value in options(world, out, **changes).items()
        if value is not None and value is not False
        for part in (f"--{name.replace('_', '-')}", str(value))
    ]


def comparison(world: Path, out: Path, **changes) -> Comparison:
    given = options(world, out, **changes)
    every = given.pop("every")
    stop = {"until_collapse": given.pop("until_collapse")}
    groups = {"protocol": {"every": every}, "stop": stop}
    return read_comparison(CompareSettings.read(None, {**given, **groups}))


def quiet(_line: str) -> None:
    """Takes what is meant for people."""


def without_machine(result):
    """What has to be equal on every engine: all but times, memory and machine."""
    return comparable(result, ("seconds", "memory", "meta_info"))
