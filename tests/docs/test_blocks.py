"""Every code block of every page: Python is run, commands are parsed, YAML and JSON are read.

A block that can be none of these says why after its fence, with a word of :data:`NOT_RUN`.
"""

from __future__ import annotations

import ast
import configparser
import dataclasses
import importlib
import json
import re
import shlex
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from nse_plugin import cli
from nse_plugin.cli.app import command_group
from nse_plugin.compare.settings import CompareSettings
from nse_plugin.compare.specs import parse_methods
from nse_plugin.data import atlas
from nse_plugin.data.facts import read_facts
from nse_plugin.data.models import load_model
from nse_plugin.data.readers import parse_records
from nse_plugin.data.streams import read_data
from nse_plugin.errors import NSEPluginError
from nse_plugin.hparams import NSEHparams
from nse_plugin.methods.nse import edit_round
from nse_plugin.methods.registry import load_hparams
from nse_plugin.runs.schema import UndoneRounds, check
from nse_plugin.session.session import EditSession
from nse_plugin.statistics.named_texts import NAMED_TEXTS
from tests.docs.pages import PAGES, ROOT, Block, blocks, read

NOT_RUN = {
    "real": "it needs a published model; test_tutorial.py runs it: pytest -m real",
    "easyedit": "it needs a checkout of EasyEdit, or is a file of it; see tests/contract",
    "minutes": "it takes minutes",
    "vllm": "it needs vLLM",
    "llama.cpp": "it needs the tools of llama.cpp; run by hand",
}
RAISES = "raises"
"""After the fence of Python that is refused."""
SHELL, DATA = ("", "sh", "bash"), ("yaml", "json")
ALL = [(page, block) for page in PAGES for block in blocks(page)]


def of(*languages: str):
    """The blocks in some languages, as parameters of a test."""
    found = [(page, block) for page, block in ALL if block.language in languages]
    names = [f"{page}:{block.line}" for page, block in found]
    return pytest.mark.parametrize(("page", "block"), found, ids=names)


def test_every_block_is_run_or_checked_or_says_why_not():
    languages = {*SHELL, *DATA, "python"}
    files = re.compile(r"(python|diff) easyeditor/\S+")  # test_upstream.py reads them
    assert [
        f"{page}:{block.line}"
        for page, block in ALL
        if not files.fullmatch(f"{block.language} {block.mark}")
        and not (block.language in languages and block.mark in ("", RAISES, *NOT_RUN, *READERS))
    ] == []
    for page in PAGES:
        assert not re.search(r"\n\n    (nse|python|from|import|pip) ", read(page)), "fence it"


# --- commands -------------------------------------------------------------------------------------


@of(*SHELL)
def test_commands_are_understood(page, block):
    for words in commands(block.text):
        if not understood(words):
            assert block.mark in NOT_RUN, f"what is {words[0]!r}?"


INLINE = re.compile(r"`(nse [a-z]+ [^`]*--[^`]*)`")


@pytest.mark.parametrize("page", [page for page in PAGES if INLINE.search(read(page))])
def test_commands_in_sentences_have_their_options(page):
    """They may leave out what is required."""
    for _, name, *words in map(str.split, INLINE.findall(read(page))):
        command = command_group().commands[name]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options


def commands(text: str) -> list[list[str]]:
    """The commands of a script as lists of words."""
    text = re.sub(r"\\\n\s*", " ", text)
    text = re.sub(r"(^|\s+)# .*$", "", text, flags=re.MULTILINE)
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    found: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set(";&|\n"):
            found.append([])
        else:
            assert not re.search("[<>]", word), f"a shell reads {word!r} as a redirection"
            found[-1].append(word)
    return [words for words in found if words]


def understood(words: list[str]) -> bool:
    """Check a command; false for one that is not known here."""
    while words and (words[0] == "do" or re.match(r"\w+=", words[0])):
        words = words[1:]
    if not words or words[0] in ("for", "done", "export") or words == [".", ".venv/bin/activate"]:
        return True
    if words[0] == "python" and re.match("[a-z_]+\\.py$", words[1]):
        return False  # a script from elsewhere
    known = {"nse": nse, "python": python, "python3": python, "pip": pip, "marimo": files}
    program = Path(words[0]).name
    if program in known:
        known[program](words[1:])
    return program in known


def nse(arguments: list[str]) -> None:
    """The real parser takes it, and the settings and methods that it names exist."""
    group = command_group()
    parent = group.make_context("nse", arguments[:1])
    command = group.get_command(parent, arguments[0])
    given = command.make_context(arguments[0], arguments[1:], parent=parent).params
    for name in filter(None, (given.get("hparams"), given.get("against"))):
        load_hparams(name)
    if given.get("methods"):
        parse_methods(given["methods"])
    if given.get("config") and (ROOT / given["config"]).is_file():
        CompareSettings.read(ROOT / given["config"], {})


