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

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from nse_plugin.errors import HostError, did_you_mean

if TYPE_CHECKING:
    from nse_plugin.data.readers import read_records
    from nse_plugin.easyedit.register import Registration
    from nse_plugin.editor import BaseEditor
    from nse_plugin.evaluation.edit_quality import compute_edit_quality

__all__ = ["BaseEditor", "compute_edit_quality", "host", "read_records", "register", "unregister"]

HOST_VARIABLE = "NSE_PLUGIN_HOST"
_HOSTS = ("embedded", "easyedit")


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


def register(methods: Iterable[str] | None = None, *, override: bool = False) -> Registration:
    """Put our methods into EasyEdit; see :func:`nse_plugin.easyedit.register.register`."""
    from nse_plugin.easyedit import register as registering

    return registering.register(methods, override=override)


def unregister() -> None:
    """Undo what :func:`register` did; does nothing if nothing is registered."""
    from nse_plugin.easyedit import register as registering

    registering.unregister()


def __getattr__(name: str) -> Any:
    if name == "BaseEditor":
        if host() == "easyedit":
            from nse_plugin.easyedit.editor import base_editor

            return base_editor()
        from nse_plugin.editor import BaseEditor

        return BaseEditor
    if name == "compute_edit_quality":
        if host() == "easyedit":
            from nse_plugin.easyedit.editor import evaluator

            return evaluator()
        from nse_plugin.evaluation.edit_quality import compute_edit_quality

        return compute_edit_quality
    if name == "read_records":
        if host() == "easyedit":
            from nse_plugin.easyedit.datasets import read_records

            return read_records
        from nse_plugin.data.readers import read_records

        return read_records
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
