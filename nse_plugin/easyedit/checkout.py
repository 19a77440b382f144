"""Find and import EasyEdit, and check the parts of it that we hook into.

EasyEdit is not a package: users clone it and put the checkout on their path.  :func:`find` locates
it without importing it, :func:`load` imports it, :func:`probe` lists missing parts and what does
not work without them.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from nse_plugin.errors import HostError
from nse_plugin.files import git_commit

PACKAGE = "easyeditor"
ROOT_VARIABLE = "EASYEDIT_ROOT"
"""Environment variable that names a checkout; it takes precedence over the import path."""

TABLE = "easyeditor.util.alg_dict"
"""The module that holds EasyEdit's method table."""

_INSTALL = "`pip install -c constraints-easyedit.txt -e '.[easyedit]'` in a checkout of nse_plugin"
HOW_TO_GET_IT = (
    f"clone github.com/zjunlp/EasyEdit, install what it imports with {_INSTALL}, and set "
    f"{ROOT_VARIABLE} (or PYTHONPATH) to EasyEdit's checkout"
)


@dataclass(frozen=True)
class Host:
    """An EasyEdit on this machine; finding it does not import it."""

    path: Path
    """The checkout: the folder that holds ``easyeditor/``."""
    commit: str | None
    """Commit that is checked out, if the folder is a git checkout."""

    def __str__(self) -> str:
        return f"EasyEdit {(self.commit or 'of unknown commit')[:17]} at {self.path}"


# --- find ---------------------------------------------------------------------------------------


def find() -> Host | None:
    """The EasyEdit of this machine, or None; nothing is imported.

    Raises:
        HostError: EASYEDIT_ROOT names no checkout, or one other than the imported one.
    """
    imported = sys.modules.get(PACKAGE)
    root = os.environ.get(ROOT_VARIABLE)
    if root:
        host = _checkout_at(Path(os.path.expanduser(root)).absolute())
        if host is None:
            raise HostError(
                f"{ROOT_VARIABLE} is {root!r}, and there is no {PACKAGE}/__init__.py in it; "
                "set it to the folder of an EasyEdit checkout, or unset it"
            )
        if imported is not None and _folder(imported).resolve() != host.path.resolve():
            raise HostError(
                f"{ROOT_VARIABLE} is {root!r}, but {PACKAGE} was already imported from "
                f"{_folder(imported)}; use one of them"
            )
        return host
    if imported is not None:
        return _checkout_at(_folder(imported))
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:  # no origin: a folder of that name, not a package
        return None
    return _checkout_at(Path(spec.origin).parents[1])


def _folder(package: ModuleType) -> Path:
    return Path(package.__file__ or ".").absolute().parents[1]


def _checkout_at(path: Path) -> Host | None:
    is_checkout = (path / PACKAGE / "__init__.py").is_file()
    return Host(path, git_commit(path)) if is_checkout else None


# --- load ---------------------------------------------------------------------------------------


def import_easyedit() -> Host:
    """The EasyEdit of this machine, imported.

    Raises:
        HostError: there is none, or it cannot be imported.
    """
    host = find()
    if host is None:
        raise HostError(f"there is no EasyEdit. To get it: {HOW_TO_GET_IT}")
    load(host)
    return host


def load(host: Host) -> ModuleType:
    """Import EasyEdit.

    That runs EasyEdit's own import-time code, which seeds the random generators of python, numpy
    and torch, and sets up logging.

    Raises:
        HostError: it cannot be imported; the message says why.
    """
    if PACKAGE in sys.modules:
        return sys.modules[PACKAGE]
    from nse_plugin.model.torchvision_operators import make_torchvision_importable

    _put_on_path(host)
    make_torchvision_importable()
    try:
        return importlib.import_module(PACKAGE)
    except ModuleNotFoundError as error:
        raise HostError(
            f"{host} cannot be imported: {error}. Install what it imports with "
            f"{_INSTALL}, or use the embedded host: NSE_PLUGIN_HOST=embedded"
        ) from error
    except Exception as error:
        raise HostError(
            f"{host} cannot be imported: {type(error).__name__}: {error}. The versions of "
            "constraints-easyedit.txt are known to work together; or use the embedded host: "
            "NSE_PLUGIN_HOST=embedded"
        ) from error


