"""The host: the toolkit that passes requests to a method and measures before and after.

:func:`host` decides which host is used: EasyEdit if it is available (importable, or a checkout
named by EASYEDIT_ROOT), else the embedded one.  NSE_PLUGIN_HOST, ``embedded`` or ``easyedit``,
overrides this.

``BaseEditor``, ``compute_edit_quality`` and ``read_records`` are those of that host.  They are
looked up when first used: importing this module loads neither torch nor EasyEdit.  If EasyEdit is
the host, using ``BaseEditor`` imports EasyEdit and registers our methods with it.
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
"""By name: its module in the embedded host, its module for EasyEdit, and its function there."""


def host() -> Literal["embedded", "easyedit"]:
    """Which host is used.

    Raises:
        HostError: NSE_PLUGIN_HOST names no host, or EasyEdit although it is not available, or
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
