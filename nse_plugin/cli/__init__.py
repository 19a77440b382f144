"""The command ``nse``: one file for each subcommand, which prints and has no logic of its own."""

from __future__ import annotations

from nse_plugin.cli.app import main

__all__ = ["main"]
