"""Values that runs of one model share through files."""

from __future__ import annotations

import copy

import pytest

from nse_plugin.hparams.overtone import OTHERWISE
from nse_plugin.methods import spread
from nse_plugin.methods.nse import edit_round
from nse_plugin.methods.spread import FOUND_ELSEWHERE
from nse_plugin.objectives import NLL, nll
from nse_plugin.objectives.overtone import Overtone
from nse_plugin.objectives.token_table import TokenTable
from nse_plugin.session.session import EditSession
from nse_plugin.session.value_files import ValueFiles
from tests.tiny import same_bits, some_requests, tiny_hparams, tiny_model, tiny_tokenizer


@pytest.fixture
def searches(monkeypatch):
    """The searches for values that were made."""
    found, real = [], spread.compute_values
    monkeypatch.setattr(
        spread, "compute_values", lambda *given, **more: found.append(given) or real(*given, **more)
    )
    return found


@pytest.fixture
def edit(tmp_path):
    """Write a round into a new copy of one model that shares its values."""
    untouched = tiny_model("gpt2")
    settings = dict(layers=[1, 2], mom2_adjustment=False, n_contexts=1, context_length=3)

    def edited(n=3, *, made_by="model", objective=nll, trace=None, **changes):
        model = copy.deepcopy(untouched)
        session = EditSession.of(model, tiny_tokenizer())
        if made_by is not None:
            session.untouched.share_values(ValueFiles(tmp_path / "values", made_by))
        hparams = tiny_hparams(**{**settings, **changes})
        return edit_round(session, some_requests(n), hparams, objective, trace), model.state_dict()

    return edited


def test_runs_that_differ_in_the_write_search_once(edit, searches):
    _, alone = edit(made_by=None, max_iterations=2)
    first, _ = edit()
    second, shared = edit(max_iterations=2)
    assert len(searches) == 2 and same_bits(alone, shared)
    assert FOUND_ELSEWHERE not in first.seconds and second.seconds[FOUND_ELSEWHERE] > 0
    assert [o.z_steps for o in first.outcomes] == [o.z_steps for o in second.outcomes]
    edit(merge_subjects=True)  # no two of the requests have one subject
    assert len(searches) == 2


@pytest.mark.parametrize(
    "other",
    [{"v_lr": 0.01}, {"n": 2}, {"made_by": "another"}, {"objective": Overtone(**OTHERWISE)},
     {"rewind": False}, {"target_eos": True}],
)  # fmt: skip
def test_values_of_other_inputs_are_searched(edit, searches, other):
    edit()
    edit(**other)
    assert len(searches) == 2


def test_what_files_cannot_tell_apart_is_not_shared(edit, searches):
    """A user's own loss, of whose settings nothing is known, and a search that is traced."""

    class Own:
        needs_reference = False
        __repr__ = lambda self: "NLL()"  # noqa: E731
        __call__ = NLL.__call__

    edit()
    edit(objective=Own())
    assert len(searches) == 2
    trace = TokenTable()
    edit(trace=trace)
    assert len(searches) == 3 and trace.courses(0)


def test_a_damaged_file_is_searched_again(edit, searches, tmp_path, caplog):
    _, whole = edit()
    (path,) = (tmp_path / "values").iterdir()
    path.write_bytes(path.read_bytes()[:40])
    _, again = edit()
    assert len(searches) == 2 and same_bits(whole, again)
    assert f"{path} cannot be read" in caplog.text
    edit()
    assert len(searches) == 2  # it was mended
