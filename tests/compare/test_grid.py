"""A whole comparison: its files, its resumption, and failures."""

from __future__ import annotations

import copy
import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch

from nse_plugin import cli
from nse_plugin.compare import cells as cells_module
from nse_plugin.compare import comparison as comparison_module
from nse_plugin.compare import hosts, pool, results
from nse_plugin.compare.comparison import exit_code, read_comparison, write_report
from nse_plugin.compare.engines import Serial
from nse_plugin.compare.pictures import left_at_the_end, over_edits_table, retention
from nse_plugin.compare.results import read_cell
from nse_plugin.compare.tables import age_tables, score_table
from nse_plugin.data.models import load_model
from nse_plugin.data.streams import held_out_texts, read_data
from nse_plugin.errors import DataError, HparamsError, ModelError
from nse_plugin.evaluation.protocol import Protocol
from nse_plugin.hparams import NSEHparams
from nse_plugin.methods import nse, spread
from nse_plugin.report.run import Run
from nse_plugin.report.run_page import run_tables
from nse_plugin.report.theme import LIGHT
from nse_plugin.runs import scheduler as scheduling
from nse_plugin.runs.backends import SessionBackend
from nse_plugin.runs.scheduler import SequentialScheduler
from nse_plugin.runs.schema import check
from nse_plugin.session.session import EditSession
from tests.compare.grids import NSE, arguments, comparison, quiet, without_machine
from tests.runs.runs import requests
from tests.tiny import tiny_model


def by_place(result):
    return {tuple(c["run_info"][k] for k in ("method", "seed")): c for c in result["cells"]}


def progress_details(monkeypatch):
    """What a comparison says of how far it is: at its start, and after each cell."""
    said, detail = [], []

    def listener(event, facts):
        if event == "phase":
            detail.append(facts["detail"])
        said.append(detail[0]())

    monkeypatch.setattr(comparison_module, "progress", lambda *_args, **_how: nullcontext(listener))
    return said


def test_cells(whole):
    _, result = whole
    found = by_place(result)
    assert list(found) == [
        ("untouched", 0), ("untouched", 1), ("NSE", 0), ("NSE", 1),
        ("NSE:one-pass", 0), ("NSE:one-pass", 1),
    ]  # fmt: skip
    assert exit_code(result) == 0
    for seed in (0, 1):
        streams = {found[(m, seed)]["run_info"]["stream"] for m in ("untouched", "NSE")}
        assert len(streams) == 1
        orders = [
            [entry["case_id"] for entry in found[(m, seed)]["each"]] for m in ("untouched", "NSE")
        ]
        assert orders[0] == orders[1] and len(orders[0]) == 6
    first = [[e["case_id"] for e in found[("NSE", seed)]["each"]] for seed in (0, 1)]
    assert first[0] != first[1]  # a file is shuffled by the seed
    edited, untouched = (found[(m, 0)]["scores"] for m in ("NSE", "untouched"))
    assert edited["efficacy_nll"] < untouched["efficacy_nll"] and untouched["locality"] == 1
    assert found[("NSE", 0)]["method_info"]["hparams"]["max_iterations"] == 2
    assert found[("NSE:one-pass", 0)]["method_info"]["hparams"]["max_iterations"] == 1


@pytest.mark.parametrize("name", ["untouched", "NSE"])
def test_every_cell_is_a_run_that_can_be_inspected(whole, name):
    run = Run(whole[0] / "cells" / "tiny" / name / "0")
    assert run.status == ("nothing_written" if name == "untouched" else "complete")
    assert len(run.scores) == 3
    assert len(run.ledger) == (0 if name == "untouched" else 3)
    assert all(table.text() for table in run_tables(run))


def test_a_score_is_the_mean_of_its_edits(whole):
    for cell in whole[1]["cells"]:
        for name in ("efficacy", "efficacy_tokens", "locality", "paraphrase_nll"):
            values = [e[name] for e in cell["each"] if e[name] is not None]
            assert cell["scores"][name] == pytest.approx(sum(values) / len(values))


