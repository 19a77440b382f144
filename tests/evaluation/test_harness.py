"""The hook for lm-evaluation-harness, with the package itself and a task of our own."""

from __future__ import annotations

import json
import random

import pytest
import torch

from nse_plugin.data import atlas
from nse_plugin.errors import HparamsError
from nse_plugin.evaluation.model_state import run_harness
from nse_plugin.model.answers import score_answers
from tests.tiny import atlas_model, bits, same_bits

pytest.importorskip("lm_eval", reason="lm_eval is not installed; pip install lm-eval")
TASK = """
task: known_facts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {cache}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{prompt}}}}"
doc_to_target: " {{{{answer}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


def test_a_task_of_our_own(tmp_path):
    """Its accuracy of greedy answers is ours, and nothing of the process is changed by it."""
    written = [record["requested_rewrite"] for record in atlas.edit_set(8)]
    facts = [(w["prompt"].format(w["subject"]), w["target_true"]["str"]) for w in written]
    facts += [(prompt, "Quill") for prompt, _ in facts[:4]]
    rows = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in facts]
    (tmp_path / "facts.jsonl").write_text("\n".join(rows) + "\n")
    task = tmp_path / "task.yaml"
    task.write_text(TASK.format(file=tmp_path / "facts.jsonl", cache=tmp_path / "cache"))
    model, tokenizer = atlas_model("gpt2")
    before = bits(model)
    states = torch.get_rng_state(), random.getstate()

    found = run_harness(model, tokenizer, [str(task)], 50)["known_facts"]

    exact = score_answers(model, tokenizer, *map(list, zip(*facts))).exact
    assert 0 < sum(exact) < len(facts)
    assert found["acc,none"] == pytest.approx(sum(exact) / len(facts))
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == random.getstate()
    assert same_bits(model, before)
    assert not model.training and tokenizer.padding_side == "right"
    with pytest.raises(HparamsError, match="'no_such_task'.*does not know"):
        run_harness(model, tokenizer, ["no_such_task"], 5)
