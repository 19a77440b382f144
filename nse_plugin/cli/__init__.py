"""The command ``nse``: one file per subcommand, each of which only parses options and prints."""

from __future__ import annotations

from nse_plugin.cli.app import main

__all__ = ["main"]