def python(arguments: list[str]) -> None:
    """The script is there and knows the options, or the module can be imported."""
    module = arguments[1] if arguments[0] == "-m" else ""
    if arguments[0] == "-c":
        compile(arguments[1], "-c", "exec")
    elif module and not module.startswith("benchmarks."):
        if module.startswith("nse_plugin"):
            importlib.import_module(module)
        files([word for word in arguments[2:] if "/" in word and not word.startswith("build/")])
    else:
        path = ROOT / (module.replace(".", "/") or arguments[0])
        if module:
            path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        script = path.read_text(encoding="utf-8")
        assert {word for word in arguments if word.startswith("--")} <= set(
            re.findall(r'"(--[\w-]+)"', script)
        )


def pip(arguments: list[str]) -> None:
    """Constraints and extras are there."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    for before, word in pairwise(arguments):
        if before == "-c":
            files([word])
        if before == "-e" and (extra := re.fullmatch(r"\.\[(\w+)\]", word)):
            assert extra[1] in config["options.extras_require"]


def files(arguments: list[str]) -> None:
    """All files that are named are there."""
    assert [word for word in arguments if "." in word and not (ROOT / word).exists()] == []


# --- data -----------------------------------------------------------------------------------------

READERS = {
    "facts.yaml": read_facts,
    "records.json": lambda path: read_data(str(path), None, 0),
    "compare.yaml": lambda path: CompareSettings.read(path, {}),
    "undone.json": lambda path: check(json.loads(path.read_text()), UndoneRounds, str(path), ""),
}


@of(*DATA)
def test_data_can_be_read(page, block, tmp_path):
    path = tmp_path / block.mark
    path.write_text(block.text, encoding="utf-8")
    READERS[block.mark](path)


# --- Python ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder to work in, with a run of two rounds and its adapter."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("pages")
        patch.chdir(folder)
        patch.setenv("NSE_PLUGIN_HOST", "embedded")
        (folder / "minutes.txt").write_text("One.\n\nTwo.")
        run = ["run", "--hparams", "NSE/atlas-gpt2", "--data", "atlas:2", "--round-size", "1"]
        assert cli.main([*run, "--out", "run1", "-q"]) == 0
        assert cli.main(["export", "run1", "--to", "peft", "--out", "adapter1", "-q"]) == 0
        yield folder


def names_of(code: str) -> dict[str, object]:
    """What a page takes for granted, of that which its code names."""
    hparams = dataclasses.replace(
        NSEHparams.from_hparams("NSE/atlas-gpt2"), v_num_grad_steps=2, n_contexts=1,
        mom2_adjustment=False,
    )  # fmt: skip
    requests = parse_records(atlas.edit_set(5))
    fact = requests[0]
    facts = {"prompts": fact.text, "subject": fact.subject, "target_new": fact.target_new}
    frame = pd.DataFrame({"ours": [1.0, 2.0], "theirs": [2.0, 4.0]}, index=[1, 2])
    names = {
        "hparams": hparams, "requests": requests, "frame": frame.rename_axis("round"),
        "facts": facts, "prompt": fact.text, "metrics": [{"post": {"rewrite_acc": [1.0]}}],
    }  # fmt: skip
    if "untouched_model" in code:
        names["untouched_model"] = load_model(hparams)[0]
    if re.search(r"\b(session|model|tokenizer)\b", code):
        names["model"], names["tokenizer"], _ = load_model(hparams)
    if re.search(r"^(?!session =).*\bsession\b", code, re.MULTILINE):
        names["session"] = EditSession.of(names["model"], names["tokenizer"])
        for request in requests:
            edit_round(names["session"], [request], hparams)
    return names


def runs(block: Block) -> bool:
    return block.language == "python" and block.mark in ("", RAISES)


def pages_with_python() -> list[str]:
    found = {page: None for page, block in ALL if runs(block)}
    del found["docs/tutorial.md"]  # test_tutorial.py runs it, with its commands in between
    return list(found)


@pytest.mark.parametrize("page", pages_with_python())
def test_python_is_run(page, folder, monkeypatch):
    for name in list(NAMED_TEXTS):  # what a page registers goes again
        monkeypatch.setitem(NAMED_TEXTS, name, NAMED_TEXTS[name])
    monkeypatch.delitem(NAMED_TEXTS, "minutes", raising=False)
    found = list(filter(runs, blocks(page)))
    names = names_of("".join(block.text for block in found))
    for block in found:
        with pytest.raises(NSEPluginError) if block.mark == RAISES else nullcontext():
            exec(compile("\n" * block.line + block.text, ROOT / page, "exec"), names)


@of("python")
def test_python_that_is_not_run_imports_what_there_is(page, block: Block, monkeypatch):
    monkeypatch.setenv("NSE_PLUGIN_HOST", "embedded")
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("nse_plugin"):
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
