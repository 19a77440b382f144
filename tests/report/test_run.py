"""What is shown of a run, against what its files hold."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from nse_plugin import cli
from nse_plugin.errors import DataError
from nse_plugin.hparams import LoRAHparams
from nse_plugin.report import run_tables as tables
from nse_plugin.report.kinds import kinds_table
from nse_plugin.report.run import Run
from nse_plugin.report.run_figures import run_pictures
from nse_plugin.report.run_page import run_page, run_tables
from nse_plugin.report.theme import LIGHT
from nse_plugin.runs.reading import RunFiles
from nse_plugin.runs.undo import undo_round
from nse_plugin.session import ledger_files, queries
from nse_plugin.session.ledger_files import load_round, save_round
from tests.runs.runs import hparams, requests, scheduler
from tests.runs.test_scheduler import editor


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three rounds of two edits, some neurons only, all edits measured after 2 and 3."""
    folder = tmp_path_factory.mktemp("run")
    settings = hparams(folder, neuron_threshold=0.5)
    assert scheduler(folder, hparams=settings).run().status == "complete"
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run1")


def lines(folder):
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def rows(table):
    return [dict(zip(table.heads, row)) for row in table.rows]


def test_scores_are_those_of_the_lines(made):
    run = Run(made)
    assert run.status == "complete" and run.planned == 6
    for line in lines(made):
        for name in ("efficacy", "locality"):
            assert run.scores.loc[line["round"], name] == line["scores"][name]
    points = [line for line in lines(made) if line["measurement"]]
    assert list(run.overall_scores.index) == [line["round"] for line in points]
    for line in points:
        shown = run.overall_scores.loc[line["round"]]
        assert shown["perplexity"] == line["measurement"]["perplexity"]
        assert shown["efficacy"] == line["measurement"]["all"]["efficacy"]
        for row in line["measurement"]["retention"]:
            assert run.retention.loc[row["edited"], line["round"]] == row["efficacy"]
    assert run.retention.isna().sum().sum() == 1  # round 3 was not there after round 2


def test_frequency_and_layers(made):
    run, ledger = Run(made), RunFiles(made).ledger
    for row in rows(tables.layers_table(run)):
        layer = int(row["layer"])
        sets = [set(record.neurons(layer).tolist()) for record in ledger]
        written = [sum(n in s for s in sets) for n in range(24)]
        assert run.frequency.loc[layer].tolist() == pytest.approx([w / 3 for w in written])
        assert int(row["written"]) == sum(w > 0 for w in written)
        assert int(row["more than once"]) == sum(w > 1 for w in written)
        pairs = {(a, b): len(sets[a] & sets[b]) / len(sets[a] | sets[b])
                 for a, b in ((0, 1), (0, 2), (1, 2))}  # fmt: skip
        assert float(row["mean overlap"]) == pytest.approx(sum(pairs.values()) / 3, abs=0.005)
        assert row["highest overlap"].startswith(f"{max(pairs.values()):.2f} (rounds ")
        change = sum(write.change(24) for record in ledger for write in record.writes_to(layer))
        assert float(row["norm"]) == pytest.approx(float(change.norm()), rel=1e-3)
    assert 0 < run.frequency.to_numpy().mean() < 1


def test_rounds_and_requests(made):
    run, ledger = Run(made), RunFiles(made).ledger
    for row, record in zip(rows(tables.rounds_table(run)), ledger):
        assert int(row["neurons"]) == sum(len(record.neurons(n)) for n in (0, 1))
        assert float(row["norm, layer 1"]) == pytest.approx(record.norms()[1], rel=1e-3)
        outcomes = [row[name] for name in ("converged", "falls short", "left out")]
        assert sum(map(int, outcomes)) == int(row["edits"]) == 2
    worst = rows(tables.worst_requests(run, most=4))
    outcomes = [o for record in ledger for o in record.outcomes if o.status == "residual_left"]
    outcomes.sort(key=lambda o: -o.residual_after)
    assert [row["request"] for row in worst][: len(outcomes)] == [
        str(o.case_id) for o in outcomes[:4]
    ]
    (became, wrote) = tables.request_tables(run, "2")
    assert became.rows[0][:2] == ("2", "2") and {row[0] for row in wrote.rows} == {"2"}


def test_kinds_of_score_by_age(made):
    """Means over edits, from the lines of the run."""
    run = Run(made)
    rows = {row[0]: row[1:] for row in kinds_table(run).rows}
    after = [line["scores"]["efficacy_tokens"] for line in run.lines for _ in range(line["edits"])]
    last = run.final["measurement"]
    first, *_, newest = last["retention"]
    wanted = [sum(after) / len(after), last["all"]["efficacy_tokens"]]
    wanted += [first["efficacy_tokens"], newest["efficacy_tokens"]]
    assert rows["tokens, teacher-forced"] == tuple(f"{100 * value:.1f}" for value in wanted)
    assert rows["free text is it"][1] == f"{100 * last['generation']['exact']:.1f}"
    assert "also when negated" not in rows and "negated" not in kinds_table(run).note


