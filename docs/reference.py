"""The pages of the site that are made from the code, and what it changes in those that are not.

``python docs/reference.py`` writes the pages; that is how settings.md is brought up to date.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union

import typer
from typer.cli import get_docs_for_click

import nse_plugin
from nse_plugin.cli.app import command_group
from nse_plugin.compare.settings import CompareSettings
from nse_plugin.evaluation.settings import Protocol
from nse_plugin.hparams.docs import field_docs
from nse_plugin.hparams.validation import Settings
from nse_plugin.methods.registry import METHODS
from nse_plugin.runs.settings import RunSettings
from nse_plugin.runs.stopping import StopRules

HERE = Path(__file__).parent
GENERATED = HERE / "generated"
SETTINGS = HERE / "settings.md"
MOVED = {
    HERE.parent / "README.md": GENERATED / "readme.md",
    HERE.parent / "CHANGELOG.md": GENERATED / "changelog.md",
}
"""Pages outside this folder, and where the site has them."""

MADE = """- [Commands](generated/commands.md) with all their options
- [The Python package](generated/python.md): its public names
"""
"""Entries of index.md that only the site has."""

LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")
ANCHOR = re.compile(r'^<a id="([\w-]+)"></a>', re.MULTILINE)
SECTION = re.compile(r"^## (.+)\n((?:.*\n)*?)(?=## |\Z)", re.MULTILINE)
ENTRY = re.compile(r"\[([^\]]+)\]\(([^)#]+)\.md\)")


def write_pages() -> None:
    """Write each page that changed; Sphinx then reads only those again."""
    GENERATED.mkdir(exist_ok=True)
    found = {
        SETTINGS: settings_page(),
        GENERATED / "python.md": python_page(),
        GENERATED / "commands.md": commands_page(),
    }
    for page, at in MOVED.items():
        found[at] = relinked(page.read_text(encoding="utf-8"), page, at)
    for path, text in found.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def edit_source(app: Any, name: str, source: list[str]) -> None:
    """What Sphinx reads in place of a page; it calls this with the page's name and text."""
    page = HERE / f"{name}.md"
    if page.parent != GENERATED:
        source[0] = ANCHOR.sub(r"(\1)=\n", relinked(source[0], page, page))
    if name == "index":
        head = "## Reference\n\n"
        source[0] = SECTION.sub(with_contents, source[0].replace(head, head + MADE))


def relinked(text: str, page: Path, at: Path) -> str:
    """A page's text with its links as they are right for the place where the site has it."""

    def link(found: re.Match[str]) -> str:
        target = Path(os.path.normpath(page.parent / found[0]))
        return os.path.relpath(MOVED.get(target, target), at.parent)

    return LINK.sub(link, text)


def with_contents(found: re.Match[str]) -> str:
    """A section of index.md with the pages of its list as contents of the site under its title."""
    pages = [f"{text[0].upper()}{text[1:]} <{page}>" for text, page in ENTRY.findall(found[2])]
    listed = "\n".join(pages)
    contents = f"```{{toctree}}\n:hidden:\n:caption: {found[1]}\n\n{listed}\n```\n\n"
    return found[0] + (contents if pages else "")


def commands_page() -> str:
    """The commands with all their options, as typer writes them."""
    commands = command_group()
    context = typer.Context(commands, help_option_names=["-h", "--help"])
    text = get_docs_for_click(obj=commands, ctx=context, name="nse", title="Commands")
    examples = re.compile(r"^Examples:\n((?:\n  \S.*\n)+)", re.MULTILINE)

    def block(found: re.Match[str]) -> str:
        lines = "".join(f"{line.strip()}\n" for line in found[1].splitlines() if line.strip())
        return f"```console\n{lines}```\n"

    return examples.sub(block, text.replace("\\[", "["))


