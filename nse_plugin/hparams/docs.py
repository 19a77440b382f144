"""The docstrings under the fields of settings, for help texts and comments."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap


@functools.cache
def field_docs(settings: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, as plain text in one line."""
    found: dict[str, str] = {}
    for base in reversed(settings.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, doc in zip(body.body, body.body[1:]):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(doc, ast.Expr)
                and isinstance(doc.value, ast.Constant)
                and isinstance(doc.value.value, str)
            ):
                text = " ".join(doc.value.value.split())
                found[field.target.id] = text.replace("``", "")
    return found