def test_spans_of_rounds():
    assert [tables._spans(v) for v in ((), (3,), (1, 2), (1, 2, 3, 5, 7, 8))] == [
        "–", "3", "1-2", "1-3, 5, 7-8",
    ]  # fmt: skip


def test_every_picture_has_words_and_can_be_drawn(made):
    pictures = run_pictures(Run(made))
    names = [picture.name for picture in pictures]
    assert names == ["scores", "overall", "locality", "retention", "ledger", "writes", "overlap",
                     "norm", "capacity"]  # fmt: skip
    for picture in pictures:
        assert len(picture.alt) > 40 and picture.caption and "nan" not in picture.alt
        picture.draw(LIGHT).canvas.draw()


def test_a_run_that_is_at_work(folder):
    """No final.json, a line cut off, the file of the next round there already."""
    (folder / "final.json").unlink()
    path = folder / "rounds.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    before = {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    run = Run(folder)
    assert run.status == "unfinished" and run.ledger.numbers() == [1, 2] and len(run.lines) == 2
    assert ("edits", "4 of 6 in 2 rounds") in tables.overview(run).rows
    assert list(run.retention.columns) == [2]
    (left,) = [picture for picture in run_pictures(run) if picture.name == "retention"]
    assert left.caption == "What is left of each round's edits after round 2."
    assert left.draw(LIGHT).axes[0].lines[0].get_xdata().tolist() == [1, 2]
    run_page(run).html()
    assert before == {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_one_round_and_no_round(folder, tmp_path):
    path = folder / "rounds.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    for later in ("final.json", "round-0002.safetensors", "round-0003.safetensors"):
        (folder / later).unlink()
    run = Run(folder)
    assert [table.caption for table in run_tables(run)][2] == "Rounds"
    assert rows(tables.layers_table(run))[0]["mean overlap"] == "–"
    assert not {"norm", "capacity"} & {picture.name for picture in run_pictures(run)}  # a point
    run_page(run).html()
    path.unlink()
    with pytest.raises(DataError, match="has no finished round yet"):
        Run(folder)


def test_facts_have_their_answers_and_the_worst_come_first(folder):
    answers = json.loads((folder / "final.json").read_text())["measurement"]["answers"]
    assert [row["case_id"] for row in answers] == list(range(6))
    answers[4]["exact"] = True
    final = json.loads((folder / "final.json").read_text())
    final["measurement"]["answers"] = answers[:5]
    (folder / "final.json").write_text(json.dumps(final))
    facts = Run(folder).facts
    assert [(f.case_id, f.outcome) for f in facts] == [
        *((number, "not in effect") for number in range(4)), (5, "not asked"), (4, "in effect"),
    ]  # fmt: skip
    asked, table = requests()[0], rows(tables.facts_table(Run(folder), most=1, width=200))
    assert table == [
        {"prompt": asked.text, "old answer": asked.ground_truth, "new answer": asked.target_new,
         "answer at the end": answers[0]["answer"], "outcome": "not in effect", "round": "1",
         "request": "0"}
    ]  # fmt: skip
    undo_round(folder, 1)  # any answer may be another one now
    run = Run(folder)
    assert [(f.case_id, f.outcome) for f in run.facts] == [
        (5, "not asked"), (2, "not tested"), (3, "not tested"), (4, "not tested"),
        (0, "undone"), (1, "undone"),
    ]  # fmt: skip
    assert run.facts[1].state == "not tested since round 1 was undone"
    table = tables.facts_table(run)
    assert rows(table)[1]["answer at the end"] == "–"
    assert "not asked since round 1 was undone" in table.note


def test_facts_outside_the_sample_of_answers_have_their_outcomes(folder):
    final = json.loads((folder / "final.json").read_text())
    measured = final["measurement"]
    measured["each"] = [
        {"round": row["round"], "case_id": row["case_id"], "efficacy": row["case_id"] % 2}
        for row in measured["answers"]
    ]
    measured["answers"] = measured["answers"][:1]
    (folder / "final.json").write_text(json.dumps(final))
    found = {fact.case_id: fact for fact in Run(folder).facts}
    assert [found[number].outcome == "in effect" for number in range(1, 6)] == [
        True, False, True, False, True,
    ]  # fmt: skip
    assert found[0].answer is not None and found[1].answer is None


def test_an_undone_round_is_named_and_left_out(folder):
    undo_round(folder, 2)
    run = Run(folder)
    assert run.ledger.numbers() == [1, 3] and list(run.survey.overlaps[None].index) == [1, 3]
    said = "round 2; all edits were last measured before round 2 was undone"
    assert said in tables.overview(run).text()
    for number in (1, 3):
        undo_round(folder, number)
    run = Run(folder)
    assert not run.ledger and "no round is active" in tables.overview(run).text()
    assert "Neurons" not in [section.title for section in run_page(run).sections]


def test_a_method_of_the_host_has_scores_only(tmp_path):
    scheduler(tmp_path, subject=editor(), hparams=None).run()
    run = Run(tmp_path)
    assert not run.ledger and len(run.scores) == 3 and run.method == "STUB"
    names = {picture.name for picture in run_pictures(run)}
    assert names == {"scores", "overall", "locality", "retention"}
    assert "Retention" in run_page(run).html()


def test_a_run_that_collapsed(folder):
    stop = {"rule": "min_retention", "value": 0.1, "bound": 0.5, "action": "undo"}
    final = json.loads((folder / "final.json").read_text())
    (folder / "final.json").write_text(json.dumps({**final, "status": "collapsed", "stop": stop}))
    text = tables.overview(Run(folder)).text()
    assert "collapsed" in text and "min_retention was 0.1, bound 0.5" in text


def test_a_method_that_writes_no_neurons(tmp_path):
    settings = LoRAHparams(
        alg_name="LoRA", model_name="tiny", target_modules=["c_attn"], num_steps=2
    )
    scheduler(tmp_path / "run", hparams=settings).run()
    plots, page = tmp_path / "plots", tmp_path / "page.html"
    written = ["--plot", str(plots), "--html", str(page)]
    assert cli.main(["inspect", str(tmp_path / "run"), *written]) == 0
    assert "Requests" in page.read_text() and "Neurons" not in page.read_text()
    assert (plots / "scores.png").exists()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("manifest.json", "manifest.json is damaged"),
        ("final.json", "final.json is damaged"),
        ("rounds.jsonl", "line 1 of .*rounds.jsonl is damaged"),
        ("round-0001.safetensors", "round-0001.safetensors is not a whole round file"),
    ],
)
def test_damage_is_named(folder, file, message, capsys):
    (folder / file).write_text("{{\n{{\n")
    with pytest.raises(DataError, match=message):
        run_page(Run(folder))
    assert cli.main(["inspect", str(folder)]) == 1
    assert "nse: " in capsys.readouterr().err


