"""benchmarks/fact_sentences.py: which facts it states."""

from __future__ import annotations

from benchmarks.fact_sentences import sentences
from nse_plugin.data.streams import read_data
from nse_plugin.requests import EditRequest, Probe


def test_no_sentence_is_about_what_is_tested():
    def fact(subject, answer):
        return EditRequest(0, "The capital of {} is", subject, "Rome", ground_truth=answer)

    facts = [fact("Spain", "Madrid"), fact("Chad", "N'Djamena"), fact("Peru", "Lima")]
    facts += [fact("Oman", "Muscat"), fact("Chad", "N'Djamena"), fact("Cuba", "Havana")]
    tested = EditRequest(
        1, "{} is in", "the OMAN range", "Asia",
        rephrase_prompts=("What is Cuban is in",),
        locality={"neighborhood": [Probe("Where is Peru?", "America")]},
        portability={"hop": [Probe("A river of Spain is", "Ebro")]},
    )  # fmt: skip
    assert sentences(facts, [tested]) == [
        "The capital of Chad is N'Djamena.",
        "The capital of Cuba is Havana.",
    ]


def test_earth_has_a_sentence_for_nearly_every_fact():
    facts = read_data("earth", None, 0)
    found = sentences(facts, [])
    assert len(found) > 0.9 * len(facts) and not any("{" in text for text in found)
