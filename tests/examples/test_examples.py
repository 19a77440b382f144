"""The example scripts, run in an empty folder."""

from __future__ import annotations

import io
import json
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from nse_plugin.data import atlas

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))
NO_YAML = "no hparams file 'NSE/atlas-gtp2'; did you mean 'NSE/atlas-gpt2'"


def output_of(folder: Path, script: str, *arguments: object) -> str:
    """What a script prints, run in this process, where torch is imported already."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as shown:
        patch.chdir(folder)
        patch.setenv("NSE_PLUGIN_HOST", "embedded")
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    return shown.getvalue()


def test_all_scripts_are_tested():
    assert SCRIPTS == ["edit_a_stream.py", "edit_one_fact.py", "neurons.py", "run_nse_editing.py"]


def test_one_fact(tmp_path):
    lines = output_of(tmp_path, "edit_one_fact.py").splitlines()
    after = next(number for number, line in enumerate(lines) if line.startswith("after"))
    assert lines[0].startswith("before") and "exact match: no" in lines[1]
    assert "exact match: yes, token accuracy 100%" in lines[after + 1]


def test_a_stream(tmp_path):
    out = output_of(tmp_path, "edit_a_stream.py", "--ds_size", 4, "--round_size", 2)
    rows = [line.split("|") for line in out.splitlines() if line[:5].strip().isdigit()]
    assert rows[-1][0].split()[1] == "4"
    assert all(float(row[1].split()[0]) == 0 for row in rows)  # new facts before: not known
    assert all(float(row[2].split()[0]) == 100 for row in rows)  # after
    assert float(rows[-1][3].split()[0]) == 100  # all so far: retention
    assert float(rows[-1][4]) > 95  # others
    end = out[out.index("the last round is undone") :].splitlines()
    assert end[0].endswith(f"{len(rows) - 1} rounds are active")
    assert end[1].endswith("exact 0.0") and end[2].endswith("exact 100.0")


def test_sequential_editing_of_the_embedded_facts(tmp_path):
    out = output_of(
        tmp_path, "run_nse_editing.py", "--ds_size", 3, "--output_dir", "out/a", "--sequential_edit"
    )
    path = tmp_path / "out" / "a" / "atlas-gpt2-results.json"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    results = json.loads(path.read_text(encoding="utf-8"))
    info, means = results["run_info"], results["means"]
    assert (info["host"], info["sequential_edit"], info["edits"]) == ("embedded", True, 3)
    assert info["hparams"]["model_name"] == "atlas:gpt2"
    assert [case["case_id"] for case in results["cases"]] == [0, 1, 2]
    assert list(means) == ["before", "after its own edit", "after the last edit"]
    assert means["before"]["rewrite"]["exact"] == 0 < means["before"]["rewrite"]["tokens"]
    for column in ("after its own edit", "after the last edit"):
        assert means[column]["rewrite"] == {"tokens": 1.0, "exact": 1.0}
        assert means[column]["locality.neighborhood"]["exact"] > 0.8
    for metric in means["after the last edit"]:
        assert metric in out


def test_a_file_of_another_schema_with_edits_taken_back(tmp_path):
    """KnowEdit's flat fields, alone in a folder; the second record has no probes."""
    first, second = (record["requested_rewrite"] for record in atlas.edit_set(2))
    records = [
        {"subject": r["subject"], "prompt": r["prompt"].format(r["subject"]),
         "target_new": r["target_new"]["str"], "ground_truth": r["target_true"]["str"]}
        for r in (first, second)
    ]  # fmt: skip
    probe = {"prompt": second["prompt"].format(second["subject"]), "ground_truth": [["x"]]}
    records[0]["locality"] = {"Relation_Specificity": [probe]}
    records[1]["locality"] = {}
    data = tmp_path / "one-file"
    data.mkdir()
    (data / "facts.json").write_text(json.dumps(records), encoding="utf-8")
    output_of(tmp_path, "run_nse_editing.py", "--data_dir", data, "--output_dir", "out/b")
    results = json.loads((tmp_path / "out" / "b" / "atlas-gpt2-results.json").read_text())
    assert list(results["means"]) == ["before", "after its own edit"]
    assert results["means"]["after its own edit"]["rewrite"]["exact"] == 1
    assert [len(case["post"]["locality"]) for case in results["cases"]] == [2, 0]


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name != "neurons.py"])
def test_each_script_shows_its_usage(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert capsys.readouterr().out.startswith(f"usage: {script}")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("edit_one_fact.py", ["NSE/atlas-gtp2"], NO_YAML),
        ("edit_a_stream.py", ["--hparams_dir", "NSE/atlas-gtp2"], NO_YAML),
        ("edit_a_stream.py", ["--round_size", "0"], "--round_size 0; give numbers above 0"),
        ("run_nse_editing.py", ["--hparams_dir", "NSE/atlas-gtp2"], NO_YAML),
        ("run_nse_editing.py", ["--ds_size", "0"], "--ds_size is 0; give a number of edits"),
        ("run_nse_editing.py", ["--data_dir", "not/there.json"], "no file 'not/there.json'"),
        ("run_nse_editing.py", ["--data_dir", "empty"], "with 0 JSON files (none); name one"),
        ("run_nse_editing.py", ["--data_dir", "two"], "2 JSON files (a.json, b.jsonl); name one"),
        ("run_nse_editing.py", ["--output_dir", "two/a.json"], "two/a.json cannot be made"),
    ],
)
def test_what_each_script_refuses(tmp_path, monkeypatch, script, arguments, message, capsys):
    """In one line, which Python shows where the script ends with it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NSE_PLUGIN_HOST", "embedded")
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    Path("empty").mkdir()
    Path("two").mkdir()
    for name in ("a.json", "b.jsonl"):
        Path("two", name).write_text("[]", encoding="utf-8")
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    line = str(caught.value.code)
    assert line.startswith(f"{script}: ") and message in line and "\n" not in line
    said = capsys.readouterr().err.splitlines()
    assert [text for text in said if "Loading weights" not in text] == []
