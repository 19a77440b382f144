"""``python -m nse_plugin.cli``, the same as ``nse``."""

from __future__ import annotations

import sys

from nse_plugin.cli import main

sys.exit(main())
