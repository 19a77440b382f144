"""A run YAML with mistakes is refused before anything is loaded, all of them by name."""

from __future__ import annotations

import pytest

from nse_plugin.cli.app import main
from nse_plugin.errors import HparamsError
from nse_plugin.runs.settings import DemoSettings, RunSettings
from nse_plugin.runs.start import read_hparams


@pytest.mark.parametrize("line, message", [
    ("limit: ten", "limit is 'ten'; it must be a whole number"),
    ("protocol: 5", "protocol is 5; it must be a group"),
    ("protocol: {every: often}", "protocol.every is 'often'; it must be a whole number"),
    ("stop: [1]", "stop is [1]; it must be a group"),
    ("stop: {on_colapse: undo}", "unknown key 'stop.on_colapse'; did you mean 'on_collapse'"),
    ("every: often", "protocol.every is 'often'; it must be a whole number"),
    ("every: 2\nprotocol: {every: 3}", "every is given alone and as protocol.every; leave one"),
    ("on_colapse: undo", "unknown key 'on_colapse'"),
    ("order: groupd", "order is 'groupd'; it must be one of 'given', 'shuffled', 'grouped'; did"),
    ("device: [0]", "device is [0]"),
])  # fmt: skip
def test_wrong_values(tmp_path, line, message, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(line)
    assert main(["run", "--config", str(path)]) == 1
    assert f"nse: {path}: {message}" in capsys.readouterr().err


def test_three_mistakes_are_three_clear_lines(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("hparams: NSE/atlas-gpt2\nlimit: ten\nprotocol: {evry: 2}\nround_size: 0\n")
    assert main(["run", "--config", str(path)]) == 1
    assert capsys.readouterr().err.splitlines()[1:] == [
        "  - limit is 'ten'; it must be a whole number of at least 1 or null",
        "  - unknown key 'protocol.evry'; did you mean 'every'?",
        "  - round_size is 0; it must be a whole number of at least 1",
    ]


def test_a_method_given_twice_is_one_mistake(capsys):
    given = ["run", "--hparams", "NSE/atlas-gpt2", "--method", "NSE", "--data", "atlas:4"]
    assert main(given) == 1
    found = capsys.readouterr().err
    assert found == "nse: hparams is 'NSE/atlas-gpt2' and method is 'NSE'; leave one out\n"


def test_a_gpu_may_be_a_number_in_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("hparams: NSE/atlas-gpt2\ndata: atlas:4\ndevice: 0\nround_size: 1e1\n")
    settings = RunSettings.read(path, {})
    assert settings.device == 0 and settings.round_size == 10


def test_rounds_of_a_demo_are_not_empty():
    with pytest.raises(HparamsError, match="rounds is 5; give 1 to 4"):
        DemoSettings(edits=4, rounds=5)
    with pytest.raises(HparamsError, match="edits is -1"):
        DemoSettings(edits=-1)


def test_settings_of_another_model_are_named(caplog):
    read_hparams("NSE/gpt2-xl", model_name="/models/gpt2-xl")
    read_hparams("NSE/atlas-gpt2", model_name="atlas:gpt2")
    assert not caplog.text
    read_hparams("NSE/gpt2-xl", model_name="org/other")
    assert "NSE/gpt2-xl is tuned for the model" in caplog.text and "'org/other'" in caplog.text


def test_a_file_has_each_option_by_its_own_name(tmp_path):
    path = tmp_path / "run.yaml"
    alone = {"every": 2, "on_collapse": "stop", "max_perplexity": 5, "min_retention": 0.5}
    lines = [f"{key}: {value}" for key, value in alone.items()]
    lines += ["hparams: NSE/atlas-gpt2", "data: atlas:4", "protocol: {generation: 3}"]
    path.write_text("\n".join(lines))
    settings = RunSettings.read(path, {"stop": {"min_retention": 0.7}})
    assert settings.protocol == {"every": 2, "generation": 3}
    assert settings.stop == {"on_collapse": "stop", "max_perplexity": 5, "min_retention": 0.7}
