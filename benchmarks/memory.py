"""Memory that NSE keeps per edited layer, as a Markdown table; computed from the shapes alone.

    python benchmarks/memory.py [--d-ff 14336 28672] [--d-model 4096 8192] [--edits 1000]

What it computes is what the code keeps: tests/test_memory_table.py compares the two.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

WHERE = {
    "C": "main memory, float32 [d_ff, d_ff]",
    "factor of C": "device, float64 [d_ff, d_ff]",
    "previous keys": "main memory, float32 [d_ff, edits]",
    "previous keys, solved": "device, float64 [d_ff, edits]",
    "P, in place of the keys": "main memory, float64 [d_ff, d_ff]",
    "original weight": "device, bfloat16 [d_model, d_ff]",
    "change": "device, float32 [d_model, d_ff]",
}
"""What is kept, where and as what."""


def kept(d_model: int, d_ff: int, edits: int, weight_bytes: int = 2) -> dict[str, int]:
    """Bytes per edited layer of each of :data:`WHERE` after some edits with all neurons.

    Up to d_ff / 2 edits their keys are kept, and what the factor makes of them; from then on P.
    """
    few = 2 * edits <= d_ff
    return {
        "C": 4 * d_ff**2,
        "factor of C": 8 * d_ff**2,
        "previous keys": 4 * d_ff * edits if few else 0,
        "previous keys, solved": 8 * d_ff * edits if few else 0,
        "P, in place of the keys": 0 if few else 8 * d_ff**2,
        "original weight": weight_bytes * d_model * d_ff,
        "change": 4 * d_model * d_ff,
    }


def table(shapes: Sequence[tuple[int, int]], edits: Sequence[int]) -> str:
    """GiB by what is kept, a column per shape and number of edits."""
    columns = [(shape, n) for shape in shapes for n in edits]
    heads = [f"d_ff {d_ff:,}, {n:,} edits" for (_, d_ff), n in columns]
    lines = [f"| per edited layer, GiB | where | {' | '.join(heads)} |"]
    lines += ["|---|---|" + "---:|" * len(columns)]
    found = [kept(*shape, n) for shape, n in columns]
    for name, where in WHERE.items():
        cells = [f"{sizes[name] / 2**30:.2f}" if sizes[name] else "–" for sizes in found]
        lines.append(f"| {name} | {where} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--d-model", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--d-ff", type=int, nargs="+", default=[14336, 28672])
    parser.add_argument("--edits", type=int, nargs="+", default=[1000, 10_000])
    given = parser.parse_args()
    print(table(list(zip(given.d_model, given.d_ff)), given.edits))


if __name__ == "__main__":
    main()
