"""What the command ``nse`` does; :mod:`nse_plugin.cli` parses and prints."""
