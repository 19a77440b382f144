"""Command-line options with the types, defaults and docstrings of settings dataclasses."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Optional, get_args, get_type_hints

import typer

from nse_plugin.hparams.docs import field_docs

AS_JSON = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")
]
FOLDER = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of edits, or a run.")]
RUN = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or of edits.")]
DEVICE = Annotated[
    str | None, typer.Option(help="cpu, or the number of a GPU, instead of the folder's.")
]
MODEL = Annotated[str | None, typer.Option(help="Model to load instead of the YAML's model_name.")]


def config_option(panel: str) -> Any:
    """The option ``--config`` for a YAML file of the command's other options."""
    text = "YAML file with any of these options; command-line values override it."
    return typer.Option(help=text, rich_help_panel=panel)


class Group(NamedTuple):
    """Fields that the help shows together."""

    title: str
    settings: type
    """A dataclass with a docstring under each field."""
    names: Sequence[str]


def with_fields(*groups: Group) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Add an option to a command for each of these fields.

    Its first argument is a dict of those options that are given on the command line.
    """

    def decorated(command: Callable[..., int]) -> Callable[..., int]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        made = [_parameter(group, name) for group in groups for name in group.names]
        names = [parameter.name for parameter in made]

        def called(**options: Any) -> int:
            given = {n: v for n in names if (v := options.pop(n)) is not None}
            return command(given, **options)

        return with_parameters(called, command, (*own, *made))

    return decorated


def with_parameters(
    called: Callable[..., int], command: Callable[..., int], parameters: Iterable[inspect.Parameter]
) -> Callable[..., int]:
    """A function with the name and docstring of a command, and with these parameters for typer."""
    functools.update_wrapper(called, command)
    named = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    called.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in named}
    return called


def examples(*lines: str) -> str:
    """The epilog of a command's help."""
    return escaped("\n\n".join(("Examples:", *(f"  {line}" for line in lines))))


def escaped(text: str) -> str:
    """Text whose brackets rich shows as they are."""
    return text.replace("[", r"\[")


def _parameter(group: Group, name: str) -> inspect.Parameter:
    field = next(field for field in fields(group.settings) if field.name == name)
    text = field_docs(group.settings)[name]
    if field.default not in (MISSING, None, "", False):
        text += f" [default: {field.default}]"
    option = typer.Option(help=escaped(text), show_default=False, rich_help_panel=group.title)
    hint = get_type_hints(group.settings)[name]
    if str in get_args(hint):  # a union; what is typed on a command line is text
        hint = str
    annotation: Any = Optional[hint]  # noqa: UP045  a value
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[annotation, option],
    )
