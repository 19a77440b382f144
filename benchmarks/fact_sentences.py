"""Short sentences as a text for statistics, one a line: facts of ``earth``, or parts of Factbook.

    python benchmarks/fact_sentences.py counterfact.json [--prose 100] --out sentences.txt
    python benchmarks/fact_sentences.py --out cut.txt
    nse run --method "NSE:stable;mom2_dataset=sentences.txt;mom2_n_samples=4000" ...

Facts about a subject that the records name anywhere, in an edit or in a question about another
fact, are left out, so that no sentence is about what is tested.  ``--prose`` adds paragraphs of
Factbook, none of them held out for the perplexity.  Without records, the sentences are those of
Factbook's paragraphs.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from nse_plugin.data.streams import held_out_texts, read_data
from nse_plugin.data.texts import factbook
from nse_plugin.files import write_text
from nse_plugin.requests import EditRequest

_END = re.compile(r"(?<=[a-z)]\.)\s+(?=[A-Z])")


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


def paragraphs(n: int | None = None) -> list[str]:
    """Some paragraphs, or all of Factbook that no perplexity is measured on."""
    held_out = set(held_out_texts("factbook", "", []))
    found = [text for text in factbook() if text not in held_out]
    random.Random(0).shuffle(found)
    return found[:n]


def cut(texts: Sequence[str]) -> list[str]:
    """The sentences of some paragraphs, without very short and very long ones."""
    found = [part for text in texts for part in _END.split(text) if 4 <= len(part.split()) <= 40]
    return list(dict.fromkeys(found))


def main() -> None:
    """Write the texts, one a line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="*", help="JSON files of the records that will be tested")
    parser.add_argument("--prose", type=int, default=0, help="paragraphs of Factbook to add")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.prose and not options.data:
        parser.error("--prose is added to facts of earth, which need the records; give their files")
    tested = [request for name in options.data for request in read_data(name, None, 0)]
    if tested:
        prose = paragraphs(options.prose) if options.prose else []
        texts = [*prose, *sentences(list(read_data("earth", None, 0)), tested)]
    else:
        texts = cut(paragraphs())
    write_text(options.out, "\n".join(texts))


if __name__ == "__main__":
    main()
