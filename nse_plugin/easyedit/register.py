"""Our methods in the method table of the real EasyEdit.

:func:`register` puts our methods into EasyEdit's method table and makes its batch gate accept them;
:func:`unregister` undoes exactly that.  The changes are recorded in EasyEdit itself (an attribute
of the module that holds the method table), not in this package.
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
    import_easyedit,
    method_table,
    part,
    probe,
)
from nse_plugin.errors import HostError

log = logging.getLogger(__name__)

ALIAS = "{}-plugin"
"""The name under which a method of ours is always registered, whatever EasyEdit itself has."""

_GATE = "easyeditor.editors.batch_editor:BatchEditor"
_GATE_METHOD = "is_batchable_method"
_MARK = "__nse_plugin__"


@dataclass
class Registration:
    """What :func:`register` changed in EasyEdit, with all that is needed to undo it."""

    functions: dict[str, Callable[..., Any]] = field(default_factory=dict)
    """Our functions in the method table, by name."""
    replaced: dict[str, Any] = field(default_factory=dict)
    """The table's earlier functions under names that ``override=True`` took over."""
    gate: Any = None
    """Our wrapper of the batch gate, as the class attribute."""
    gate_before: Any = None
    """The class attribute before."""

    @property
    def names(self) -> list[str]:
        """The names under which our methods are in the table."""
        return list(self.functions)


def registration() -> Registration | None:
    """The current registration, or None; imports nothing."""
    return getattr(sys.modules.get(TABLE), _MARK, None)


def register(methods: Iterable[str] | None = None, *, override: bool = False) -> Registration:
    """Put our methods into EasyEdit; calling it again is harmless.

    Each method is registered under its own name and as ``NAME-plugin``.  A name that EasyEdit
    already has stays EasyEdit's unless ``override`` is true; ours is then ``NAME-plugin`` only.
    Methods that attach modules (LoRA, GRACE) are not registered: EasyEdit's editors can undo an
    edit only if it changed weights.

    Args:
        methods: names of our methods; None for all that EasyEdit can use.
        override: take over names of EasyEdit's own methods.

    Raises:
        HostError: there is no EasyEdit, a part of it that is needed here is missing, or a method
            asked for *by name* attaches modules or has a name that EasyEdit uses.  EasyEdit is
            then unchanged.
    """
    host = import_easyedit()
    missing = probe(host)
    lines = "\n".join(missing.values())
    if "method table" in missing or "batch gate" in missing:
        raise HostError(f"{host} has changed where nse_plugin hooks in:\n{lines}")
    if missing:
        log.warning("%s lacks parts that nse_plugin uses:\n%s", host, lines)
    done = registration() or Registration()
    wanted = _wanted(methods, done, override)
    table = method_table()
    for name, function in wanted.items():
        if _is_taken(name, done):
            done.replaced[name] = table[name]
        table[name] = done.functions[name] = function
    if done.gate is None:
        _wrap_gate(done)
    setattr(importlib.import_module(TABLE), _MARK, done)
    return done


def unregister() -> None:
    """Undo :func:`register`; does nothing if nothing is registered.

    Functions that other code has put in our place since then stay.  A batch gate that other code
    has wrapped again stays wrapped; our wrapper then delegates to the original.
    """
    done = registration()
    if done is None:
        return
    table = method_table()
    for name, function in done.functions.items():
        if table.get(name) is not function:
            log.warning("%r in EasyEdit's method table is no longer ours and stays as it is", name)
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
        log.warning("EasyEdit's batch gate was wrapped again after us; our wrapper is now inactive")
    delattr(importlib.import_module(TABLE), _MARK)


def has_own(name: str) -> bool:
    """Whether EasyEdit has a method of its own under this name.

    Raises:
        HostError: there is no EasyEdit.
    """
    import_easyedit()
    return _is_taken(name, registration() or Registration())


def _wanted(
    methods: Iterable[str] | None, done: Registration, override: bool
) -> dict[str, Callable[..., Any]]:
    """The functions to put into the table, by name."""
    from nse_plugin.easyedit.overtone import in_table
    from nse_plugin.methods.registry import METHODS, apply_function, find_method

    usable = [name for name, method in METHODS.items() if not method.attaches]
    chosen = usable if methods is None else [find_method(name).name for name in methods]
    refuse_attaching([name for name in chosen if name not in usable])
    taken = [name for name in chosen if _is_taken(name, done)]
    if taken and methods is not None and not override:
        raise HostError(
            f"EasyEdit has methods of its own under {', '.join(taken)}; register() without names "
            f"offers ours as {', '.join(map(ALIAS.format, taken))}, "
            "register(..., override=True) takes the names over"
        )
    wanted = {}
    for name in chosen:
        alias = ALIAS.format(name)
        if _is_taken(alias, done) and not override:
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
    """Raise :class:`HostError` if there are such methods of ours, which attach modules."""
    if names:
        raise HostError(
            f"{', '.join(names)} of nse_plugin attaches modules to the model, and EasyEdit's "
            "editors can undo changes of weights only; use NSE_PLUGIN_HOST=embedded, or "
            "EasyEdit's own method with its own hparams class"
        )


def _is_taken(name: str, done: Registration) -> bool:
    """Whether EasyEdit or other code has a method under this name."""
    table = method_table()
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
