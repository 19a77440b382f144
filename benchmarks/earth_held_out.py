"""Facts of ``earth`` to choose settings on.

    python benchmarks/earth_held_out.py [--out earth-held-out.json]

None of them is in a draw of docs/results/real.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nse_plugin.data import earth
from nse_plugin.files import write_json

SEEDS, DRAWN = (0, 1), 830
"""The tables' draws: of as many facts with each seed, those that a model knows are edited."""


def main() -> None:
    """Write the facts, in the order of another seed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("earth-held-out.json"))
    options = parser.parse_args()
    drawn = {fact(record) for seed in SEEDS for record in earth.edit_set(DRAWN, seed=seed)}
    others = earth.edit_set(None, seed=max(SEEDS) + 1)
    kept = [record for record in others if fact(record) not in drawn]
    write_json(options.out, kept)
    print(f"{len(kept)} of {len(others)} facts in {options.out}")


def fact(record: dict[str, Any]) -> tuple[str, str]:
    """Relation and subject."""
    rewrite = record["requested_rewrite"]
    return rewrite["relation_id"], rewrite["subject"]


if __name__ == "__main__":
    main()
