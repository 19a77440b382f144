"""``nse inspect``, as a user meets it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nse_plugin import cli
from nse_plugin.report.theme import THEMES
from tests.runs.runs import hparams, requests, scheduler

ROOT = Path(__file__).parent.parent.parent
FIGURES = ["capacity", "ledger", "locality", "norm", "overall", "overlap", "retention", "scores",
           "writes"]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect") / "run1"
    scheduler(folder, hparams=hparams(folder, neuron_threshold=0.5)).run()
    return folder


def inspect(*arguments):
    return cli.main(["inspect", *map(str, arguments)])


def test_json_has_the_facts_and_the_tables(run, capsys):
    assert inspect(run, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], len(found["facts"])) == ("complete", 6)
    assert found["facts"][0]["outcome"] in ("not in effect", "in effect")
    assert found["tables"][0]["rows"][0] == {"what": "status", "value": "complete"}


def test_tables(run, capsys):
    assert inspect(run) == 0
    shown = capsys.readouterr().out
    for caption in ("Run ", "Facts (", "Rounds", "Scores of each round's own edits",
                    "Scores of all edits", "Layers", "Worst requests"):  # fmt: skip
        assert f"\n{caption}" in f"\n{shown}"
    assert max(map(len, shown.splitlines())) < 130
    assert sorted(p.name for p in run.parent.iterdir()) == ["run1"]


@pytest.mark.parametrize(
    ("arguments", "captions"),
    [
        (["--layer", 1], ["Layer 1: "]),
        (["--layer", 1, "--neuron", 3], ["Neuron 3 of layer 1: who wrote it"]),
        (["--request", 4], ["Request 4: its outcome", "Request 4: what it wrote"]),
        (["--layer", 0, "--request", 4], ["Layer 0: ", "Request 4: its outcome"]),
    ],
)
def test_what_was_asked_for_only(run, arguments, captions, capsys):
    assert inspect(run, *arguments) == 0
    shown = capsys.readouterr().out
    assert all(caption in shown for caption in captions) and "Rounds" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "gone is not a folder; give the folder of a run or of edits"),
        (["."], "holds no manifest.json; give the folder of a run"),
        (["RUN", "--neuron", 3], "--neuron 3 is a number within a layer; give --layer too"),
        (["RUN", "--layer", 9], "layer is 9, and no round edited it; edited layers: 0, 1"),
        (["RUN", "--layer", 1, "--neuron", 24], "neuron is 24; layer 1 has 0 to 23"),
        (["RUN", "--request", "nobody"], "has a request 'nobody'"),
        (["RUN", "--plot", "file"], "file is a file; give a folder for the figures"),
        (["RUN", "--html", "."], ". is a folder; give a file for the page"),
    ],
)
def test_errors_come_before_anything_is_written(
    run, arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    given = [run if a == "RUN" else a for a in arguments]
    assert inspect(*given) == 1
    shown = capsys.readouterr()
    assert message in shown.err and shown.out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_no_model_is_loaded(run):
    code = f"""
import sys
from nse_plugin import cli
code = cli.main(["inspect", {str(run)!r}])
sys.exit(code or " ".join({{"transformers", "nse_plugin.session.session"}} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_figures_and_page(run, tmp_path, capsys, open_page):
    page, plots = tmp_path / "run1.html", tmp_path / "plots"
    assert inspect(run, "--plot", plots, "--html", page) == 0
    tables, said = capsys.readouterr()
    assert not tables  # they are on the page
    assert [p.stem for p in sorted(plots.iterdir())] == FIGURES
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in plots.iterdir())
    assert said.count("written: ") == len(FIGURES) + 1
    for theme in THEMES:
        for width in (1200, 360):
            opened = open_page(page, scheme=theme.name, width=width)
            assert opened.evaluate("document.documentElement.scrollWidth") == width
            assert opened.page.get_by_role("table").count() >= 8
            assert opened.page.get_by_role("img").count() == len(FIGURES)
            assert opened.complaints == [] and opened.outside() == []


def test_control_characters_of_facts_and_case_ids_are_spelled_out(tmp_path, capsys):
    evil = [
        dataclasses.replace(r, case_id=f"\x1b[31m{r.case_id}", target_new="\x9b2Jfoo")
        for r in requests(2)
    ]
    scheduler(tmp_path / "run", evil).run()
    assert inspect(tmp_path / "run") == 0
    assert inspect(tmp_path / "run", "--request", evil[0].case_id) == 0
    assert inspect(tmp_path / "run", "--request", "\x1b[2Jnobody") == 1
    both = capsys.readouterr()
    assert "\\x1b[31m" in both.out and "\\x1b[2Jnobody" in both.err
    assert not {"\x1b", "\x9b"} & set(both.out + both.err)
