"""The host: the toolkit that feeds requests to a method and measures before and after.

:func:`host` is the one place that decides which host is used: EasyEdit where there is one
(importable, or a checkout named by EASYEDIT_ROOT), else the embedded one.  NSE_PLUGIN_HOST, set to
``embedded`` or ``easyedit``, decides instead.

``BaseEditor``, ``compute_edit_quality`` and ``read_records`` are that host's.  They are looked up
when they are asked for: importing this package loads neither torch nor EasyEdit and changes
nothing.  Asking for ``BaseEditor`` where EasyEdit is the host imports EasyEdit and registers our
methods with it.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any, Literal

from nse_plugin.errors import HostError, did_you_mean

if TYPE_CHECKING:
    from nse_plugin.data.readers import read_records
    from nse_plugin.editor import BaseEditor
    from nse_plugin.evaluation.edit_quality import compute_edit_quality

__all__ = ["BaseEditor", "compute_edit_quality", "host", "read_records"]

HOST_VARIABLE = "NSE_PLUGIN_HOST"
_HOSTS = ("embedded", "easyedit")
_PARTS = {
    "BaseEditor": ("editor", "easyedit.editor", "base_editor"),
    "compute_edit_quality": ("evaluation.edit_quality", "easyedit.editor", "evaluator"),
    "read_records": ("data.readers", "easyedit.datasets", None),
}
"""By name: the module of the embedded host's, that of EasyEdit's, and what makes the latter."""


def host() -> Literal["embedded", "easyedit"]:
    """Which host is used.

    Raises:
        HostError: NSE_PLUGIN_HOST names no host, or EasyEdit where there is none, or
            EASYEDIT_ROOT names no checkout.
    """
    from nse_plugin.easyedit.checkout import HOW_TO_GET_IT, find

    wanted = os.environ.get(HOST_VARIABLE) or None
    if wanted not in (None, *_HOSTS):
        raise HostError(
            f"{HOST_VARIABLE} is {wanted!r}{did_you_mean(str(wanted), _HOSTS)}; "
            f"set it to {' or '.join(_HOSTS)}, or unset it"
        )
    if wanted == "embedded":
        return "embedded"
    if find() is not None:
        return "easyedit"
    if wanted == "easyedit":
        raise HostError(f"{HOST_VARIABLE} is 'easyedit' and there is none. {HOW_TO_GET_IT}")
    return "embedded"


def __getattr__(name: str) -> Any:
    if name not in _PARTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    embedded, easyedit, maker = _PARTS[name]
    if host() == "embedded":
        return getattr(importlib.import_module(f"nse_plugin.{embedded}"), name)
    found = getattr(importlib.import_module(f"nse_plugin.{easyedit}"), maker or name)
    return found() if maker else found
