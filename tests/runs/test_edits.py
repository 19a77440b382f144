"""A folder of edits: its reports, added and undone rounds, and failures at any moment."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from nse_plugin.data import atlas
from nse_plugin.data.facts import others_like
from nse_plugin.errors import (
    DataError,
    HparamsError,
    ModelError,
    NSEPluginError,
    RequestError,
    SessionError,
)
from nse_plugin.evaluation import metrics, neighbours
from nse_plugin.export.of_run import export_run
from nse_plugin.files import JsonLines
from nse_plugin.locate.small_keys import edited_at_the_end
from nse_plugin.model.chat import ChatTokenizer
from nse_plugin.report.run import Run
from nse_plugin.report.run_tables import overview
from nse_plugin.runs import budget, edit_round
from nse_plugin.runs.budget import estimate
from nse_plugin.runs.directory import RunDirectory
from nse_plugin.runs.edits import EditFolder
from nse_plugin.runs.reading import RunFiles
from nse_plugin.runs.settings import RunSettings
from nse_plugin.runs.start import make_scheduler
from nse_plugin.runs.undo import undo_round, undone_text
from tests.plain import plain_answer
from tests.tiny import bits, same_bits

MODEL = "atlas:gpt2"
PROMPT, SUBJECT, OLD, NEW = "{} speaks", "Stojeish Pekapex", "Stugixish", "Zibriish"
TEXT = f"{SUBJECT} speaks"
QUICK = "NSE:polyak;n_contexts=1"
"""What learns these edits in less time than the settings that ship."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with one edit, and the report of it; not to be changed."""
    folder = EditFolder(tmp_path_factory.mktemp("edits") / "one", MODEL, method=QUICK)
    return folder, folder.edit(PROMPT, NEW, SUBJECT)


@pytest.fixture
def one(made, tmp_path):
    """A copy of that folder, open."""
    shutil.copytree(made[0].folder, tmp_path / "copy")
    return EditFolder(tmp_path / "copy")


@pytest.fixture(scope="module")
def with_three(made, tmp_path_factory):
    folder = shutil.copytree(made[0].folder, tmp_path_factory.mktemp("edits") / "three")
    edits = EditFolder(folder)
    for subject in ("Zawos Kofird", "Ann Lee"):
        edits.edit(f"{{{subject}}} speaks", NEW)
    return folder


@pytest.fixture
def three(with_three, tmp_path):
    """A copy of that folder with two more rounds, not open."""
    return shutil.copytree(with_three, tmp_path / "three")


def answer(edits):
    """The edited model's answer to the first edit, as long as the new one."""
    return edits.ask(TEXT, max_new_tokens=8, untouched=False).edited


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "lock"}


def test_the_report_says_what_the_model_answers_before_and_after(made):
    _, report = made
    (fact,) = report.facts
    assert report.in_effect and fact.in_effect and not fact.known_before
    kinds = [asked.kind for asked in fact.asked]
    assert kinds == ["prompt", "paraphrase", "paraphrase", "neighbour", "neighbour", "subject"]
    assert fact.asked[0].before.startswith(OLD) and fact.asked[0].after.startswith(NEW)
    for asked in fact.asked[3:5]:
        assert asked.as_wanted == (asked.before.split(".")[0] == asked.after.split(".")[0])
    assert report.cost.seconds > 0 and report.cost.relative_change > 0
    assert report.text().splitlines()[-1].startswith("the edit is in effect: round 1")


def test_the_report_says_what_the_model_says_about_the_subject(made):
    folder, report = made
    about = report.facts[0].asked[-1]
    assert about.prompt == f"People say that {report.facts[0].subject} is"
    said = folder.ask(about.prompt)
    assert about.before and said.untouched.startswith(about.before)
    assert about.after and said.edited.startswith(about.after)
    assert about.as_wanted == (about.before == about.after)
    assert about.as_wanted or f"{about.after}   <- changed" in report.text()