def test_a_cell_is_a_plain_run_of_the_scheduler(world, whole, tmp_path):
    """With a newly loaded model and without a comparison it has the same scores to the bit."""
    made = comparison(world, tmp_path / "out")
    cell = next(c for c in made.cells() if c.method == "NSE:one-pass" and c.seed == 1)
    hparams = hosts.recipe(cell).hparams
    model, tokenizer, _ = load_model(hparams)
    result = SequentialScheduler(
        EditSession.of(model, tokenizer), read_data(made.settings.data, None, 1), 2,
        Protocol.from_dict({"seed": 1, **made.settings.protocol}), tmp_path / "run",
        hparams=hparams, order="shuffled", seed=1,
        held_out=held_out_texts(made.settings.held_out, "", []),
    ).run()  # fmt: skip
    expected = by_place(whole[1])[("NSE:one-pass", 1)]
    point = result.final["measurement"]
    assert {k: expected["scores"][k] for k in point["all"] if k != "n"} == {
        k: v for k, v in point["all"].items() if k != "n"
    }
    assert expected["scores"]["perplexity"] == point["perplexity"]
    assert expected["each"] == point["each"]


def test_schema(whole, tmp_path):
    folder, result = whole
    kept = json.loads((folder / "results.json").read_text())
    assert kept == json.loads(json.dumps(result))
    cells = kept["cells"]
    for kind, objects in {
        results.ComparisonResult: [kept],
        results.ScoreSummary: kept["summaries"],
        results.Difference: kept["differences"],
        results.CellResult: cells,
        results.RoundPoint: [point for cell in cells for point in cell["points"]],
        results.RunInfo: [cell["run_info"] for cell in cells],
        results.MethodInfo: [cell["method_info"] for cell in cells],
        results.MetaInfo: [cell["meta_info"] for cell in cells],
        results.Seconds: [cell["seconds"] for cell in cells],
        results.Memory: [cell["memory"] for cell in cells if cell["memory"] is not None],
    }.items():
        for found in objects:
            check(found, kind, kind.__name__, "")
            assert set(found) == set(kind.__annotations__)
        assert objects
    one = json.loads((folder / "results/tiny/NSE/0.json").read_text())
    assert one["schema"] == 1 and one in kept["cells"]
    assert one["meta_info"]["versions"]["torch"] == torch.__version__
    assert one["memory"]["peak"] >= one["memory"]["before"] > 0
    seconds = one["seconds"]
    assert seconds["edit"] == pytest.approx(sum(seconds["parts"].values()) + seconds["other"])
    (tmp_path / "0.json").write_text(json.dumps({**one, "schema": 99}))
    with pytest.raises(DataError, match="schema 99"):
        read_cell(tmp_path / "0.json")


