"""A comparison's YAML: lists or commas, all mistakes at once, options override it."""

from __future__ import annotations

import pytest

from nse_plugin.cli.app import main
from nse_plugin.compare.comparison import read_comparison
from nse_plugin.compare.settings import PROTOCOL, CompareSettings
from nse_plugin.errors import HparamsError


def test_lists_and_commas_are_the_same(tmp_path):
    path = tmp_path / "compare.yaml"
    path.write_text(
        "methods: [NSE, 'NSE:p=0.6', MEMIT]\nmodels: [atlas:gpt2, atlas:llama]\nseeds: [0, 1]\n"
        "data: earth:30\nprotocol: {generation: 7}\n"
    )
    made = read_comparison(CompareSettings.read(path, {"rounds": 3, "protocol": {"every": 2}}))
    options = {"methods": "NSE,NSE:p=0.6,MEMIT", "models": "atlas:gpt2,atlas:llama", "seeds": "0,1"}
    same = read_comparison(
        CompareSettings(
            **options, data="earth:30", rounds=3, protocol={"every": 2, "generation": 7}
        )
    )
    assert made == same and [spec.name for spec in made.methods] == ["NSE", "NSE:p=0.6", "MEMIT"]
    assert made.settings.data == "earth:30" and made.settings.order == "given"
    assert made.settings.protocol == {**PROTOCOL, "every": 2, "generation": 7}
    assert read_comparison(CompareSettings(methods="NSE", seeds=4)).seeds == [4]


def test_all_mistakes_of_the_file_are_named(tmp_path, capsys):
    path = tmp_path / "compare.yaml"
    path.write_text("methds: NSE\nrounds: 0\nprotocol: {evry: 1}\nseeds: {a: 1}\njobs: two\n")
    assert main(["compare", "--config", str(path)]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"nse: {path}: 5 mistakes")
    for part in ("'methds'; did you mean 'methods'", "rounds is 0", "'protocol.evry'",
                 "seeds is {'a': 1}", "jobs is 'two'"):  # fmt: skip
        assert part in told


def test_what_cannot_be_compared():
    with pytest.raises(HparamsError, match="methods is missing; give --methods"):
        CompareSettings()
    with pytest.raises(HparamsError, match=r"protocol\.retention is 0"):
        CompareSettings(methods="NSE", protocol={"retention": 0})