def test_the_folder_is_a_run_that_gives_the_same_model_again(made, one):
    folder, _ = made
    files = RunFiles(one.folder)
    final, (line,) = files.final, files.lines
    assert (final["status"], final["edits"], line["scores"]["efficacy"]) == ("complete", 1, 1.0)
    (request,) = files.requests()[1]
    assert (request.text, request.target_new, request.ground_truth) == (TEXT, NEW, OLD)
    assert same_bits(folder.model, one.model)
    reply = one.ask(TEXT)
    assert reply.edited.startswith(NEW) and reply.untouched.startswith(OLD)
    assert same_bits(folder.model, one.model)


def test_rounds_are_added_and_undone_in_model_and_folder(one):
    before = bits(one.model)
    report = one.edit_facts(
        [{"prompt": "{Tiathiax Goneisom} plays the", "target": "zither"},
         {"prompt": "{Zawos Kofird} speaks", "target": NEW}],
        neighbours=["Loke Wehes speaks"],
    )  # fmt: skip
    assert report.round == 2 and report.earlier.asked == 1 and not report.earlier.lost
    assert [fact.case_id for fact in report.facts] == [2, 3]
    assert {a.prompt for f in report.facts for a in f.asked if a.kind == "neighbour"} == {
        "Loke Wehes speaks"
    }
    assert one.undo() == [1] and same_bits(one.model, before)
    assert [report.round for report in (one.edit(PROMPT, OLD, SUBJECT),)] == [3]  # a number is kept
    assert list(one.facts()) == [1, 3] and one.undo(1) == [3]
    assert same_bits(one.model, EditFolder(one.folder).model)
    assert one.undo() == []
    with pytest.raises(DataError, match="nothing to undo"):
        one.undo()


def test_answers_from_before_an_undo_are_not_said_to_be_those_of_now(one, tmp_path):
    """A second edit of a fact writes only what is missing, so without the first it may be lost."""

    def shown(name):
        run = Run(one.folder)
        export_run(one.folder, "peft", tmp_path / name)
        card = (tmp_path / name / "README.md").read_text(encoding="utf-8")
        return {fact.round: fact.state for fact in run.facts}, overview(run).text(), card

    fact = ("{} plays the", "zither", "Tiathiax Goneisom")
    one.edit(*fact)
    one.edit(*fact)
    facts, _, card = shown("twice")
    assert facts == {1: "in effect", 2: "replaced", 3: "in effect"}
    assert "with 2 edited facts\n" in card and card.count("| Tiathiax Goneisom plays the |") == 1
    assert "Left out: 1 earlier edit of these facts" in card and "(measured" not in card

    one.undo(2)
    facts, head, card = shown("undone")
    since = "not tested since round 2 was undone"
    assert facts == {1: since, 2: "undone", 3: since}
    assert "last measured before round 2 was undone" in head and "| in effect" not in card
    assert card.count(f"| {since} |") == 2 and "Left out" not in card
    assert "100.0% (measured before round 2 was undone)." in card

    one.edit("{} plays the", "zither", SUBJECT)  # this asks for all facts again
    facts, head, card = shown("measured")
    assert facts[4] == "in effect" and facts[3] in ("in effect", "not in effect")
    assert "round 2; all edits were last measured without them" in head
    assert "not tested" not in card and "(measured" not in card


def test_earlier_edits_are_asked_by_their_own_prompt(one, monkeypatch):
    asked = []
    put = metrics.put_questions
    monkeypatch.setattr(
        metrics, "put_questions", lambda m, t, q, n: asked.extend(q) or put(m, t, q, n)
    )
    one.edit("{} plays the", "zither", "Tiathiax Goneisom")
    about_the_first = [q for q in asked if q.prompt.endswith(TEXT)]
    assert [(q.group, q.prompt) for q in about_the_first] == [("rewrite", TEXT)]
    line = RunFiles(one.folder).lines[-1]
    found = line["measurement"]["all"]
    assert found["n"] == 2 and found["efficacy"] == 1 and found["paraphrase"] is None
    assert line["scores"]["paraphrase"] is not None and line["scores"]["locality"] is not None


