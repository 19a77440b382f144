"""The rows of the registry say what the methods really take."""

from __future__ import annotations

import inspect

import pytest

from nse_plugin.methods.bases import Method, by_name
from nse_plugin.methods.registry import METHODS


@pytest.mark.parametrize("name", METHODS)
def test_capabilities_are_those_of_the_function(name):
    method = METHODS[name]
    taken = inspect.signature(method.edit_round).parameters
    assert method.takes_objective is ("objective" in taken)
    assert method.takes_trace is ("trace" in taken)
    assert method.name == name == method.hparams.method


def test_a_name_is_given_once():
    method = METHODS["NSE"]
    with pytest.raises(ValueError, match="two methods are called NSE"):
        by_name(method, Method("NSE", method.edit_round, method.hparams))
