"""The machine of a cell: versions, commits, hardware, and the memory that the cell takes."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from pathlib import Path
from typing import Any, cast

import psutil
import torch

from nse_plugin import host as hosting
from nse_plugin.compare.results import Memory, MetaInfo
from nse_plugin.easyedit.checkout import find
from nse_plugin.files import git_commit, now
from nse_plugin.runs.doctor import version_of
from nse_plugin.runs.identity import versions

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def meta_info(threads: int) -> MetaInfo:
    """Versions, commits and hardware, for reproduction."""
    host = hosting.host()
    found = find() if host == "easyedit" else None
    others = {name: version_of(name) for name in ("numpy", "peft", "tokenizers")}
    return {
        "versions": {
            **cast("dict[str, str]", versions()),
            **{name: version for name, version in others.items() if version is not None},
        },
        "commits": {
            "nse_plugin": git_commit(Path(__file__).parents[2]),
            "EasyEdit": None if found is None else found.commit,
        },
        "hardware": _hardware(),
        "threads": threads,
        "host": host,
        "finished": now(),
    }


class MemoryMeter:
    """The peak memory of this process from now on.

    Linux can reset its high-water mark; elsewhere it is the mark of the process since its start.
    """

    def __init__(self, own_process: bool) -> None:
        self._own = own_process
        self._reset = _write("/proc/self/clear_refs", "5")
        self._before = _status("VmRSS")
        for index in _gpus_in_use():
            torch.cuda.reset_peak_memory_stats(index)

    def read(self) -> Memory:
        """The memory at the start and the peaks since then."""
        peak = _status("VmHWM") if self._reset else None
        if peak is None and resource is not None and self._own:
            unit = 1 if sys.platform == "darwin" else 1024
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        if peak is not None and self._before is not None:
            peak = max(peak, self._before)  # the kernel counts both to within some pages
        gpus = _gpus_in_use()
        return {
            "before": self._before,
            "peak": peak,
            "own_process": self._own,
            "cuda_peak": sum(map(torch.cuda.max_memory_allocated, gpus)) if gpus else None,
        }


def _gpus_in_use() -> range:
    """All GPUs once torch uses one; before that it has no counts that could be reset."""
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)


def _hardware() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory": int(psutil.virtual_memory().total),
        "gpus": gpus,
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _write(path: str, text: str) -> bool:
    try:
        Path(path).write_text(text)
    except OSError:
        return False
    return True


def _status(key: str) -> int | None:
    """A field of Linux's ``/proc/self/status`` in bytes."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return None