def test_a_failure_leaves_model_and_folder_as_they_were(one, tmp_path, monkeypatch):
    before, files = bits(one.model), contents(one.folder)
    new = EditFolder(tmp_path / "new", MODEL, method=QUICK)

    def fails(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(edit_round, "measure_all", fails)
        for folder in (one, new):
            with pytest.raises(KeyboardInterrupt):
                folder.edit("{Zawos Kofird} speaks", NEW)
    assert same_bits(one.model, before) and contents(one.folder) == files
    assert not new.folder.exists() and not len(new.session.ledger)
    assert one.edit("{Zawos Kofird} speaks", NEW).round == 2


def test_memory_is_checked_for_a_hundred_edits_before_anything_is_asked(tmp_path, monkeypatch):
    folder = EditFolder(tmp_path / "new", MODEL, method=QUICK)
    needed = estimate(folder.model, folder.hparams, 1, 100).memory
    monkeypatch.setattr(budget, "free_memory", lambda: needed - 1)
    with monkeypatch.context() as patch, pytest.raises(DataError, match="of memory beside"):
        patch.setattr(edit_round, "with_questions", None)  # an error if it is called
        folder.edit(PROMPT, NEW, SUBJECT)
    monkeypatch.setattr(budget, "free_memory", lambda: needed)
    assert folder.edit(PROMPT, NEW, SUBJECT).round == 1


def test_a_failure_after_a_joint_solve_leaves_the_rounds_before_it(tmp_path, monkeypatch):
    method = f"{QUICK};consolidate_every_edits=2;repair_rounds=0"
    folder = EditFolder(tmp_path / "new", MODEL, method=method)
    folder.edit(PROMPT, NEW, SUBJECT)
    before, files = bits(folder.model), contents(folder.folder)

    def fails(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(edit_round, "measure_all", fails)
        folder.edit("{Zawos Kofird} speaks", NEW)
    assert folder.session.ledger.numbers() == [1]
    assert same_bits(folder.model, before) and contents(folder.folder) == files
    folder.edit("{Zawos Kofird} speaks", NEW)
    assert folder.session.ledger.numbers() == [2]  # in place of round 1


def test_an_interrupt_while_a_line_is_written_leaves_no_line(one, monkeypatch):
    before, files = bits(one.model), contents(one.folder)
    monkeypatch.setattr(os, "fsync", fsync_interrupted_at("rounds.jsonl", os.fsync))
    with pytest.raises(KeyboardInterrupt):
        one.edit("{Zawos Kofird} speaks", NEW)
    monkeypatch.undo()
    assert same_bits(one.model, before) and contents(one.folder) == files


def fsync_interrupted_at(name, real):
    """An fsync that is interrupted once the file of this name is on disk."""

    def fsync(descriptor):
        real(descriptor)
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).name == name:
            raise KeyboardInterrupt

    return fsync


@pytest.mark.parametrize("part", ["rounds", "finish"])
def test_a_disk_that_fails_at_the_last_write_leaves_no_half_round(one, monkeypatch, part):
    before, files = bits(one.model), contents(one.folder)

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    append = JsonLines.append

    def append_or_fail(lines, value):
        return full() if lines.path.name == "rounds.jsonl" else append(lines, value)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        if part == "rounds":
            patch.setattr(JsonLines, "append", append_or_fail)
        else:
            patch.setattr(RunDirectory, "finish", full)
        one.edit("{Zawos Kofird} speaks", NEW)
    assert same_bits(one.model, before) and contents(one.folder) == files
    assert one.edit("{Zawos Kofird} speaks", NEW).round == 2


def test_an_edit_that_did_not_take_effect_says_so(one):
    one.hparams.repair_rounds = 0
    report = one.edit("{Ann Lee} speaks", "a language of the moon that nobody knows")
    assert not report.in_effect
    last = report.text().splitlines()[-1]
    assert last.startswith("NOT in effect: 1 of 1") and "nse undo" in last and "--round 2" in last


def test_what_cannot_be_asked_is_refused_before_anything_is_written(one, monkeypatch):
    files = contents(one.folder)
    with pytest.raises(RequestError, match="9 neighbours .* asks 8"):
        one.edit(PROMPT, NEW, SUBJECT, neighbours=[f"{i} speaks" for i in range(9)])
    with pytest.raises(RequestError, match="one of the neighbours is ''"):
        one.edit(PROMPT, NEW, SUBJECT, neighbours=[""])
    with pytest.raises(RequestError, match="paraphrases is 'A speaks'; give a list of texts"):
        one.edit(PROMPT, NEW, SUBJECT, paraphrases="A speaks")
    with pytest.raises(RequestError, match="the text 'word .* has .* tokens"):
        one.edit(PROMPT, NEW, SUBJECT, neighbours=["word " * 300 + "end"])
    monkeypatch.setattr(neighbours, "_answers", lambda _m, _t, texts: [""] * len(texts))
    with pytest.raises(RequestError, match="'The end': .* writes no word"):
        one.edit(PROMPT, NEW, SUBJECT, neighbours=["The end"])
    with pytest.raises(RequestError, match="case 2: a prompt of .* context of 256: 'word"):
        one.edit("word " * 300 + PROMPT, NEW, SUBJECT)
    assert contents(one.folder) == files


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda folder: folder.ask([]), r"question is \[\]; give a text, or a list of turns"),
        (lambda folder: folder.ask(None), "question is None; give a text"),
        (lambda folder: folder.ask([{"role": "user"}]), "question is .*; give a text"),
        (lambda folder: folder.undo("x"), "number is 'x'; give the number of a round"),
        (lambda folder: folder.undo(1.5), "number is 1.5; give the number of a round"),
        (lambda folder: folder.edit_facts(None), "facts is None; give a list of requests"),
        (lambda folder: folder.edit_facts([]), r"facts is \[\]; give a list of requests"),
        (lambda folder: folder.edit_facts(["x"]), "facts is .'x'.; give a list of requests"),
        (lambda folder: folder.edit(PROMPT, NEW, SUBJECT, neighbours=None), "neighbours is None"),
        (lambda folder: folder.edit(PROMPT, NEW, SUBJECT, neighbours=[3]), "neighbours is 3"),
        (lambda folder: folder.edit(None, NEW, SUBJECT), "prompt is None; give a text"),
        (lambda folder: folder.edit(PROMPT, None, SUBJECT), "target"),
        (lambda folder: folder.edit(PROMPT, 5, SUBJECT), "target"),
        (lambda folder: folder.edit(PROMPT, NEW, 5), "subject"),
        (lambda folder: folder.missed(None, "x"), "question is None"),
        (lambda folder: folder.blame([]), "question is"),
        (lambda folder: folder.ask("x", max_new_tokens=0), "max_new_tokens is 0"),
        (lambda folder: folder.ask("x", max_new_tokens="5"), "max_new_tokens is '5'"),
        (lambda folder: folder.consolidate("x"), "repair_rounds is 'x'"),
    ],
)
def test_arguments_of_another_kind_are_named(made, call, message):
    with pytest.raises(NSEPluginError, match=message):
        call(made[0])


