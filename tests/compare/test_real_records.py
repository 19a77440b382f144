"""Real records through readers, every method and all metrics, on a tiny random model."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import yaml

from nse_plugin import cli
from nse_plugin.compare.comparison import exit_code
from nse_plugin.data import atlas
from nse_plugin.data.readers import read_records
from nse_plugin.hparams.yaml_files import find_yaml
from nse_plugin.methods.registry import find_method
from nse_plugin.session.ledger_files import load_rounds
from tests.compare.grids import arguments, comparison, quiet
from tests.contract.records import shared
from tests.tiny import tiny_model, tiny_tokenizer

RECORDS = 8
METHODS = "NSE,MEMIT,ROME,AlphaEdit,FT,LoRA,GRACE,NSE+OVERTONE"
FILES = ["counterfact_200.json", "zsre_200.json"]
PROTOCOL = dict(every=0, each=True, locality=3, generation=10, generation_tokens=4, fluency=1,
                weights=True, key_space=16)  # fmt: skip
"""Every metric there is, over few texts where they are generated."""
LONGEST = 512
"""Tokens of the tiny model's context: its tokenizer knows 300 entries, so texts are long."""
STATUSES = {"converged", "residual_left", "out_of_bounds"}
ALWAYS = ("efficacy", "efficacy_tokens", "efficacy_nll", "paraphrase_nll", "locality")
"""What every one of these records has probes for."""


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    """A tiny model in a folder, and every method's shipped settings with few steps."""
    folder = tmp_path_factory.mktemp("world")
    tiny_model("gpt2", n_layer=3, n_positions=LONGEST).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    text = folder / "text.txt"
    text.write_text("\n".join(atlas.corpus()[:50]), encoding="utf-8")
    for method in METHODS.split(",")[:-1]:
        values = yaml.safe_load(find_yaml(f"{method}/atlas-gpt2").read_text(encoding="utf-8"))
        changes = dict(v_num_grad_steps=3, n_contexts=1, context_length=3, num_steps=2, n_iter=1,
                       alpha=0.01, clamp_norm_factor=4.0, mom2_dataset=str(text),
                       mom2_n_samples=50, stats_dir=str(folder / "statistics"), batch_size=50,
                       inner_params=["transformer.h[1].mlp.c_fc.weight"])  # fmt: skip
        known = {f.name for f in fields(find_method(method).hparams)}
        values |= {key: value for key, value in changes.items() if key in known}
        path = folder / "hparams" / method / "tiny.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", FILES)
def test_every_method_edits_real_records(small_world, tmp_path, name):
    path = shared(name)
    ids = {request.case_id for request in read_records(path, limit=RECORDS)}
    assert len(ids) == RECORDS
    made = comparison(
        small_world, tmp_path / "out", methods=METHODS, data=str(path), limit=RECORDS, rounds=2,
        seeds="0",
    )  # fmt: skip
    made = replace(made, settings=replace(made.settings, protocol=PROTOCOL))
    result = made.run(quiet)
    assert exit_code(result) == 0, [cell["run_info"] for cell in result["cells"]]
    assert len(result["cells"]) == 1 + len(METHODS.split(","))
    for cell, found in zip(made.cells(), result["cells"], strict=True):
        assert {entry["case_id"] for entry in found["each"]} == ids, str(cell)
        for entry in found["each"]:
            assert all(math.isfinite(entry[score]) for score in ALWAYS), (str(cell), entry)
            assert all(v is None or isinstance(v, str) or math.isfinite(v) for v in entry.values())
        if not cell.untouched:
            rounds = load_rounds(sorted(cell.run_dir.glob("round-*.safetensors")))
            statuses = {o.case_id: o.status for record in rounds for o in record.outcomes}
            assert set(statuses) == ids and set(statuses.values()) <= STATUSES, str(cell)


def test_real_records_by_the_command(small_world, tmp_path, capsys, no_drawings):
    given = arguments(
        small_world, tmp_path / "out", methods="FT", rounds=2, seeds="0", limit=20,
        data=str(shared("counterfact_easyedit_200.json")),
    )  # fmt: skip
    assert cli.main(["compare", *given]) == 0
    assert "FT" in capsys.readouterr().out
    assert (tmp_path / "out" / "report.html").is_file()
