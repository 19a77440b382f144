"""What a method of the host is given, and that its cell leaves no trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from nse_plugin.compare.cells import run_cell
from nse_plugin.compare.hosts import _host_values, _with_statistics, changed_since, recipe
from nse_plugin.compare.pool import ModelPool
from nse_plugin.hparams import MEMITHparams
from nse_plugin.runs.identity import as_json
from tests.compare.grids import comparison, without_machine
from tests.tiny import tiny_model


@pytest.mark.parametrize(("family", "head"), [("gpt2", "transformer.wte"), ("llama", "lm_head")])
def test_the_head_is_named_as_its_weight_is_listed(family, head):
    """EasyEdit looks it up there; a YAML of ours may say lm_head where it is tied."""
    given = MEMITHparams(
        alg_name="MEMIT", model_name="tiny", layers=[1, 2], lm_head_module="lm_head"
    )
    model = tiny_model(family)
    values = _host_values(given, model)
    assert values["lm_head_module"] == head
    assert f"{head}.weight" in dict(model.named_parameters())


def test_a_cell_of_the_hosts_own_method(easyedit, world, tmp_path, monkeypatch):
    """It leaves the working folder empty, begins again after an interrupt, and has its settings."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    cell, other = (
        comparison(world, tmp_path / "out", methods=methods, seeds="0").cells()[-1]
        for methods in ("FT", "FT:lr=1e-2")
    )
    first = run_cell(cell, ModelPool())
    assert first["run_info"]["status"] == "complete", first["run_info"]["error"]
    assert first["method_info"]["implementation"] == "EasyEdit"
    assert first["method_info"]["ignored"] and "P_loc" not in first["method_info"]["ignored"]
    (cell.run_dir / "final.json").unlink()
    (cell.run_dir / "rounds.jsonl").write_text("")
    again = run_cell(cell, ModelPool())
    assert without_machine(again) == without_machine(first)
    assert Path.cwd() == here and not list(here.iterdir())
    assert changed_since(cell, first["method_info"]) == []
    assert changed_since(other, first["method_info"]) == ["lr was 0.0005, is 0.01"]


def test_statistics_of_a_cell_have_an_absolute_place(world, tmp_path, monkeypatch):
    """A cell may run in another folder.  What EasyEdit's own methods keep is not for the cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NSE_PLUGIN_CACHE", str(tmp_path / "cache"))

    def place(**settings) -> str:
        made = comparison(world, tmp_path / "out", methods="MEMIT+OVERTONE", **settings)
        return recipe(made.cells()[-1]).hparams.base.stats_dir

    assert place() == str(tmp_path / "cache" / "stats")
    assert place(stats_dir="mine") == str(tmp_path / "mine")
    given = MEMITHparams(alg_name="MEMIT", model_name="tiny", layers=[1])
    hosts = _with_statistics(given, None, hosts_own=True)
    assert hosts.stats_dir == str(tmp_path / "data" / "stats")
    assert given.stats_dir == "./data/stats"


@pytest.mark.parametrize("loss", ["", "+OVERTONE"])
def test_any_gpu_is_the_same_setting_and_the_cpu_is_another(world, tmp_path, loss):
    def cell(device):
        made = comparison(world, tmp_path / "out", methods=f"NSE{loss}", device=device)
        return made.cells()[-1]

    def kept(device):
        hparams = as_json(recipe(cell(device)).hparams)
        return {"implementation": "nse_plugin", "hparams": hparams}

    for one in ("0", "1", "cuda", "cuda:0"):
        assert changed_since(cell("cuda"), kept(one)) == []
    told = changed_since(cell("cuda"), kept("cpu"))
    assert {each.removeprefix("base.") for each in told} == {"device was 'cpu', is 'cuda'"}


@pytest.mark.parametrize("loss", ["", "+OVERTONE"])
def test_a_field_that_is_newer_than_a_result_had_its_default(world, tmp_path, loss):
    made = comparison(world, tmp_path / "out", methods=f"NSE:max_iterations=3{loss}")
    cell = made.cells()[-1]
    kept = {"implementation": "nse_plugin", "hparams": as_json(recipe(cell).hparams)}
    values = kept["hparams"].get("base", kept["hparams"])
    del values["neuron_threshold"], kept["hparams"]["max_length"]
    assert changed_since(cell, kept) == []
    del values["max_iterations"]
    (told,) = changed_since(cell, kept)
    assert told.removeprefix("base.") == "max_iterations was 2, is 3"