def test_done_cells_are_not_run_again(world, whole, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    shutil.copytree(whole[0], folder)
    monkeypatch.setattr(SessionBackend, "edit", None)  # any edit would fail
    again = comparison(world, folder).run(quiet)
    assert without_machine(again["cells"]) == without_machine(whole[1]["cells"])


def test_methods_and_seeds_may_be_added_and_settings_may_not_change(world, whole, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(whole[0], folder)
    more = comparison(world, folder, methods="NSE,NSE:p=0.6", seeds="0").run(quiet)
    assert [c["run_info"]["method"] for c in more["cells"]] == ["untouched", "NSE", "NSE:p=0.6"]
    with pytest.raises(DataError, match="rounds was 3, is 2"):
        comparison(world, folder, rounds=2).run(quiet)
    with pytest.raises(DataError, match=r"protocol\.every was 2, is 1"):
        comparison(world, folder, every=1).run(quiet)


def test_a_done_cell_of_other_settings_is_refused(world, whole, tmp_path):
    """A YAML that changed, and a result of another implementation; nothing is run or lost."""
    folder, yamls = tmp_path / "out", tmp_path / "hparams"
    shutil.copytree(whole[0], folder)
    shutil.copytree(world / "hparams", yamls)
    path = yamls / "NSE" / "tiny.yaml"
    path.write_text(path.read_text().replace("v_lr: 0.1", "v_lr: 0.2"))
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(DataError, match=r"NSE seed 0 was .*: v_lr was 0\.1, is 0\.2\. .*remove"):
        comparison(world, folder, hparams_dir=str(yamls)).run(quiet)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    comparison(world, folder, hparams_dir=str(yamls), methods="NSE:v_lr=0.1", seeds="0").run(quiet)
    result = json.loads((folder / "results/tiny/NSE/0.json").read_text())
    result["method_info"]["implementation"] = "EasyEdit"
    (folder / "results/tiny/NSE/0.json").write_text(json.dumps(result))
    with pytest.raises(DataError, match="implementation was 'EasyEdit', is 'nse_plugin'"):
        comparison(world, folder).run(quiet)


def test_answers_of_another_model_are_refused(world, whole, tmp_path):
    """The model's folder has other weights than when the untouched model was asked."""
    folder, other = tmp_path / "out", tmp_path / "model"
    shutil.copytree(whole[0], folder)
    shutil.copytree(world / "model", other)
    changed = tiny_model("gpt2")
    with torch.no_grad():
        changed.get_parameter("transformer.h.1.mlp.c_proj.weight")[0, 0] += 1e-3
    changed.save_pretrained(other)
    more = comparison(world, folder, methods="FT", models=f"tiny={other}", seeds="0").run(quiet)
    assert "has the answers of another model" in by_place(more)[("FT", 0)]["run_info"]["error"]


def test_a_result_at_the_wrong_place_is_not_believed(world, whole, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(whole[0], folder)
    shutil.copyfile(folder / "results/tiny/NSE/0.json", folder / "results/tiny/NSE/1.json")
    with pytest.raises(DataError, match="result of NSE on tiny with seed 0, so it is at the wrong"):
        comparison(world, folder).run(quiet)


def test_a_change_that_the_host_s_method_would_not_see_is_refused(world, tmp_path, monkeypatch):
    monkeypatch.setattr(hosts, "is_hosts_own", lambda spec: True)
    monkeypatch.setattr(hosts, "_host_keys", lambda _method: {"v_lr"})
    made = comparison(world, tmp_path / "out", methods="NSE:v_lr=0.2,NSE:no-rewinding")
    told = {cell.method: cell for cell in made.cells() if not cell.untouched}
    assert hosts.recipe(told["NSE:v_lr=0.2"]).implementation == "EasyEdit"
    with pytest.raises(HparamsError, match="has no rewind; leave it out, or .* NSE-plugin"):
        hosts.recipe(told["NSE:no-rewinding"])


def test_an_interrupt_inside_a_cell_and_its_resumption(world, whole, tmp_path, monkeypatch):
    real, calls = SessionBackend.edit, []

    def interrupted(self, requests, number, last):
        calls.append(number)
        if len(calls) == 5:  # the second round of the second cell that edits
            raise KeyboardInterrupt
        return real(self, requests, number, last)

    monkeypatch.setattr(SessionBackend, "edit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        comparison(world, tmp_path / "out").run(quiet)
    done = sorted(p.parent.name for p in (tmp_path / "out" / "results").rglob("*.json"))
    assert done == ["NSE", "untouched", "untouched"]
    assert len((tmp_path / "out/cells/tiny/NSE/1/rounds.jsonl").read_text().splitlines()) == 1
    calls[:] = [0] * 10
    details = progress_details(monkeypatch)
    result = comparison(world, tmp_path / "out").run(quiet)
    assert details[:2] == [
        "3 of 6 done, tiny NSE seed 1 after round 1",
        "4 of 6 done, tiny NSE:one-pass seed 0 after round 0",
    ]
    assert calls[10:] == [2, 3, 1, 2, 3, 1, 2, 3]  # of that cell two rounds, of the others all
    assert without_machine(result["cells"]) == without_machine(whole[1]["cells"])
    assert result["differences"] == whole[1]["differences"]


def test_fewer_rounds_than_asked_for_are_said(world, tmp_path, capsys, no_drawings):
    given = arguments(world, tmp_path / "out", rounds=9, methods="NSE", seeds="0")
    assert cli.main(["compare", *given]) == 0
    assert "6 edits in each, which make 6 rounds of 1, not 9\n" in capsys.readouterr().out


def test_a_failed_cell_is_a_row_and_is_tried_again(
    world, whole, tmp_path, monkeypatch, capsys, no_drawings
):
    real = cells_module.editor_of

    def failing(made, model, tokenizer):
        if made.hparams.max_iterations == 1:
            raise RuntimeError("out of luck")
        return real(made, model, tokenizer)

    monkeypatch.setattr(cells_module, "editor_of", failing)
    given = arguments(world, tmp_path / "out")
    assert cli.main(["compare", *given]) == 3
    shown = capsys.readouterr().out
    assert "RuntimeError: out of luck" in shown
    assert "0 of 2 (seed 0 failed, seed 1 failed)" in shown
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "out of luck" in page
    monkeypatch.setattr(cells_module, "editor_of", real)
    capsys.readouterr()
    assert cli.main(["compare", *given, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert without_machine(kept["cells"]) == without_machine(whole[1]["cells"])
    assert shown["summaries"] == kept["summaries"] and "cells" not in shown


def test_a_round_that_was_undone_at_once_is_no_point_of_a_curve():
    scores = {"n": 2, "efficacy": 0.9, "locality": 0.9, "rephrase": 0.5, "portability": None}
    lines = [
        {"round": 1, "edits": 2, "file": 1, "scores": None, "measurement": {"all": scores}},
        {"round": 2, "edits": 2, "file": None, "scores": None, "measurement": {"all": scores}},
    ]
    found = list(cells_module._points(SimpleNamespace(lines=lines)))
    assert [(point["round"], point["edits"]) for point in found] == [(1, 2)]


def test_a_bound_on_a_perplexity_that_is_not_measured_is_refused_before_anything(world, tmp_path):
    made = comparison(world, tmp_path / "out", methods="NSE")
    for held_out in (None, "none"):  # the default of this model
        with pytest.raises(HparamsError, match="bounds perplexity, which is not measured"):
            read_comparison(replace(made.settings, held_out=held_out, stop={"max_perplexity": 9.0}))


def test_a_collapse_is_a_row(world, tmp_path, monkeypatch):
    monkeypatch.setattr(SessionBackend, "problem", lambda self: "weights")
    result = comparison(world, tmp_path / "out", methods="NSE", seeds="0").run(quiet)
    info = by_place(result)[("NSE", 0)]["run_info"]
    assert (info["status"], info["error"]) == ("collapsed", "non_finite: weights")
    assert exit_code(result) == 3
    assert not [d for d in result["differences"] if d["method"] == "NSE"]


def test_cells_of_different_length(world, tmp_path, monkeypatch):
    """One seed ends at its collapse after 4 of 6 edits: it is in the means with what it has."""
    real = scheduling.measure_all
    made = comparison(world, tmp_path / "out", methods="NSE", until_collapse=0.8, every=1)

    def scripted(protocol, model, history, number):
        found = real(protocol, model, history, number)
        collapsed = protocol.seed == 1 and number == 2
        return {**found, "all": {**found["all"], "efficacy": 0.3 if collapsed else 0.5}}

    monkeypatch.setattr(scheduling, "measure_all", scripted)
    result = made.run(quiet)
    info = by_place(result)[("NSE", 1)]["run_info"]
    assert (info["status"], info["edits"]) == ("stopped", 4)
    assert info["error"] == "until_collapse.efficacy: 0.3" and exit_code(result) == 3
    assert by_place(result)[("untouched", 1)]["run_info"]["status"] == "complete"
    shown = score_table(result, "tiny").text()
    assert "1 of 2 (seed 1 stopped after 4 edits)" in shown and "40.0 ± 14.1" in shown
    assert list(over_edits_table(result, "tiny", "efficacy")["NSE"].dropna().index) == [2, 4]
    write_report(tmp_path / "out", result)
    other = comparison(world, tmp_path / "out", methods="NSE", until_collapse=0.5, every=1)
    with pytest.raises(DataError, match=r"stop\.until_collapse was 0\.8, is 0\.5"):
        other.run(quiet)
    with pytest.raises(HparamsError, match="bounds retention, which is not measured"):
        comparison(world, tmp_path / "out", until_collapse=0.8, every=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": "NSE:v_lrr=1"}, "method 'NSE:v_lrr=1' on tiny: .*did you mean 'v_lr'"),
        ({"methods": "NSE:p=7"}, "at most 1"),
        ({"models": "atlas:gpt3"}, "unknown atlas model .*did you mean 'gpt2'"),
        ({"seeds": "0,0"}, "give each once"),
        ({"seeds": "x"}, "seeds is 'x'"),
        ({"seeds": "0,-1"}, "seeds has -1"),
        ({"engine": "proceses"}, "did you mean 'processes'"),
        ({"jobs": 0}, "jobs is 0"),
        ({"rounds": 0}, "rounds is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"reference": "NSEE"}, "did you mean 'NSE'"),
        ({"methods": "NSE,NSE:dtype=bfloat16"}, "same model"),
    ],
)
def test_errors_before_anything_is_written(world, tmp_path, changes, said):
    with pytest.raises((HparamsError, ModelError), match=said):
        comparison(world, tmp_path / "out", **changes).run(quiet)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def loads(monkeypatch):
    """What a pool has loaded."""
    found = []
    monkeypatch.setattr(
        pool, "load_model", lambda hparams: found.append(hparams) or load_model(hparams)
    )
    return found


def test_cells_share_values(world, tmp_path, monkeypatch):
    """Cells that differ in the write get the results of comparisons of their own; the search counts
    in the times of each, and the peak memory of a cell without a search is not shown."""
    methods = ("NSE", "NSE:one-pass", "NSE:no-rewinding")
    alone = [
        by_place(comparison(world, tmp_path / str(n), methods=name, seeds="0").run(quiet))[name, 0]
        for n, name in enumerate(methods)
    ]
    searches, real = [], spread.compute_values
    monkeypatch.setattr(
        spread,
        "compute_values",
        lambda *given, **more: searches.append(given) or real(*given, **more),
    )
    found = by_place(
        comparison(world, tmp_path / "all", methods=",".join(methods), seeds="0").run(quiet)
    )
    together = [found[name, 0] for name in methods]
    assert len(searches) == 2 * 3  # rounds of NSE, and of NSE without rewinding
    assert without_machine(alone) == without_machine(together)
    assert [cell["memory"] is None for cell in together] == [False, True, False]
    first, second, _ = (cell["seconds"] for cell in together)
    assert second["parts"]["values"] >= 0.5 * first["parts"]["values"]
    assert second["edit"] >= sum(second["parts"].values())


def test_one_model_is_loaded_for_all_cells_and_lent_untouched(world, tmp_path, loads):
    made = comparison(world, tmp_path / "out", methods="NSE,FT,GRACE,LoRA,NSE+OVERTONE", seeds="0")
    for _cell, result in Serial().run(made.cells()):
        assert result["run_info"]["status"] == "complete", result["run_info"]["error"]
    assert len(loads) == 1


@pytest.mark.parametrize("harm", ["weight", "module", "hook"])
def test_a_model_that_was_not_restored_is_loaded_again(world, harm, loads):
    models, what = pool.ModelPool(), SimpleNamespace(model_name=str(world / "model"), device="cpu")
    with models.lend(what) as (model, _):
        expected = model(torch.tensor([[5, 6, 7]])).logits.detach()
    with models.lend(what) as (model, _):
        if harm == "weight":
            model.transformer.h[0].ln_1.bias.data[0] += 1
        elif harm == "module":
            model.transformer.h[1].mlp = torch.nn.Sequential(model.transformer.h[1].mlp)
        else:
            model.transformer.h[1].register_forward_hook(lambda m, i, o: o)
    assert len(loads) == 1
    with models.lend(what) as (model, _):
        assert torch.equal(model(torch.tensor([[5, 6, 7]])).logits, expected)
    assert len(loads) == 2
    with models.lend(what) as (model, tokenizer):
        nse.edit_round(EditSession.of(model, tokenizer), requests(2), NSEHparams(**NSE))
        assert not torch.equal(model(torch.tensor([[5, 6, 7]])).logits, expected)
    with models.lend(what) as (model, _):
        assert torch.equal(model(torch.tensor([[5, 6, 7]])).logits, expected)
    assert len(loads) == 2


class Tables(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.cells, self._open = [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self._open = tag in ("td", "th")

    def handle_data(self, data):
        if self._open and data.strip():
            self.cells.append(data.strip())


def test_markdown_and_page_show_the_numbers(whole):
    folder, result = whole
    nse_rows = [c for c in result["cells"] if c["run_info"]["method"] == "NSE"]
    tokens = [100 * c["scores"]["efficacy_tokens"] for c in nse_rows]
    mean = sum(tokens) / 2
    spread = (sum((t - mean) ** 2 for t in tokens) / 1) ** 0.5
    wanted = f"{mean:.1f} ± {spread:.1f}"
    lines = (folder / "table.md").read_text().splitlines()
    kinds = lines.index(next(line for line in lines if "by kind of score" in line))
    row = next(line for line in lines[kinds:] if line.startswith("| NSE |"))
    assert wanted in [cell.strip() for cell in row.split("|")]
    assert wanted in Tables((folder / "report.html").read_text(encoding="utf-8")).cells


def test_scores_by_age_are_means_over_edits(whole):
    """Right after the rounds and, at the end, over all edits and those of the first and last."""
    _, result = whole
    answers, tokens = age_tables(result, "tiny")
    (nse,) = [row for row in tokens.rows if row[:2] == ("NSE", "locality")]
    assert tokens.heads[2:] == ("right after", "at the end", "oldest third", "newest third")
    cells = [c for c in result["cells"] if c["run_info"]["method"] == "NSE"]
    after = [p["scores"]["locality"] for c in cells for p in c["points"]]  # two edits in each
    each = [[e["locality"] for e in c["each"] if e["round"] in rounds]
            for rounds in ((1, 2, 3), (1,), (3,)) for c in cells]  # fmt: skip
    wanted = [after, each[0] + each[1], each[2] + each[3], each[4] + each[5]]
    assert nse[2:] == tuple(f"{100 * sum(w) / len(w):.1f}" for w in wanted)
    assert len(set(nse[2:])) > 1 and answers.rows[0][1] == "efficacy"


def test_rounds_tested_at_the_end_only_share_a_figure(whole):
    result = copy.deepcopy(whole[1])
    assert retention(result, "tiny", "NSE") and not left_at_the_end(result, "tiny", "variants")
    for cell in result["cells"]:
        cell["retention"] = {k: dict([max(v.items())]) for k, v in cell["retention"].items() if v}
    assert retention(result, "tiny", "NSE") is None
    assert left_at_the_end(result, "tiny", "methods") is None  # NSE alone, which has variants
    picture = left_at_the_end(result, "tiny", "variants")
    firsts = [
        min(next(iter(cell["retention"]["efficacy"].values())).items())[1]
        for cell in result["cells"]
        if cell["run_info"]["method"] == "NSE"
    ]
    assert f"NSE {sum(firsts) / len(firsts):.1%}" in picture.alt
    picture.draw(LIGHT).canvas.draw()


def test_the_page_in_a_browser(whole, open_page):
    shown = open_page(whole[0] / "report.html", width=400)
    assert shown.outside() == [] and shown.complaints == [] and shown.barriers() == []
    assert shown.page.get_by_role("img").count() >= 4
    assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