def test_a_flipped_bit_is_named_by_every_reader(folder, capsys):
    path = folder / "round-0002.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    assert cli.main(["inspect", str(folder)]) == 1
    assert "round-0002.safetensors is damaged: its checksum" in capsys.readouterr().err
    with pytest.raises(DataError, match="round-0002.safetensors is damaged: its checksum"):
        list(RunFiles(folder).ledger)
    assert cli.main(["undo", str(folder), "--round", "2"]) == 0  # which leaves it out
    assert cli.main(["inspect", str(folder)]) == 0


def test_a_page_does_not_replace_a_file_of_the_run(folder, capsys):
    final = (folder / "final.json").read_bytes()
    assert cli.main(["inspect", str(folder), "--html", str(folder / "final.json")]) == 1
    assert "final.json exists and is no HTML page" in capsys.readouterr().err
    assert (folder / "final.json").read_bytes() == final


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(schema=2), "has schema 2, and this version reads 5; use the version"),
        (dict(made_by="nse demo"), "made by 'nse demo'"),
        (dict(run=5), "manifest.json is damaged: run is 5, not Identity"),
        (dict(contexts=None), "contexts is None, not list"),
    ],
)
def test_other_manifests_are_refused(folder, change, message):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        Run(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(file="x"), "line 2 of .* is damaged: file is 'x', not int | None"),
        (dict(measurement=5), "line 2 of .* is damaged: measurement is 5"),
        (dict(sha256=7), "sha256 is 7, not str | None"),
    ],
)
def test_a_line_of_other_types_is_damage(folder, change, message):
    path = folder / "rounds.jsonl"
    found = lines(folder)
    found[1] |= change
    path.write_text("".join(json.dumps(line) + "\n" for line in found))
    with pytest.raises(DataError, match=message.replace("|", r"\|")):
        Run(folder)


def test_each_round_file_is_read_once(folder, monkeypatch, no_drawings):
    reads, real = [], ledger_files.load_round
    monkeypatch.setattr(
        ledger_files, "load_round", lambda path, *rest: reads.append(path) or real(path, *rest)
    )
    run_page(Run(folder)).html()
    assert sorted(path.name[6:10] for path in reads) == ["0001", "0002", "0003"]
    reads.clear()
    run = Run(folder)
    for table in run_tables(run):
        table.text()
    assert len(reads) == 3
    reads.clear()
    queries.neurons(run.ledger, 1)
    assert len(reads) == 3


def test_a_neuron_that_one_round_changed(folder):
    """The table of a neuron against a planted change."""
    record = load_round(folder / "round-0002.safetensors")
    write = next(w for w in record.writes if w.layer == 1)
    write.left.zero_()
    write.right.zero_()
    write.left[0, 1], write.right[1, 0] = 3.0, 5.0
    _, sha256 = save_round(folder, record)
    found = lines(folder)
    found[1]["sha256"] = sha256
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    run = Run(folder)
    neuron = int(write.neurons[0])
    found = [r for r in rows(tables.neuron_table(run, 1, neuron)) if r["round"] == "2"]
    assert found[0]["norm"] == found[0]["norm of the round"] == "15"
    assert found[0]["request"] == str(write.case_ids[1])
    assert torch.tensor(run.survey.columns[1].loc[2, neuron]).item() == pytest.approx(15)