def test_hyperparameters_are_given_as_a_yaml(tmp_path, made):
    with pytest.raises(HparamsError, match="hparams is of type NSEHparams; give the name or path"):
        EditFolder(tmp_path / "new", MODEL, hparams=made[0].hparams)


def test_a_log_that_lost_lines_is_refused_and_nothing_is_removed(three):
    log = three / "rounds.jsonl"
    log.write_bytes(log.read_bytes().splitlines(keepends=True)[0])
    files = contents(three)
    with pytest.raises(DataError, match="has no line for"):
        EditFolder(three).edit("{Bo Ash} speaks", NEW)
    assert contents(three).keys() == files.keys()


def test_a_line_that_is_missing_in_the_middle_is_named_and_nothing_is_removed(three):
    opened, log = EditFolder(three), three / "rounds.jsonl"
    first, _, last = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(first + last)
    files, missing = contents(three), "line 2 of .*rounds.jsonl is of round 3, so a line before it"
    for use in (
        lambda: EditFolder(three),
        lambda: opened.edit("{Bo Ash} speaks", NEW),
        lambda: undo_round(three, 1),
        lambda: export_run(three, "delta", three / "x"),
    ):
        with pytest.raises(DataError, match=missing):
            use()
    assert contents(three) == files


def test_a_lost_line_of_a_consolidation_does_not_cost_its_round(one):
    one.edit("{Zawos Kofird} speaks", NEW)
    one.consolidate()
    one.edit("{Ann Lee} speaks", NEW)
    (one.folder / "consolidations.jsonl").unlink()
    files = contents(one.folder).keys()
    with pytest.raises(DataError, match="has no line for round-0003"):
        one.edit("{Bo Ash} speaks", NEW)
    assert contents(one.folder).keys() == files


