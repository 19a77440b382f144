"""The 1,500 records of CounterFact that the tables of the docs use, in their order.

    python benchmarks/counterfact_sample.py counterfact-edit.json --out counterfact.json
        [--first 1101 --last 1300]

``counterfact-edit.json`` is EasyEdit's file of the benchmark (its README says where it can be had).
The records are chosen by their ``case_id``, which ``counterfact_sample.txt`` lists.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nse_plugin.files import write_json

CASE_IDS = Path(__file__).with_suffix(".txt")


def main() -> None:
    """Choose the records and write them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="EasyEdit's counterfact-edit.json")
    parser.add_argument("--out", type=Path, default=Path("counterfact.json"))
    parser.add_argument("--first", type=int, default=1, help="number of the first record, from 1")
    parser.add_argument("--last", type=int, help="number of the last one")
    options = parser.parse_args()
    records = {r["case_id"]: r for r in json.loads(options.file.read_text(encoding="utf-8"))}
    wanted = [int(case_id) for case_id in CASE_IDS.read_text(encoding="utf-8").split()]
    if missing := [case_id for case_id in wanted if case_id not in records]:
        parser.error(f"{options.file} lacks {len(missing)} of the records, such as {missing[:3]}")
    wanted = wanted[options.first - 1 : options.last]
    write_json(options.out, [records[case_id] for case_id in wanted])
    print(f"{len(wanted)} records in {options.out}")


if __name__ == "__main__":
    main()
