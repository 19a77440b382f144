"""A summary of a comparison: a short table, and the files of docs/results.

    nse compare --methods ... --out compared     # docs/results/README.md has the whole command
    python benchmarks/headline.py compared

Copies the tables, writes the summaries without the scores of single edits (most of results.json),
and prints a table of the final scores.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from nse_plugin.compare.specs import UNTOUCHED
from nse_plugin.report.kinds import KINDS

SCORES = {
    "efficacy": "efficacy",
    "paraphrase": "paraphrase",
    "locality": "locality",
    "retention_first": "first round",
}
KEPT = ("schema", "settings", "summaries", "differences")


def main() -> None:
    """Read the folder of a comparison, write docs/results, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("compared", type=Path, help="folder of nse compare")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--variants", action="store_true", help="print variants of methods too")
    parser.add_argument("--ranks", action="store_true", help="print the order by kind of score")
    options = parser.parse_args()
    result = json.loads((options.compared / "results.json").read_text(encoding="utf-8"))
    options.out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(options.compared / "table.md", options.out / "table.md")
    kept = {key: result[key] for key in KEPT if key in result}
    kept["settings"] = {k: v for k, v in kept["settings"].items() if k not in ("out", "stats_dir")}
    text = json.dumps(kept, indent=1, ensure_ascii=False)
    (options.out / "summaries.json").write_text(text + "\n", encoding="utf-8")
    print("\n".join(table(result, options.variants)))
    if options.ranks:
        print("\n".join(["", *ranks(result)]))


def table(result: dict[str, Any], variants: bool = False) -> list[str]:
    """Markdown: a row per method, by default without variants; a column per model and score."""
    means = {(s["model"], s["method"], s["score"]): s for s in result["summaries"]}
    models = list(dict.fromkeys(s["model"] for s in result["summaries"]))
    found = (summary["method"] for summary in result["summaries"])
    methods = dict.fromkeys(method for method in found if variants or ":" not in method)
    heads = [f"{model}: {head}" for model in models for head in SCORES.values()]
    rows = [["", *heads], ["---", *["---:"] * len(heads)]]
    for method in methods:
        cells = [share(means.get((model, method, name))) for model in models for name in SCORES]
        rows.append([method, *cells])
    return ["| " + " | ".join(row) + " |" for row in rows]


def ranks(result: dict[str, Any]) -> list[str]:
    """Markdown: a row per kind of score with the methods from the best to the worst, in percent."""
    rows = [["kind of score", "from the best to the worst"], ["---", "---"]]
    for name, head in {**KINDS, "paraphrase": "paraphrase, greedy"}.items():
        found = {
            summary["method"]: 100 * summary["mean"]
            for summary in result["summaries"]
            if summary["score"] == name and summary["mean"] is not None
            if summary["method"] != UNTOUCHED
        }
        best_first = sorted(found, key=found.__getitem__, reverse=name != "negation")
        if found:
            rows.append([head, ", ".join(f"{method} {found[method]:.0f}" for method in best_first)])
    return ["| " + " | ".join(row) + " |" for row in rows]


def share(summary: dict[str, Any] | None) -> str:
    """Mean in percent over the seeds, with the standard deviation."""
    if summary is None or summary["mean"] is None:
        return "-"
    spread = "" if summary["sd"] is None else f" ± {100 * summary['sd']:.1f}"
    return f"{100 * summary['mean']:.1f}{spread}"


if __name__ == "__main__":
    main()