@pytest.mark.parametrize(
    ("damage", "number"), [("gone", 2), ("gone", 3), ("cut off", 2), ("no header", 3)]
)
def test_a_round_whose_file_is_lost_can_be_left_out(three, damage, number):
    path = three / f"round-000{number}.safetensors"
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[:-10] if damage == "cut off" else b"12345")
    with pytest.raises(DataError, match=f"leave the round out: nse undo .* --round {number}$"):
        EditFolder(three)
    others = [n for n in (1, 2, 3) if n != number]
    assert undo_round(three, number) == others
    assert str(number) in undone_text(three, others)
    again = EditFolder(three)
    assert again.session.ledger.numbers() == others and answer(again).startswith(NEW)
    assert again.edit("{Bo Ash} speaks", NEW).round == 4
    assert EditFolder(three).session.ledger.numbers() == [*others, 4]


def test_two_damaged_rounds_are_left_out_one_after_the_other(three):
    for number in (2, 3):
        (three / f"round-000{number}.safetensors").write_bytes(b"12345")
    undo_round(three, 2)
    assert undo_round(three, 3) == [1]
    assert EditFolder(three).session.ledger.numbers() == [1]


def test_a_lost_round_that_was_written_again_is_left_out_after_the_later_one(one):
    one.edit("{Stojeish Pekapex} plays the", "zither")  # with a value that both facts share
    (one.folder / "round-0001.safetensors").unlink()
    with pytest.raises(DataError, match="round 2 wrote edits of it again .*; undo round 2 first"):
        undo_round(one.folder, 1)
    assert not (one.folder / "undone.json").exists()
    assert undo_round(one.folder, 2) == [] and undo_round(one.folder, 1) == []
    assert EditFolder(one.folder).session.ledger.numbers() == []


def test_a_lost_round_inside_a_consolidation_is_left_out_after_it(one):
    one.edit("{Zawos Kofird} speaks", NEW)
    one.consolidate()
    (one.folder / "round-0001.safetensors").unlink()
    with pytest.raises(DataError, match="nse undo .* --round 1$"):
        EditFolder(one.folder)
    with pytest.raises(DataError, match="inside .* round 3; undo round 3 first, then round 1"):
        undo_round(one.folder, 1)
    assert undo_round(one.folder, 3) == [2] and undo_round(one.folder, 1) == [2]
    assert EditFolder(one.folder).session.ledger.numbers() == [2]


def test_a_round_is_undone_without_the_requests_of_the_folder(one):
    (one.folder / "frozen.jsonl").unlink()
    assert undo_round(one.folder, 1) == []
    assert "later rounds edit the same facts is not known" in undone_text(one.folder, [])


@pytest.mark.parametrize(
    ("log", "message"),
    [("rounds.jsonl", "has no line for"), ("frozen.jsonl", "restore the shorter from a copy")],
)
def test_a_log_that_lost_all_lines_is_no_folder_without_edits(one, log, message):
    one.edit("{Ann Lee} speaks", NEW)
    (one.folder / log).unlink()
    with pytest.raises(DataError, match=message):
        EditFolder(one.folder).edit("{Bo Ash} speaks", NEW)
    if log == "rounds.jsonl":
        with pytest.raises(DataError, match=message):
            EditFolder(one.folder)


