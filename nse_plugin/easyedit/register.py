"""Our methods in the method table of the real EasyEdit.

:func:`register` puts our methods into EasyEdit's method table and lets its batch gate accept them;
:func:`unregister` undoes exactly that.  What was changed is recorded in EasyEdit itself (an
attribute of the module that holds the method table), not in this package.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from nse_plugin.easyedit.checkout import (
    TABLE,
    Host,
    import_easyedit,
    method_table,
    missing,
    part,
    probe,
)
from nse_plugin.errors import HostError

log = logging.getLogger(__name__)

ALIAS = "{}-plugin"
"""The name under which a method of ours is always found, whatever EasyEdit itself has."""

_GATE = "easyeditor.editors.batch_editor:BatchEditor"
_GATE_METHOD = "is_batchable_method"
_MARK = "__nse_plugin__"


@dataclass
class Registration:
    """What :func:`register` changed in EasyEdit, with all that is needed to undo it."""

    host: Host
    functions: dict[str, Callable[..., Any]] = field(default_factory=dict)
    """What we put into the method table, by name."""
    replaced: dict[str, Any] = field(default_factory=dict)
    """What the table held before, of names that were taken over with ``override=True``."""
    gate: Any = None
    """Our wrapper of the batch gate, as the class has it."""
    gate_before: Any = None
    """The batch gate as the class had it before."""

    @property
    def names(self) -> list[str]:
        """The names under which our methods are in the table."""
        return list(self.functions)


def registration() -> Registration | None:
    """What is registered now, read off EasyEdit; None if nothing is.  Imports nothing."""
    return getattr(sys.modules.get(TABLE), _MARK, None)


def register(methods: Iterable[str] | None = None, *, override: bool = False) -> Registration:
    """Put our methods into EasyEdit; calling it again is harmless.

    Each method enters under its own name and as ``NAME-plugin``.  A name that EasyEdit already has
    is left to EasyEdit unless ``override`` is true; ours is then found under ``NAME-plugin`` only.
    Methods that attach modules (LoRA, GRACE) are not registered: EasyEdit's editors can undo an
    edit only if it changed weights.

    Args:
        methods: names of our methods; None for all that EasyEdit can use.
        override: take over names that EasyEdit has for methods of its own.

    Raises:
        HostError: there is no EasyEdit, a part of it that is needed here is missing, or a method
            asked for *by name* attaches modules or has a name that EasyEdit uses.  EasyEdit is as
            before.
    """
    host = import_easyedit()
    points = probe(host)
    lacking = [point for point in points if not point.present]
    if any(point.name in ("method table", "batch gate") for point in lacking):
        raise HostError(f"{host} has changed where nse_plugin hooks in:\n{missing(lacking)}")
    if lacking:
        log.warning("%s lacks parts that nse_plugin uses:\n%s", host, missing(lacking))
    done = registration() or Registration(host)
    wanted = _wanted(methods, done, override)
    table = method_table()
    for name, function in wanted.items():
        if name in table and table[name] is not done.functions.get(name):
            done.replaced[name] = table[name]
        table[name] = done.functions[name] = function
    if done.gate is None:
        _wrap_gate(done)
    setattr(importlib.import_module(TABLE), _MARK, done)
    return done


def unregister() -> None:
    """Undo what :func:`register` did; does nothing if nothing is registered.

    What other code put in our place since then is left as it is.  A batch gate that was
    wrapped again by other code stays wrapped; our wrapper then delegates to the original.
    """
    done = registration()
    if done is None:
        return
    table = method_table()
    for name, function in done.functions.items():
        if table.get(name) is not function:
            log.warning("%r in EasyEdit's method table is no longer ours and was left alone", name)
        elif name in done.replaced:
            table[name] = done.replaced[name]
        else:
            del table[name]
    done.functions.clear()
    done.replaced.clear()
    gate = part(_GATE)
    if gate.__dict__.get(_GATE_METHOD) is done.gate:
        setattr(gate, _GATE_METHOD, done.gate_before)
    else:
        log.warning("EasyEdit's batch gate was wrapped again after us; our part was switched off")
    delattr(importlib.import_module(TABLE), _MARK)


def has_own(name: str) -> bool:
    """Whether EasyEdit has a method of its own under this name.

    Raises:
        HostError: there is no EasyEdit.
    """
    import_easyedit()
    found = method_table().get(name)
    done = registration()
    return found is not None and (done is None or found is not done.functions.get(name))


def _wanted(
    methods: Iterable[str] | None, done: Registration, override: bool
) -> dict[str, Callable[..., Any]]:
    """What is to be put into the table and is not there yet, by name."""
    from nse_plugin.easyedit.overtone import in_table
    from nse_plugin.methods.registry import METHODS, apply_function, find_method

    table = method_table()
    usable = [name for name, method in METHODS.items() if not method.attaches]
    chosen = usable if methods is None else [find_method(name).name for name in methods]
    refuse_attaching([name for name in chosen if name not in usable])
    taken = [name for name in chosen if _is_taken(name, table, done)]
    if taken and methods is not None and not override:
        raise HostError(
            f"EasyEdit has methods of its own under {', '.join(taken)}; register() without names "
            f"offers ours as {', '.join(map(ALIAS.format, taken))}, "
            "register(..., override=True) takes the names over"
        )
    wanted = {}
    for name in chosen:
        alias = ALIAS.format(name)
        if _is_taken(alias, table, done) and not override:
            raise HostError(
                f"other code put a method {alias!r} into EasyEdit; take it out, or take the "
                "name over with register(override=True)"
            )
        function = done.functions.get(alias) or in_table(apply_function(name))
        if name not in taken or override:
            wanted[name] = function
        else:
            log.info("EasyEdit has its own %s; ours is %s", name, alias)
        wanted[alias] = function
    return wanted


def refuse_attaching(names: list[str]) -> None:
    """Refuse methods that attach modules.

    Raises:
        HostError: there are such.
    """
    if names:
        raise HostError(
            f"{', '.join(names)} of nse_plugin attaches modules to the model, and EasyEdit's "
            "editors can undo changes of weights only; use NSE_PLUGIN_HOST=embedded, or "
            "EasyEdit's own method with its own hparams class"
        )


def _is_taken(name: str, table: dict[str, Any], done: Registration) -> bool:
    return name in table and table[name] is not done.functions.get(name)


def _wrap_gate(done: Registration) -> None:
    gate, table = part(_GATE), method_table()
    done.gate_before = gate.__dict__[_GATE_METHOD]
    original = getattr(gate, _GATE_METHOD)

    @functools.wraps(original)
    def is_batchable_method(alg_name: str) -> bool:
        ours = done.functions.get(alg_name)
        return (ours is not None and table.get(alg_name) is ours) or original(alg_name)

    done.gate = staticmethod(is_batchable_method)
    setattr(gate, _GATE_METHOD, done.gate)
