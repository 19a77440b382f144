"""Every kind of mistake in settings is one line that names key, value and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from nse_plugin.errors import HparamsError
from nse_plugin.hparams.validation import Settings, bounded, group
from nse_plugin.hparams.yaml_files import find_yaml, parse_yaml, read_yaml


@dataclass(frozen=True)
class Inner(Settings):
    size: int = bounded(3, low=1)
    share: float = bounded(0.5, above=0, high=1)

    def conflicts(self):
        if self.size * self.share > 5:
            yield "size is too large for share"


@dataclass
class Outer(Settings):
    name: str
    count: int | None = bounded(None, low=1)
    rate: float = 1.0
    mode: Literal["fast", "slow"] = "fast"
    where: int | str = "here"
    on: bool = False
    sizes: list[int] = field(default_factory=list)
    names: tuple[str, ...] = ()
    inner: dict[str, Any] = field(default_factory=dict, metadata=group(Inner))


WRONG = [
    ("count: ten", "count is 'ten'; it must be a whole number of at least 1 or null"),
    ("count: 1.5", "count is 1.5; it must be a whole number of at least 1 or null"),
    ("count: true", "count is True; it must be a whole number of at least 1 or null"),
    ("count: 0", "count is 0; it must be a whole number of at least 1 or null"),
    ("rate: [1]", "rate is [1]; it must be a number"),
    ("rate: .nan", "rate is nan; it must be a number"),
    ("rate: .inf", "rate is inf; it must be a number"),
    ("rate: 1" + "0" * 400, "rate is 1000"),
    ("mode: fats", "mode is 'fats'; it must be one of 'fast', 'slow'; did you mean 'fast'?"),
    ("mode: no", "mode is False; it must be one of 'fast', 'slow'"),
    ("where: [0]", "where is [0]; it must be a whole number or text"),
    ("where: null", "where is None"),
    ("'on': 1", "on is 1; it must be true or false"),
    ("sizes: [1, x]", "sizes is [1, 'x']; it must be a list of whole numbers, e.g. [1, 2]"),
    ("sizes: 3", "sizes is 3; it must be a list of whole numbers"),
    ("names: a", "names is 'a'; it must be a list of texts"),
    ("name: 5", "name is 5; it must be text; put it in quotes, '5', if it is one"),
    ("name: 2024-01-01", "name is datetime.date(2024, 1, 1); it must be text"),
    ("inner: 5", "inner is 5; it must be a group of keys with values, as in inner: {size: 3}"),
    ("inner: [1]", "inner is [1]; it must be a group"),
    ("inner: {sise: 1}", "unknown key 'inner.sise'; did you mean 'size'?"),
    ("inner: {size: x}", "inner.size is 'x'; it must be a whole number of at least 1"),
    ("inner: {share: 2}", "inner.share is 2; it must be a number above 0 and at most 1"),
    ("inner: {size: 20}", "inner.size is too large for share"),
    ("5: 1", "unknown key '5'"),
    ("cuont: 1", "unknown key 'cuont'; did you mean 'count'?"),
    ("COUNT: 1", "unknown key 'COUNT'; did you mean 'count'?"),
]


@pytest.mark.parametrize("line, message", WRONG)
def test_a_mistake_is_one_line_with_key_value_and_what_is_allowed(tmp_path, line, message):
    path = tmp_path / "a.yaml"
    path.write_text(f"{line}\n" if line.startswith("name") else f"name: a\n{line}\n")
    with pytest.raises(HparamsError) as caught:
        Outer.read(path, {})
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_all_mistakes_of_a_file_are_told_together(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("count: ten\nmdoe: fast\ninner: {size: 0, sahre: 1}\n'on': maybe\n")
    with pytest.raises(HparamsError) as caught:
        Outer.read(path, {"name": "a"})
    first, *lines = str(caught.value).splitlines()
    assert first == f"{path}: 5 mistakes" and len(lines) == 5 == len(caught.value.mistakes)
    for part in ("count is 'ten'", "'mdoe'; did you mean 'mode'", "inner.size is 0",
                 "'inner.sahre'; did you mean 'share'", "on is 'maybe'"):  # fmt: skip
        assert sum(part in line for line in lines) == 1


def test_values_take_the_type_of_their_field():
    made = Outer.from_dict({"name": "a", "count": 2.0, "rate": "2e-2", "sizes": (1, 2.0),
                            "names": ["b"], "where": 0, "inner": None})  # fmt: skip
    assert (made.count, made.rate, made.sizes, made.names) == (2, 0.02, [1, 2], ("b",))
    assert isinstance(made.count, int) and made.where == 0 and made.inner == {}


def test_options_override_the_file_and_groups_are_merged(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("name: a\ncount: 3\ninner: {size: 2}\n")
    made = Outer.read(path, {"count": 4, "rate": None, "inner": {"share": 0.1, "size": None}})
    assert (made.count, made.rate, made.inner) == (4, 1.0, {"size": 2, "share": 0.1})
    with pytest.raises(HparamsError, match=r"^count is 0") as caught:  # not the file's mistake
        Outer.read(path, {"count": 0})
    assert str(path) not in str(caught.value)


def test_what_is_missing_is_told_with_the_rest():
    with pytest.raises(HparamsError, match=r"(?s)2 mistakes.*count is 0.*missing key\(s\) 'name'"):
        Outer.from_dict({"count": 0})


def test_yaml_as_people_write_it(tmp_path):
    assert parse_yaml("a: 2e-2\nb: 1E5\nc: -3e+1\nd: e5\ne: 1e") == {
        "a": 0.02, "b": 1e5, "c": -30.0, "d": "e5", "e": "1e"}  # fmt: skip
    path = tmp_path / "a.yaml"
    for text, message in [
        (
            "a: 1\na: 2",
            "a.yaml is not YAML: the key 'a' is given twice at line 2, column 1; correct",
        ),
        (
            "a: [1\n",
            "is not YAML: expected ',' or ']', but got '<stream end>' at line 2, column 1; ",
        ),
        ("a: \x01", "is not YAML: unacceptable character"),
        ("a: {b: 1, b: 2}", "the key 'b' is given twice"),
        ("a: 2024-13-45", "is not YAML: month must be in 1..12"),
        ("[" * 5000, "nested too deeply"),
        ("", "holds nothing"),
    ]:
        path.write_text(text)
        with pytest.raises(HparamsError, match=message.replace("[", r"\[")) as caught:
            read_yaml(path)
        assert "\n" not in str(caught.value)


def test_at_most_three_names_are_offered():
    with pytest.raises(HparamsError) as caught:
        find_yaml("NSE/gpt2-xxl")
    assert "'NSE/gpt2-xl'" in str(caught.value)
    assert 1 <= str(caught.value).count("' or '") + 1 <= 3 and len(str(caught.value)) < 400