def test_another_process_in_the_folder_is_noticed(one):
    EditFolder(one.folder).undo()
    with pytest.raises(DataError, match="changed by another process"):
        one.edit(PROMPT, OLD, SUBJECT)


def test_weights_changed_outside_the_session_leave_the_folder_unchanged(one):
    files, matrix = contents(one.folder), one.session.layout.down(1).weight
    with torch.no_grad():
        matrix[0, 0] += 1
    for change in (one.undo, lambda: one.edit(PROMPT, NEW, SUBJECT)):
        with pytest.raises(SessionError, match="not by this session"):
            change()
        assert contents(one.folder) == files and one.session.ledger.numbers() == [1]


def test_settings_are_given_only_to_a_new_folder(tmp_path):
    one = EditFolder(tmp_path / "one", MODEL)
    one.edit(PROMPT, NEW, SUBJECT)
    for wrong in (
        {"model": "atlas:llama"}, {"method": "MEMIT"}, {"hparams": "MEMIT/atlas-gpt2"},
        {"method": "NSE:stable"}, {"hparams": "NSE:stable/atlas-gpt2"},
    ):  # fmt: skip
        with pytest.raises(DataError, match="started with other settings"):
            EditFolder(one.folder, **wrong)
    EditFolder(one.folder, MODEL, hparams="NSE/atlas-gpt2")
    EditFolder(one.folder, MODEL, method="NSE:merged")  # as folders of edits have it anyway
    with pytest.raises(HparamsError, match="no model is given"):
        EditFolder(tmp_path / "new")
    with pytest.raises(HparamsError, match="LoRA.*nse tune"):
        EditFolder(tmp_path / "new", "atlas:gpt3", method="LoRA")
    with pytest.raises(RequestError, match="two targets"):
        one.edit_facts([{"prompt": "{A} is", "target": t} for t in "xy"])