def python_page() -> str:
    """The public names of the package, from their docstrings, and the files of a run as types."""
    names = [name for name in nse_plugin.__all__ if name != "__version__"]
    names = [name for name in names if getattr(nse_plugin, name).__name__ == name]  # no aliases
    keyed = [name for name in names if name.endswith("Hparams")]
    lines = ["# The Python package", "", "## Editing", "", "```{eval-rst}"]
    for name in names:
        if name not in keyed:
            is_class = inspect.isclass(getattr(nse_plugin, name))
            lines += [f".. auto{'class' if is_class else 'function'}:: nse_plugin.{name}"]
            lines += ["   :members:", ""] if is_class else [""]
    lines += ["```", "", "## Hyperparameters", ""]
    lines += ["Their fields are the [keys of the YAML files](../settings.md).", "", "```{eval-rst}"]
    for name in keyed:
        lines += [f".. autoclass:: nse_plugin.{name}(**keys)"]
        lines += ["   :members: from_hparams, from_dict, to_dict", ""]
    lines += ["```", "", "## Files of a run as types", "", "```{eval-rst}"]
    lines += [".. automodule:: nse_plugin.runs.schema", "   :members:", "   :undoc-members:"]
    return "\n".join([*lines, "```", ""])


def settings_page() -> str:
    """The keys of the YAML files, from the dataclasses that read them."""
    methods = [method.hparams for method in METHODS.values()]
    others: list[type] = [RunSettings, Protocol, StopRules, CompareSettings]
    order: dict[type, None] = {}
    for settings in (*others, *methods):
        for base in reversed(settings.__mro__):
            if issubclass(base, Settings) and base is not Settings:
                order[base] = None
    text = (
        "# Keys of the YAML files\n\n"
        "For [a run](#runsettings) (`nse run --config`), [a comparison](#comparesettings) "
        "(`nse compare --config`) and each method\n(`hparams/`). In the first two, "
        "[`protocol`](#protocol) and [`stop`](#stoprules) are groups of keys. A key without a "
        "default is\nrequired. `python docs/reference.py` makes this page from the code.\n"
    )
    return text + "".join(map(settings_section, order))


def settings_section(settings: type) -> str:
    """The keys that a class of settings adds to those of its base."""
    (base, *_) = settings.__bases__
    inherited = {f.name for f in dataclasses.fields(base)} if dataclasses.is_dataclass(base) else ()
    own = [f for f in dataclasses.fields(settings) if f.name not in inherited]
    docs, hints = field_docs(settings), typing.get_type_hints(settings)
    lines = ["", f"## {title(settings)}", "", paragraph(settings), ""]
    if inherited:
        lines += [f"Also takes the keys of [{title(base)}](#{title(base).lower()}).", ""]
    if own:
        lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for field in own:
        key = f"`{settings.key_of.get(field.name, field.name)}`"  # type: ignore[attr-defined]
        allowed = f"{value(hints[field.name])}{field.metadata.get('range', '')}"
        cells = (key, allowed, default(field), docs.get(field.name, ""))
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def paragraph(found: type) -> str:
    """The first paragraph of a docstring."""
    return " ".join(inspect.getdoc(found).split("\n\n")[0].split())


def title(settings: type) -> str:
    """The heading of a class."""
    return settings.__name__.lstrip("_")


def value(hint: Any) -> str:
    """What a key of this type may hold, in the words of YAML."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if kind in (Union, types.UnionType):
        return " or ".join(map(value, parts))
    if kind in (list, tuple):
        return f"list of {value(parts[0])}"
    if kind in (dict, Mapping):
        return "keys with values"
    return "null" if hint is types.NoneType else "any" if hint is Any else hint.__name__


def default(field: dataclasses.Field) -> str:
    """The value of a key that is not given."""
    made = field.default
    if field.default_factory is not dataclasses.MISSING:
        made = field.default_factory()
    return "" if made is dataclasses.MISSING else f"`{json.dumps(made)}`"


if __name__ == "__main__":
    write_pages()