def _put_on_path(host: Host) -> None:
    """Append to the path, so that no folder of the checkout hides a package; prepend if needed."""
    path = str(host.path)
    if path not in sys.path:
        sys.path.append(path)
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or Path(spec.origin or ".").parents[1].resolve() != host.path.resolve():
        sys.path.insert(0, path)


# --- probe --------------------------------------------------------------------------------------


def _is_dict(part: Any) -> str:
    return "" if isinstance(part, dict) else f"it is a {type(part).__name__}, not a dict"


def _takes(*names: str) -> Callable[[Any], str]:
    def check(part: Any) -> str:
        if not callable(part):
            return f"it is a {type(part).__name__} and cannot be called"
        parameters = inspect.signature(part).parameters
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            return ""
        missing = [name for name in names if name not in parameters]
        return f"it does not take {', '.join(missing)}" if missing else ""

    return check


_EDITOR = "easyeditor.editors.editor:BaseEditor"
_COLUMNS = ("prompts", "target_new", "ground_truth", "rephrase_prompts", "locality_inputs",
            "portability_inputs", "sequential_edit")  # fmt: skip

# name, import path, check that says why it counts as missing, what does not work without it
_HOOK_POINTS: tuple[tuple[str, str, Callable[[Any], str], str], ...] = (
    ("method table", f"{TABLE}:ALG_DICT", _is_dict,
     "register() is impossible; only the embedded host is left"),
    ("batch gate", "easyeditor.editors.batch_editor:BatchEditor.is_batchable_method",
     _takes("alg_name"), "batch_edit() refuses our methods"),
    ("editor", f"{_EDITOR}.from_hparams", _takes("hparams"),
     "nse_plugin.BaseEditor is the embedded one only"),
    ("edit", f"{_EDITOR}.edit", _takes(*_COLUMNS), "BaseEditor.edit() cannot be called as known"),
    ("edit_requests", f"{_EDITOR}.edit_requests", _takes("requests", "sequential_edit"),
     "requests cannot be passed as dicts"),
    ("batch_edit", f"{_EDITOR}.batch_edit", _takes(*_COLUMNS),
     "rounds of several requests go through the embedded host only"),
    ("evaluator", "easyeditor.evaluate.evaluate:compute_edit_quality",
     _takes("model", "model_name", "hparams", "tok", "record", "device", "eval_metric",
            "test_generation"),
     "scores come from our own evaluator, which computes the same numbers"),
    ("ZsRE", "easyeditor.dataset.zsre:ZsreDataset", _takes("data_dir", "size"),
     "ZsRE is read by nse_plugin.data.readers"),
    ("CounterFact", "easyeditor.dataset.counterfact:CounterFactDataset",
     _takes("data_dir", "size"), "CounterFact is read by nse_plugin.data.readers"),
    ("KnowEdit", "easyeditor.dataset.knowedit:KnowEditDataset", _takes("data_dir", "size"),
     "KnowEdit is read by nse_plugin.data.readers"),
    ("WikiRecent", "easyeditor.dataset.wiki_recent:WikiRecentDataset",
     _takes("data_dir", "size"), "WikiRecent is read by nse_plugin.data.readers"),
)  # fmt: skip


def probe(host: Host) -> dict[str, str]:
    """Import EasyEdit, and check every part of it that we use.

    Returns:
        By name, the parts that are missing: where each should be, why it counts as missing, and
        what does not work without it.

    Raises:
        HostError: it cannot be imported at all.
    """
    load(host)
    missing = {}
    for name, where, check, without_it in _HOOK_POINTS:
        try:
            why = check(part(where))
        except (ImportError, AttributeError) as error:
            why = str(error)
        if why:
            missing[name] = f"{name} ({where}): {why}; {without_it}"
    return missing


def part(where: str) -> Any:
    """A part of EasyEdit by ``module:attribute.attribute``.

    The module is imported by name, since EasyEdit's star imports rebind ``easyeditor.util``.
    """
    module, _, names = where.partition(":")
    found: Any = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    return found


def method_table() -> Any:
    """EasyEdit's dict of method functions by name, not a copy."""
    return part(f"{TABLE}:ALG_DICT")
