"""Our methods inside the real EasyEdit: registration, and its editor.

:func:`register` puts our methods into EasyEdit's method table and lets its batch gate accept them;
:func:`unregister` undoes exactly that.  What was changed is recorded in EasyEdit itself (an
attribute of the module that holds the method table), not in this package.
"""

from __future__ import annotations

import copy
import functools
import importlib
import logging
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from nse_plugin.easyedit.checkout import (
    HOW_TO_GET_IT,
    HookPoint,
    Host,
    find,
    missing,
    part,
    probe,
    require,
)
from nse_plugin.errors import HostError, did_you_mean

__all__ = [
    "HookPoint",
    "Host",
    "ReadyModel",
    "Registration",
    "base_editor",
    "evaluator",
    "find",
    "probe",
    "register",
    "registration",
    "unregister",
]

log = logging.getLogger(__name__)

ALIAS = "{}-plugin"
"""The name under which a method of ours is always found, whatever EasyEdit itself has."""

_TABLE = "easyeditor.util.alg_dict"
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
    """What stood there before, of names that were taken over with ``override=True``."""
    gate: Any = None
    """Our wrapper of the batch gate, as it stands in the class."""
    gate_before: Any = None
    """The batch gate as it stood in the class before."""

    @property
    def names(self) -> list[str]:
        """The names under which our methods are in the table."""
        return list(self.functions)


def registration() -> Registration | None:
    """What is registered now, read off EasyEdit; None where nothing is.  Imports nothing."""
    return getattr(sys.modules.get(_TABLE), _MARK, None)


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
    host = find()
    if host is None:
        raise HostError(f"register() found no EasyEdit. To have it: {HOW_TO_GET_IT}")
    points = probe(host)
    lacking = [point for point in points if not point.present]
    if any(point.name in ("method table", "batch gate") for point in lacking):
        raise HostError(f"{host} has changed where nse_plugin hooks in:\n{missing(lacking)}")
    if lacking:
        log.warning("%s lacks parts that nse_plugin uses:\n%s", host, missing(lacking))
    done = registration() or Registration(host)
    wanted = _wanted(methods, done, override)
    table = part(f"{_TABLE}:ALG_DICT")
    for name, function in wanted.items():
        if name in table and table[name] is not done.functions.get(name):
            done.replaced[name] = table[name]
        table[name] = done.functions[name] = function
    if done.gate is None:
        _wrap_gate(done)
    setattr(importlib.import_module(_TABLE), _MARK, done)
    return done


def unregister() -> None:
    """Undo what :func:`register` did; does nothing if nothing is registered.

    What somebody else put in our place since then is left as it is.  A batch gate that was
    wrapped again by other code stays wrapped; our wrapper then delegates to the original.
    """
    done = registration()
    if done is None:
        return
    table = part(f"{_TABLE}:ALG_DICT")
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
    delattr(importlib.import_module(_TABLE), _MARK)


def _wanted(
    methods: Iterable[str] | None, done: Registration, override: bool
) -> dict[str, Callable[..., Any]]:
    """What is to be put into the table and is not there yet, by name."""
    from nse_plugin.easyedit.overtone import in_table
    from nse_plugin.methods.registry import METHODS, apply_function, find_method

    table = part(f"{_TABLE}:ALG_DICT")
    usable = [name for name, method in METHODS.items() if not method.attaches]
    chosen = usable if methods is None else [find_method(name).name for name in methods]
    _refuse_attaching([name for name in chosen if name not in usable])
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
                f"somebody else put a method {alias!r} into EasyEdit; take it out, or take the "
                "name over with register(override=True)"
            )
        function = done.functions.get(alias) or in_table(apply_function(name))
        if name not in taken or override:
            wanted[name] = function
        else:
            log.info("EasyEdit has its own %s; ours is %s", name, alias)
        wanted[alias] = function
    return wanted


def _refuse_attaching(names: list[str]) -> None:
    if names:
        raise HostError(
            f"{', '.join(names)} of nse_plugin attaches modules to the model, and EasyEdit's "
            "editors can take back changed weights only; use NSE_PLUGIN_HOST=embedded, or "
            "EasyEdit's own method with its own hparams class"
        )


def _is_taken(name: str, table: dict[str, Any], done: Registration) -> bool:
    return name in table and table[name] is not done.functions.get(name)


def _wrap_gate(done: Registration) -> None:
    gate, table = part(_GATE), part(f"{_TABLE}:ALG_DICT")
    done.gate_before = gate.__dict__[_GATE_METHOD]
    original = getattr(gate, _GATE_METHOD)

    @functools.wraps(original)
    def is_batchable_method(alg_name: str) -> bool:
        ours = done.functions.get(alg_name)
        return (ours is not None and table.get(alg_name) is ours) or original(alg_name)

    done.gate = staticmethod(is_batchable_method)
    setattr(gate, _GATE_METHOD, done.gate)


# --- the editor ---------------------------------------------------------------------------------