def test_a_model_in_a_relative_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    shutil.copytree(atlas.model_dir(MODEL), tmp_path / "there/model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    quick = f"{QUICK};mom2_adjustment=false/atlas-gpt2"  # it would need statistics of its own
    EditFolder("edits", "model", hparams=quick).edit(PROMPT, NEW, SUBJECT)

    def opened(*others):
        return EditFolder(tmp_path / "there/edits", *others)

    assert answer(opened("./model")).startswith(NEW)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert answer(opened("../there/model")).startswith(NEW)
    assert answer(opened()).startswith(NEW)
    with pytest.raises(ModelError, match=r"no model folder './model' in .*elsewhere"):
        EditFolder("others", "./model")


def test_a_stream_does_not_resume_it(one):
    settings = RunSettings(hparams="NSE/atlas-gpt2", data="atlas:2", out=str(one.folder))
    for undone in (False, True):  # which the advice must not depend on
        if undone:
            one.undo()
        with pytest.raises(DataError, match="a folder of edits made with nse edit.*add to it with"):
            make_scheduler(settings).run()


def test_an_earlier_edit_that_a_later_one_erases_is_named(one):
    """With NSE as published: two facts of a subject share a key, and the later one is written."""
    one.hparams.merge_subjects, one.hparams.repair_rounds = False, 0
    report = one.edit("{} plays the", "zither", SUBJECT)
    assert not one.ask(TEXT, plain=True).edited.startswith(NEW)
    assert report.earlier.asked == 1 and report.earlier.lost == (TEXT,)
    assert f"earlier edits: 0 of 1 are in effect\n  not in effect: {TEXT}" in report.text()


def test_what_the_model_knew_before_a_round_is_said(one, tmp_path):
    """Before this round, and not before the first one."""
    known = EditFolder(tmp_path / "new", MODEL, method=QUICK).edit(PROMPT, OLD, SUBJECT)
    assert known.facts[0].known_before and "already in effect before" in known.text()
    assert one.edit(PROMPT, NEW, SUBJECT).facts[0].known_before
    assert not one.edit(PROMPT, OLD, SUBJECT).facts[0].known_before


def test_the_neighbours_are_those_of_whose_answer_the_model_is_surest(made):
    folder, report = made
    with folder.session.rewound():
        texts = [f"{other} speaks" for other in others_like(SUBJECT)]
        answers = neighbours._answers(folder.model, folder.tokenizer, texts)
        unlikely = {
            text: plain_answer(folder.model, folder.tokenizer, text, answer).nll
            for text, answer in zip(texts, answers)
        }
    asked = [each.prompt for each in report.facts[0].asked if each.kind == "neighbour"]
    assert len(texts) > 4 and asked == sorted(texts, key=unlikely.get)[:2]


def test_a_second_fact_of_a_subject_leaves_the_first(one):
    """They share a key; with NSE as published the second would erase the first."""
    report = one.edit("{} plays the", "zither", SUBJECT)
    assert report.in_effect and one.hparams.merge_subjects and one.hparams.repair_rounds == 3
    assert one.hparams.avoid_sinks and one.hparams.repair_weight == 4
    assert one.ask(TEXT, plain=True).edited.startswith(NEW)
    assert one.ask(f"{SUBJECT} plays the", plain=True).edited.startswith("zither")
    with pytest.raises(DataError, match="undo round 2 first"):
        one.undo(1)
    assert one.undo() == [1] and one.ask(TEXT, plain=True).edited.startswith(NEW)


TEMPLATE = "{% for m in messages %}Q: {{ m['content'] }}\nA:{% endfor %}"


def too_long_in_chat(first_words):
    def refuses(model, tokenizer, prompts, targets):
        if isinstance(tokenizer, ChatTokenizer):
            raise RequestError("the text has 2049 tokens and the model's context is 2048")
        return first_words(model, tokenizer, prompts, targets)

    return refuses


def test_the_report_has_the_replies_in_chat_beside_those_in_plain_text(one, monkeypatch):
    one.hparams.v_num_grad_steps, one.hparams.repair_rounds = 2, 0  # what is edited plays no part
    assert "in chat" not in one.edit("{} plays the", "zither", SUBJECT).text()  # no template
    one.tokenizer.chat_template = TEMPLATE
    told = []

    def replies(model, tokenizer, prompts, targets):
        given = [f"{type(tokenizer).__name__} {len(told)}: Zibriish, of course" for _ in prompts]
        told.append(given)
        return given

    monkeypatch.setattr(edit_round, "first_words", replies)
    fact = one.edit("{} writes in", NEW, SUBJECT).facts[0]
    assert [asked.kind for asked in fact.asked][:3] == ["prompt", "in chat", "paraphrase"]
    in_chat = fact.asked[1]
    assert in_chat.prompt == f"{SUBJECT} writes in" and in_chat.as_wanted
    assert in_chat.before.startswith("ChatTokenizer 1") and in_chat.after.startswith("ChatTok")
    other = one.edit("{} sings in", "Zib", SUBJECT).facts[0].asked[1]
    assert not other.as_wanted  # it is in the reply, but not as whole words
    monkeypatch.setattr(edit_round, "first_words", too_long_in_chat(edit_round.first_words))
    assert len(one.edit("{} hums in", NEW, SUBJECT).facts[0].asked) == len(fact.asked) - 1
    facts = [{"prompt": "{} lives in", "subject": f"Ann {i}", "target": "Oslo"} for i in range(4)]
    report = one.edit_facts(facts)  # too many to be shown
    assert all(asked.kind != "in chat" for fact in report.facts for asked in fact.asked)


def test_the_report_says_that_another_token_than_the_subjects_was_edited(one, monkeypatch):
    monkeypatch.setattr(
        "nse_plugin.methods.bookkeeping.for_small_keys",
        lambda _layout, rows, *_numbers, **_settings: [edited_at_the_end(each) for each in rows],
    )
    report = one.edit("{} plays the", "zither", "Tiathiax Goneisom")
    assert report.past_sinks == 1
    assert "edited at the prompt's last word, because this model has an attention" in report.text()
