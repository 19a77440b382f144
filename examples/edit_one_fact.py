"""Write one fact into a model and ask before and after.

python examples/edit_one_fact.py                  # the embedded GPT-2
python examples/edit_one_fact.py NSE/atlas-llama  # another YAML, by name or path
"""

from __future__ import annotations

import argparse
import sys

from nse_plugin import BaseEditor, NSEHparams
from nse_plugin.data import atlas
from nse_plugin.data.readers import parse_records
from nse_plugin.errors import NSEPluginError
from nse_plugin.model.answers import score_answers
from nse_plugin.model.generation import greedy_text


def main() -> None:
    """Edit, and show the model's own words, exact match and token accuracy."""
    parser = argparse.ArgumentParser(description="Write one fact and ask before and after.")
    parser.add_argument(
        "hparams", nargs="?", default="NSE/atlas-gpt2", help="a shipped YAML by name, or a path"
    )
    editor = BaseEditor.from_hparams(NSEHparams.from_hparams(parser.parse_args().hparams))
    (fact,) = parse_records(atlas.edit_set(1))
    questions = [fact.text, *fact.rephrase_prompts]

    def show(title: str) -> None:
        answers = [fact.target_new] * len(questions)
        scores = score_answers(editor.model, editor.tok, questions, answers)
        texts = greedy_text(editor.model, editor.tok, questions, 8, stop=(".", "\n"))
        print(f"{title}: is the answer {fact.target_new!r}?")
        for i, (question, text) in enumerate(zip(questions, texts)):
            print(
                f"  {question} [{text.strip()}]  exact match: {'yes' if scores.exact[i] else 'no'},"
                f" token accuracy {scores.token_accuracy[i]:.0%}"
            )

    show("before")
    editor.edit(
        prompts=[fact.text],
        subject=[fact.subject],
        target_new=[fact.target_new],
        ground_truth=[fact.ground_truth],
        sequential_edit=True,  # keep the edit; otherwise it is taken back after being measured
        verbose=False,
    )
    show("after")


if __name__ == "__main__":
    try:
        main()
    except NSEPluginError as error:
        sys.exit(f"edit_one_fact.py: {error}")