class ReadyModel(str):
    """A loaded model and its tokenizer as ``hparams.model_name``, for EasyEdit.

    EasyEdit takes a ready pair as model_name, but then treats it as a text when it evaluates.
    This is both: a text, the model's name, that unpacks into model and tokenizer.  It can go when
    EasyEdit's evaluator no longer looks for "t5" in a pair.
    """

    model: Any
    tokenizer: Any

    def __new__(cls, model: Any, tokenizer: Any) -> ReadyModel:
        """Named as the model's config names it, or by its family."""
        config = model.config
        ready = super().__new__(cls, getattr(config, "_name_or_path", "") or config.model_type)
        ready.model, ready.tokenizer = model, tokenizer
        return ready

    def __iter__(self) -> Any:
        return iter((self.model, self.tokenizer))

    def __deepcopy__(self, _memo: dict[int, Any]) -> ReadyModel:
        return self  # hparams are copied for the record; the model is not


def base_editor() -> type:
    """The BaseEditor of nse_plugin where EasyEdit is the host; registers our methods.

    It is a subclass of EasyEdit's that reads ``atlas:`` names and ready (model, tokenizer)
    pairs in ``model_name``, runs *our* method where EasyEdit has one of the same name, and says
    before any work that fluency needs data of nltk that is not there.  Everything else is
    EasyEdit's; so ``easyeditor.BaseEditor`` serves as well.

    Raises:
        HostError: as :func:`register`.
    """
    register()
    return _subclass(part("easyeditor.editors.editor:BaseEditor"))


def evaluator() -> Callable[..., dict[str, Any]]:
    """EasyEdit's ``compute_edit_quality``, or ours, which computes the same, where it lacks it.

    Raises:
        HostError: EasyEdit is not there or cannot be imported.
    """
    host = find()
    if host is None:
        raise HostError(f"there is no EasyEdit. To have it: {HOW_TO_GET_IT}")
    if all(point.present for point in probe(host) if point.name == "evaluator"):
        return part("easyeditor.evaluate.evaluate:compute_edit_quality")
    from nse_plugin.evaluation.edit_quality import compute_edit_quality

    return compute_edit_quality


def has_own(name: str) -> bool:
    """Whether EasyEdit has a method of its own under this name.

    Raises:
        HostError: there is no EasyEdit.
    """
    require()
    found = part(f"{_TABLE}:ALG_DICT").get(name)
    done = registration()
    return found is not None and (done is None or found is not done.functions.get(name))


@functools.cache
def _subclass(host_editor: type) -> type:
    from nse_plugin.easyedit import overtone as host_overtone

    class BaseEditor(host_editor):
        """EasyEdit's BaseEditor, with what nse_plugin's hparams allow."""

        def __init__(self, hparams: Any) -> None:
            super().__init__(hparams if hparams is None else _for_host(hparams))
            if host_overtone.is_around_host_editor(hparams):
                self.apply_algo = host_overtone.apply_function(hparams)

        def edit_requests(self, *args: Any, **kwargs: Any) -> Any:
            _check_fluency(kwargs.get("test_generation") or (len(args) > 3 and args[3]))
            return super().edit_requests(*args, **kwargs)

        def batch_edit(self, *args: Any, **kwargs: Any) -> Any:
            _check_fluency(kwargs.get("test_generation"))
            return super().batch_edit(*args, **kwargs)

    BaseEditor.__qualname__ = "BaseEditor"
    BaseEditor.__module__ = "nse_plugin.host"
    return BaseEditor


def _for_host(hparams: Any) -> Any:
    """The hparams in words that EasyEdit understands; a copy where anything has to change."""
    from nse_plugin.data.models import model_place
    from nse_plugin.easyedit import overtone as host_overtone
    from nse_plugin.hparams import Hparams
    from nse_plugin.methods.registry import attaches

    if host_overtone.is_around_host_editor(hparams):
        hparams = host_overtone.host_base(hparams)
    changes = {}
    name = hparams.model_name
    if isinstance(name, str):
        if (place := model_place(name)) != name:
            changes["model_name"] = place
    elif isinstance(name, (tuple, list)) and len(name) == 2:
        changes["model_name"] = ReadyModel(*name)
    table = part(f"{_TABLE}:ALG_DICT")
    done = registration()
    ours = {} if done is None else done.functions
    found = table.get(hparams.alg_name)
    if isinstance(hparams, Hparams) and (found is None or found is not ours.get(hparams.alg_name)):
        alias = ALIAS.format(hparams.method)
        _refuse_attaching([hparams.method] if attaches(hparams) else [])
        if alias not in ours:
            raise HostError(
                f"{hparams.alg_name} of nse_plugin is not in EasyEdit's method table; "
                "call nse_plugin.register() first"
            )
        changes["alg_name"] = alias
    elif found is None:
        raise HostError(
            f"EasyEdit has no method {hparams.alg_name!r}{did_you_mean(hparams.alg_name, table)}"
        )
    if not changes:
        return hparams
    hparams = copy.copy(hparams)
    for key, value in changes.items():
        setattr(hparams, key, value)
    return hparams


def _check_fluency(wanted: Any) -> None:
    if not wanted:
        return
    import nltk

    try:
        nltk.word_tokenize("One. Two.")
    except LookupError as error:
        asked_for = re.search(r"nltk\.download\('(\w+)'\)", str(error))
        data = asked_for[1] if asked_for else "punkt_tab"  # by version
        raise HostError(
            f"test_generation asks EasyEdit for fluency, which needs nltk's {data} data, and they "
            f"are not on this machine; get them with `python -m nltk.downloader {data}`, "
            "leave test_generation out, or use NSE_PLUGIN_HOST=embedded, which needs none"
        ) from error
