"""OVERTONE around a base editor: only the loss of the target's tokens is another."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import yaml

from nse_plugin.data import atlas
from nse_plugin.data.readers import parse_records
from nse_plugin.hparams import OvertoneHparams
from nse_plugin.hparams.overtone import OTHERWISE
from nse_plugin.hparams.yaml_files import find_yaml, yaml_dir
from nse_plugin.methods import nse, registry
from nse_plugin.methods.overtone import edit_round, objective_of
from nse_plugin.objectives.overtone import Overtone
from nse_plugin.objectives.token_table import TokenTable
from nse_plugin.session.session import EditSession
from tests.tiny import atlas_model, bits, same_bits, some_requests

BASES = sorted(path.parent.name for path in (yaml_dir() / "OVERTONE").rglob("atlas-gpt2.yaml"))
QUICK = {"mom2_n_samples": 100, "n_contexts": 1, "v_num_grad_steps": 10, "num_steps": 5}


@pytest.fixture
def base(hparams):
    return hparams


def test_it_is_the_base_with_another_objective(model, tokenizer, base):
    before = bits(model)
    results = []
    for method, hparams, more in (
        (nse.edit_round, base, {"objective": Overtone(**OTHERWISE)}),
        (edit_round, OvertoneHparams.wrap(base), {}),
        (nse.edit_round, base, {}),
    ):
        session = EditSession.of(model, tokenizer)
        method(session, some_requests(3), hparams, **more)
        results.append(bits(model))
        session.undo_all()
        assert same_bits(model, before)
    direct, wrapped, plain = results
    assert all(torch.equal(direct[name], wrapped[name]) for name in direct)
    assert any(not torch.equal(plain[name], wrapped[name]) for name in plain)


def test_lambda_one_and_epsilon_zero_is_the_base_itself(model, tokenizer, base):
    results = []
    for method, hparams in (
        (nse.edit_round, base),
        (edit_round, OvertoneHparams.wrap(base, lambda_=1.0, epsilon=0.0)),
    ):
        session = EditSession.of(model, tokenizer)
        method(session, some_requests(3), hparams)
        results.append(bits(model))
        session.undo_all()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_every_setting_reaches_the_objective(base):
    switches = dict(clip=False, filter=False, argmax_check=False, frozen_reference=True,
                    mixing=False)  # fmt: skip
    settings = dict(lambda_=0.3, epsilon=0.2, n_sigma=1.5, **switches)
    assert objective_of(OvertoneHparams.wrap(base, **settings)) == Overtone(**settings)
    assert objective_of(OvertoneHparams.wrap(base)) == Overtone(**OTHERWISE)


def steps_until_stop(model, tokenizer, base, **settings):
    """Evaluations of the loss, per request."""
    session = EditSession.of(model, tokenizer)
    record = edit_round(session, some_requests(3), OvertoneHparams.wrap(base, **settings))
    session.undo_all()
    return [outcome.z_steps for outcome in record.outcomes], record


@pytest.mark.parametrize("bound, epsilon, steps", [
    (100.0, 200.0, 1),  # the clipped loss, 200, would never let it stop
    (0.5, 0.6, 20),  # nothing is taught below 0.6, so it does not come below 0.5
])  # fmt: skip
def test_the_base_stops_on_what_is_not_clipped(model, tokenizer, base, bound, epsilon, steps):
    base = dataclasses.replace(
        base, v_stop_loss=bound, v_num_grad_steps=20, kl_factor=0.0, v_weight_decay=0.0
    )
    found, record = steps_until_stop(model, tokenizer, base, epsilon=epsilon)
    assert found == [steps] * 3
    assert all((outcome.z_loss < bound) == (steps == 1) for outcome in record.outcomes)


def quick(base: str, **settings) -> OvertoneHparams:
    """What ships for a base on the embedded GPT-2, in little time."""
    config = yaml.safe_load(find_yaml(f"OVERTONE/{base}/atlas-gpt2").read_text(encoding="utf-8"))
    inner = yaml.safe_load(find_yaml(config["base"]).read_text(encoding="utf-8"))
    inner |= {key: value for key, value in QUICK.items() if key in inner or key == "n_contexts"}
    known = {f.name for f in dataclasses.fields(registry.find_method(base).hparams)}
    config["base"] = {key: value for key, value in inner.items() if key in known}
    return OvertoneHparams.from_dict(config | settings)


@pytest.mark.parametrize("base", BASES)
def test_every_base_edits_and_is_watched(base):
    model, tokenizer = atlas_model("gpt2")
    requests = parse_records(atlas.edit_set(2, seed=5))
    session, table = EditSession.of(model, tokenizer), TokenTable()
    edit_round(session, requests[:1], quick(base), trace=table)
    courses = table.courses(0)
    assert sum(course.losses[-1] for course in courses) < sum(
        course.losses[0] for course in courses
    )
    assert table.courses(1) == []
