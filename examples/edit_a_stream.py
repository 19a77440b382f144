"""Edit facts as they arrive, one or a few at a time, without knowing the later ones.

    python examples/edit_a_stream.py                            # the embedded GPT-2
    python examples/edit_a_stream.py --hparams_dir NSE/atlas-llama --ds_size 40 --round_size 5

After every round *all* facts so far are asked again, which shows forgetting, and so are facts that
were not edited.  At the end the last round is undone.  "exact" is the share of answers that
greedy decoding gives in full; "tokens" is token accuracy under teacher forcing, which is high
before any edit where answers begin alike.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator, Sequence

from nse_plugin import BaseEditor, EditRequest, EditSession, NSEHparams
from nse_plugin.data import atlas
from nse_plugin.data.readers import parse_records
from nse_plugin.errors import NSEPluginError, RequestError
from nse_plugin.methods.nse import edit_round
from nse_plugin.model.answers import Answers, score_answers

N_OTHERS = 100
"""How many facts are watched that the stream has not touched."""


def main() -> None:
    """Edit the stream, then undo the last round."""
    options = parse_arguments()
    hparams = NSEHparams.from_hparams(options.hparams_dir)
    editor = BaseEditor.from_hparams(hparams)  # loads the model; EasyEdit's where it is there
    session = EditSession.of(editor.model, editor.tok)
    others = known_facts(session, options.seed)
    done: list[EditRequest] = []
    newest: list[EditRequest] = []
    print("round  edits | new facts, before | new facts, after |    all so far | others")
    print("             |    exact   tokens |   exact   tokens |  exact tokens |  exact")
    for newest in rounds(arrivals(options.seed), options.ds_size, options.round_size, options.seed):
        before = ask(session, newest)
        record = edit_round(session, newest, hparams)
        done += newest
        after = ask(session, newest)
        print(
            f"{record.number:5d} {len(done):6d} | {percent(before.exact)} {tokens(before)} |"
            f" {percent(after.exact)} {tokens(after)} | {scores_line(session, done, others)}"
        )
    session.undo_last()
    print(f"\nthe last round is undone; {len(session.ledger)} rounds are active")
    print(f"  its {len(newest)} facts: exact {percent(ask(session, newest).exact).strip()}")
    if kept := done[: -len(newest)]:
        print(f"  the {len(kept)} before it: exact {percent(ask(session, kept).exact).strip()}")


def parse_arguments() -> argparse.Namespace:
    """Which model, and how much of the stream."""
    parser = argparse.ArgumentParser(description="Edit facts as they arrive.")
    parser.add_argument(
        "--hparams_dir", default="NSE/atlas-gpt2", help="a shipped YAML by name, or a path"
    )
    parser.add_argument("--ds_size", type=int, default=12, help="how many edits (default 12)")
    parser.add_argument("--round_size", type=int, default=3, help="most edits in a round")
    parser.add_argument("--seed", type=int, default=0, help="which facts (default 0)")
    options = parser.parse_args()
    if options.ds_size < 1 or options.round_size < 1:
        raise RequestError(
            f"--ds_size is {options.ds_size}, --round_size {options.round_size}; "
            "give numbers above 0"
        )
    return options


def arrivals(seed: int) -> Iterator[EditRequest]:
    """News of the embedded world.  Replace this by your own source: a queue, a feed, a form."""
    for record in atlas.edit_set(len(atlas.facts()), seed):
        yield from parse_records([record])


def rounds(
    stream: Iterator[EditRequest], total: int, largest: int, seed: int
) -> Iterator[list[EditRequest]]:
    """Rounds of 1 to ``largest`` facts, ``total`` facts in all."""
    luck = random.Random(seed)
    while total > 0:
        size = min(luck.randint(1, largest), total)
        found = [fact for _, fact in zip(range(size), stream)]
        if not found:
            return
        total -= len(found)
        yield found


def known_facts(session: EditSession, seed: int) -> list[EditRequest]:
    """Facts that the model knows before any edit, to see whether they are preserved."""
    facts = parse_records(atlas.other_facts([], N_OTHERS, seed))
    known = ask(session, facts, old=True).exact
    return [fact for fact, is_known in zip(facts, known) if is_known]


def scores_line(
    session: EditSession, done: Sequence[EditRequest], others: Sequence[EditRequest]
) -> str:
    """Scores of all edits so far, and of known facts about other subjects."""
    everything = ask(session, done)
    edited = {request.subject for request in done}
    others = [fact for fact in others if fact.subject not in edited]
    return (
        f"{percent(everything.exact, 6)} {percent(everything.token_accuracy, 6)} |"
        f" {percent(ask(session, others, old=True).exact, 6)}"
    )


def ask(session: EditSession, requests: Sequence[EditRequest], old: bool = False) -> Answers:
    """Score the new answers, or the old ones."""
    answers = [str(request.ground_truth) if old else request.target_new for request in requests]
    prompts = [request.text for request in requests]
    return score_answers(session.model, session.tokenizer, prompts, answers)


def tokens(answers: Answers) -> str:
    """Mean token accuracy."""
    return percent(answers.token_accuracy)


def percent(values: Sequence[float], width: int = 8) -> str:
    """A mean in percent; a dash where there is nothing to average."""
    return f"{100 * sum(values) / len(values):{width}.1f}" if values else "-".rjust(width)


if __name__ == "__main__":
    try:
        main()
    except NSEPluginError as error:
        sys.exit(f"edit_a_stream.py: {error}")
