"""Values on their way into EasyEdit's YAML reader."""

from __future__ import annotations

import pytest

from nse_plugin.easyedit.hparams import _number


@pytest.mark.parametrize(
    ("given", "expected"),
    [("5e-1", 0.5), ("-2E3", -2000.0), (".5e+1", 5.0), ("0", "0"), ("nan", "nan"), ("12", "12"),
     ("cuda:0", "cuda:0"), (3, 3), (None, None), ([1], [1])],
)  # fmt: skip
def test_only_what_yaml_misreads_becomes_a_number(given, expected):
    found = _number(given)
    assert found == expected and type(found) is type(expected)
