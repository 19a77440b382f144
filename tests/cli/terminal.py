"""A pseudo-terminal, in which a command draws as it does for people."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress

CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
"""Colours, and where the cursor goes."""


class Terminal:
    """``nse`` in a pseudo-terminal of its own."""

    def __init__(self, *arguments: str, columns: int = 80) -> None:
        self.master, end = pty.openpty()
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        command = [sys.executable, "-m", "nse_plugin.cli", *arguments]
        self.process = subprocess.Popen(command, stdin=end, stdout=end, stderr=end)
        os.close(end)

    def until_prompt(self, seconds: float = 120) -> str:
        """What is shown up to the next prompt, without bars and colours."""
        shown, limit = "", time.monotonic() + seconds
        while not re.search(r"(^|\n|\r)> $", shown):
            readable = select.select([self.master], [], [], max(0, limit - time.monotonic()))[0]
            assert readable, f"no prompt came: {shown!r}"
            shown += os.read(self.master, 4096).decode(errors="replace")
            shown = CODES.sub("", shown)
        return shown

    def rest(self) -> str:
        """What is shown up to the end of the command, with its colours."""
        shown = b""
        with suppress(OSError):  # Linux reports the end of a terminal as an error
            while part := os.read(self.master, 4096):
                shown += part
        self.process.wait(timeout=60)
        os.close(self.master)
        return shown.decode().replace("\r\n", "\n")

    def say(self, line: str) -> str:
        """Type a line; returns what is shown up to the next prompt."""
        os.write(self.master, f"{line}\n".encode())
        return self.until_prompt()

    def terminate(self) -> int:
        """Send SIGTERM; returns the exit code."""
        time.sleep(1)  # one that comes before input() waits for a key is noticed with that key
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        os.close(self.master)
        return code
