"""Short sentences that state facts, as a text for statistics: those of ``earth``, one a line.

    python benchmarks/fact_sentences.py counterfact.json > sentences.txt
    nse run --method "NSE:stable;mom2_dataset=sentences.txt;mom2_n_samples=4000" ...

Facts about a subject that the records name anywhere, in an edit or in a question about another
fact, are left out, so that no sentence is about what is tested.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence

from nse_plugin.data.streams import read_data
from nse_plugin.requests import EditRequest


def sentences(facts: Sequence[EditRequest], tested: Sequence[EditRequest]) -> list[str]:
    """The facts' prompts with their true answers, without facts about what is tested."""
    text = "\n".join(prompt for request in tested for prompt in prompts(request))
    named: dict[str, bool] = {}
    found = []
    for fact in facts:
        if fact.subject not in named:
            pattern = rf"(?<!\w){re.escape(fact.subject)}(?!\w)"
            named[fact.subject] = re.search(pattern, text, re.IGNORECASE) is not None
        if not named[fact.subject]:
            found.append(f"{fact.text} {fact.ground_truth}.")
    return list(dict.fromkeys(found))


def prompts(request: EditRequest) -> Iterator[str]:
    """All prompts of a record."""
    yield from (request.text, *request.rephrase_prompts)
    for probes in (*request.locality.values(), *request.portability.values()):
        yield from (probe.prompt for probe in probes)


def main() -> None:
    """Print the sentences."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="+", help="JSON files of the records that will be tested")
    options = parser.parse_args()
    tested = [request for name in options.data for request in read_data(name, None, 0)]
    print("\n".join(sentences(list(read_data("earth", None, 0)), tested)))


if __name__ == "__main__":
    main()
