"""The real facts by relation: the counts of docs/earth.md.

    python benchmarks/earth_counts.py

Prints a Markdown table with one row per relation, and the totals.
"""

from __future__ import annotations

from nse_plugin.data import earth
from nse_plugin.data.earth.tables import facts_by_relation


def main() -> None:
    """Print the table."""
    editable: dict[str, list[bool]] = {name: [] for name in earth.relations()}
    for record in earth.facts():
        name = record["requested_rewrite"]["relation_id"]
        editable[name].append(bool(record["portability"]))
    lines = [
        "| relation | prompt | facts | to edit | with a second step | answers | example |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, facts in facts_by_relation().items():
        relation, answers = earth.relations()[name], len({fact.answer for fact in facts})
        example = f"{facts[0].subject}: {facts[0].answer}"
        lines.append(
            f"| {name} | {relation.prompt} | {len(facts)} | {len(editable[name])} "
            f"| {sum(editable[name])} | {answers} | {example} |"
        )
    total, steps = sum(map(len, editable.values())), sum(map(sum, editable.values()))
    lines.append(f"| **all** | | {len(earth.all_facts())} | {total} | {steps} | | |")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
