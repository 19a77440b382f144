"""Finding, probing and registering: against EasyEdit, and against a stand-in with its checkout.

The stand-in has only the parts of EasyEdit that our code uses, so that registration is tested on a
machine without EasyEdit too.
"""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys

import pytest

from nse_plugin import host as hosting
from nse_plugin.easyedit import checkout, editor
from nse_plugin.easyedit import register as plugin
from nse_plugin.errors import HostError, HparamsError
from tests.contract.conftest import fact, quick
from tests.test_package import ROOT

STAND_IN = {
    "__init__.py": "",
    "util/__init__.py": "",
    "util/alg_dict.py": "ALG_DICT = {'ROME': print, 'MEMIT': print}",
    "editors/__init__.py": "",
    "editors/batch_editor.py": """
from enum import Enum
class BatchEditor(Enum):
    MEMIT = 'MEMIT'
    @staticmethod
    def is_batchable_method(alg_name: str):
        return alg_name == BatchEditor.MEMIT.value
""",
    "editors/editor.py": """
class BaseEditor:
    @classmethod
    def from_hparams(cls, hparams): return cls(hparams)
    def __init__(self, hparams): self.hparams = hparams
    def edit(self, prompts, **kwargs): pass
    def batch_edit(self, prompts, **kwargs): pass
    def edit_requests(self, requests, sequential_edit=False, **kwargs): pass
""",
    "evaluate/__init__.py": "",
    "evaluate/evaluate.py": "def compute_edit_quality(**kwargs): pass",
    "dataset/__init__.py": "",
    **{
        f"dataset/{module}.py": f"class {name}:\n    def __init__(self, data_dir, size=None): pass"
        for module, name in [
            ("zsre", "ZsreDataset"), ("counterfact", "CounterFactDataset"),
            ("knowedit", "KnowEditDataset"), ("wiki_recent", "WikiRecentDataset"),
        ]
    },
}  # fmt: skip


def ours(name):
    return name.partition(".")[0] == checkout.PACKAGE


def build(folder, files):
    for name, text in files.items():
        path = folder / checkout.PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def no_host(monkeypatch):
    """A machine without EasyEdit, whatever this one has."""
    held = {name: module for name, module in sys.modules.items() if ours(name)}
    for name in held:
        del sys.modules[name]
    monkeypatch.delenv(checkout.ROOT_VARIABLE, raising=False)
    monkeypatch.delenv(hosting.HOST_VARIABLE, raising=False)
    monkeypatch.setattr(
        sys, "path", [p for p in sys.path if not (checkout.Path(p) / checkout.PACKAGE).is_dir()]
    )
    yield
    for name in [name for name in sys.modules if ours(name)]:
        del sys.modules[name]
    sys.modules.update(held)


def first_on_path(folder):
    """Insert into the path of `no_host`, which monkeypatch restores."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


@pytest.fixture
def stand_in(no_host, tmp_path, monkeypatch):
    """A checkout with all hook points and nothing behind them."""
    folder = build(tmp_path / "checkout", STAND_IN)
    monkeypatch.setenv(checkout.ROOT_VARIABLE, str(folder))
    return folder


@pytest.fixture(params=["stand-in", "easyedit"])
def table(request):
    """The method table of a host in which nothing is registered."""
    request.getfixturevalue("stand_in" if request.param == "stand-in" else "easyedit")
    host = checkout.find()
    checkout.load(host)
    plugin.unregister()
    table = checkout.method_table()
    before = dict(table)
    yield table
    plugin.unregister()
    table.clear()
    table.update(before)


def gate():
    return checkout.part("easyeditor.editors.batch_editor:BatchEditor")


def gate_in_class():
    return gate().__dict__["is_batchable_method"]


# --- finding --------------------------------------------------------------------------------------


def run(code, **environment):
    environment = {**os.environ, **environment}
    path = [environment.get("PYTHONPATH"), str(ROOT)]  # this package may not be installed
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, path))},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_plugin_imports_no_host_and_changes_nothing(stand_in):
    heavy = ("torch", "transformers", "numpy", checkout.PACKAGE)
    code = f"""
import sys
path = list(sys.path)
import nse_plugin, nse_plugin.host, nse_plugin.easyedit.register
assert nse_plugin.host.host() == "easyedit"
assert sys.path == path
print([name for name in {heavy} if name in sys.modules])
"""
    assert run(code) == "[]"


def test_no_host_is_the_embedded_one(no_host):
    from nse_plugin.editor import BaseEditor
    from nse_plugin.evaluation.edit_quality import compute_edit_quality

    assert checkout.find() is None and hosting.host() == "embedded"
    assert hosting.BaseEditor is BaseEditor
    assert hosting.compute_edit_quality is compute_edit_quality
    with pytest.raises(HostError, match=r"clone .*EASYEDIT_ROOT"):
        plugin.register()
    plugin.unregister()
    assert not any(map(ours, sys.modules))


def test_a_folder_of_that_name_is_no_host(no_host, tmp_path):
    (tmp_path / checkout.PACKAGE).mkdir()
    first_on_path(tmp_path)
    assert checkout.find() is None


def test_a_wrong_root_is_named(no_host, monkeypatch):
    monkeypatch.setenv(checkout.ROOT_VARIABLE, "/nowhere/EasyEdit")
    with pytest.raises(HostError, match="'/nowhere/EasyEdit'"):
        hosting.host()


def test_a_root_beside_another_import_is_named(stand_in, tmp_path, monkeypatch):
    checkout.load(checkout.find())
    other = build(tmp_path / "other", STAND_IN)
    monkeypatch.setenv(checkout.ROOT_VARIABLE, str(other))
    with pytest.raises(HostError, match=r"other.*already imported from .*checkout"):
        checkout.find()


def test_the_root_goes_before_what_is_importable(stand_in, tmp_path):
    first_on_path(build(tmp_path / "other", STAND_IN))
    host = checkout.find()
    assert host.path == stand_in
    assert checkout.load(host).__file__ == str(stand_in / checkout.PACKAGE / "__init__.py")


def test_an_importable_host_is_found(stand_in, monkeypatch):
    monkeypatch.delenv(checkout.ROOT_VARIABLE)
    first_on_path(stand_in)
    assert checkout.find().path == stand_in
    checkout.load(checkout.find())
    assert checkout.find().path == stand_in


COMMIT = "14cea8245f06715684592ab55184939b99d70784"


@pytest.mark.parametrize(
    "files",
    [
        {".git/HEAD": COMMIT},
        {".git/HEAD": "ref: refs/heads/main", ".git/refs/heads/main": COMMIT},
        {".git/HEAD": "ref: refs/heads/main",
         ".git/packed-refs": f"# pack-refs with: peeled\n{'0' * 40} refs/x/main\n"
                             f"{COMMIT} refs/heads/main\n"},
        {".git": "gitdir: ../repo/worktrees/w", "../repo/worktrees/w/HEAD": "ref: refs/heads/b",
         "../repo/worktrees/w/commondir": "../..", "../repo/refs/heads/b": COMMIT},
    ],
    ids=["detached", "branch", "packed", "worktree"],
)  # fmt: skip
def test_the_commit_is_read_without_git(stand_in, files):
    for name, text in files.items():
        path = stand_in / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert checkout.find().commit == COMMIT


def test_a_host_without_git_has_no_commit(stand_in):
    assert checkout.find().commit is None
    (stand_in / ".git").mkdir()
    (stand_in / ".git/HEAD").write_text("ref: refs/heads/gone")
    assert checkout.find().commit is None and "unknown commit" in str(checkout.find())


@pytest.mark.parametrize("name", ["embedded", "easyedit"])
def test_the_host_may_be_chosen(stand_in, monkeypatch, name):
    monkeypatch.setenv(hosting.HOST_VARIABLE, name)
    assert hosting.host() == name
    home = "nse_plugin.editor" if name == "embedded" else "nse_plugin.host"
    assert hosting.BaseEditor.__module__ == home


def test_a_wrong_choice_of_host_is_named(no_host, monkeypatch):
    monkeypatch.setenv(hosting.HOST_VARIABLE, "embeded")
    with pytest.raises(HostError, match="'embeded'; did you mean 'embedded'"):
        hosting.host()
    monkeypatch.setenv(hosting.HOST_VARIABLE, "easyedit")
    with pytest.raises(HostError, match="there is none"):
        hosting.host()


# --- loading and probing --------------------------------------------------------------------------


def test_the_real_easyedit_has_every_hook_point(easyedit):
    found = checkout.probe(easyedit)
    assert found == {}
    assert hosting.compute_edit_quality is checkout.part("easyeditor:compute_edit_quality")


def test_what_easyedit_imports_and_is_missing_is_named(stand_in):
    build(stand_in, {"__init__.py": "import a_package_that_is_not_there"})
    with pytest.raises(HostError, match=r"a_package_that_is_not_there.*constraints-easyedit.txt"):
        plugin.register()
    build(stand_in, {"__init__.py": "raise RuntimeError('no such operator')"})
    with pytest.raises(HostError, match=r"RuntimeError: no such operator.*embedded"):
        plugin.register()


@pytest.mark.parametrize(
    ("file", "text", "point"),
    [
        ("util/alg_dict.py", "ALG_DICT = []", "method table"),
        ("editors/batch_editor.py", "class BatchEditor: pass", "batch gate"),
    ],
)
def test_a_host_without_the_two_hooks_is_left_alone(stand_in, file, text, point):
    build(stand_in, {file: text})
    with pytest.raises(HostError, match=f"{point} .*; "):
        plugin.register()
    assert plugin.registration() is None


@pytest.mark.parametrize(
    ("file", "text", "point"),
    [
        ("dataset/zsre.py", "", "ZsRE"),
        ("editors/editor.py", "BaseEditor = 3", "editor"),
        ("evaluate/evaluate.py", "def compute_edit_quality(model): pass", "evaluator"),
    ],
)
def test_a_part_that_can_be_spared_is_reported(stand_in, caplog, file, text, point):
    build(stand_in, {file: text})
    missing = checkout.probe(checkout.find())
    assert point in missing
    plugin.register()
    assert all(line in caplog.text for line in missing.values())


def test_a_missing_evaluator_is_replaced_by_ours(stand_in):
    from nse_plugin.evaluation.edit_quality import compute_edit_quality

    build(stand_in, {"evaluate/evaluate.py": ""})
    assert hosting.compute_edit_quality is compute_edit_quality


# --- registering ----------------------------------------------------------------------------------


def test_register_and_unregister(table):
    before, gate_before = dict(table), gate_in_class()
    done = plugin.register()
    assert done is plugin.registration() and {"NSE", "NSE-plugin"} <= set(done.names)
    assert {name: table[name] for name in before} == before
    assert table["NSE"] is table["NSE-plugin"]
    assert all(gate().is_batchable_method(name) for name in ("NSE", "NSE-plugin", "MEMIT"))
    assert not gate().is_batchable_method("ROME")
    plugin.unregister()
    assert table == before and list(table) == list(before)
    assert gate_in_class() is gate_before and plugin.registration() is None
    assert not gate().is_batchable_method("NSE")
    plugin.unregister()
    assert table == before


def test_register_again_changes_nothing(table):
    first = plugin.register()
    held, gate_held = dict(table), gate_in_class()
    assert plugin.register() is first and plugin.register(["NSE"]) is first
    assert plugin.register(["NSE"], override=True) is first
    assert table == held and gate_in_class() is gate_held


def test_a_method_we_do_not_have_is_named(table):
    with pytest.raises(HparamsError, match=r"'NSA'.*did you mean 'NSE'"):
        plugin.register(["NSA"])


def test_a_name_that_easyedit_has_is_left_to_it(table):
    table["NSE"] = theirs = lambda: None
    with pytest.raises(HostError, match="NSE-plugin"):
        plugin.register(["NSE"])
    assert plugin.registration() is None and "NSE-plugin" not in table
    plugin.register()
    assert table["NSE"] is theirs
    assert table["NSE-plugin"] is not theirs and gate().is_batchable_method("NSE-plugin")
    assert not gate().is_batchable_method("NSE")
    plugin.unregister()
    assert table["NSE"] is theirs and "NSE-plugin" not in table


def test_override_takes_a_name_over_and_unregister_restores_it(table):
    table["NSE"] = theirs = lambda: None
    plugin.register(["NSE"], override=True)
    assert table["NSE"] is table["NSE-plugin"] is not theirs
    assert gate().is_batchable_method("NSE")
    plugin.unregister()
    assert table["NSE"] is theirs and "NSE-plugin" not in table


def test_our_name_taken_by_other_code_is_named(table):
    table["NSE-plugin"] = lambda: None
    with pytest.raises(HostError, match="'NSE-plugin'"):
        plugin.register()


def test_what_other_code_put_in_our_place_stays(table, caplog):
    plugin.register()
    table["NSE"] = theirs = lambda: None
    assert not gate().is_batchable_method("NSE")
    plugin.unregister()
    assert table["NSE"] is theirs and "NSE-plugin" not in table
    assert "'NSE'" in caplog.text


def test_a_gate_that_was_wrapped_after_us_stays_wrapped(table, caplog):
    plugin.register()
    mine = gate_in_class()
    inner = gate().is_batchable_method
    wrapped = staticmethod(functools.wraps(inner)(lambda name: name == "other" or inner(name)))
    gate().is_batchable_method = wrapped
    try:
        plugin.unregister()
        assert gate_in_class() is wrapped and "wrapped again" in caplog.text
        answers = {n: gate().is_batchable_method(n) for n in ("other", "MEMIT", "NSE")}
        assert answers == {"other": True, "MEMIT": True, "NSE": False}
        plugin.register()
        assert gate().is_batchable_method("NSE") and gate().is_batchable_method("other")
        plugin.unregister()
        assert gate_in_class() is wrapped
    finally:
        gate().is_batchable_method = mine.__func__.__wrapped__


# --- the editor -----------------------------------------------------------------------------------


def test_the_editor_is_easyedits(table):
    import nse_plugin

    editor = nse_plugin.BaseEditor
    assert issubclass(editor, checkout.part("easyeditor.editors.editor:BaseEditor"))
    assert editor is nse_plugin.BaseEditor and editor is hosting.BaseEditor
    assert plugin.registration() is not None


def test_hparams_pass_through_where_easyedit_understands_them(stand_in):
    hparams = quick(model_name="somewhere/gpt2")
    assert hosting.BaseEditor(hparams).hparams is hparams
    named = quick(model_name="atlas:gpt2")
    editor = hosting.BaseEditor.from_hparams(named)
    assert editor.hparams.model_name.endswith("atlas-gpt2") and named.model_name == "atlas:gpt2"


def test_our_editor_runs_our_method_where_easyedit_has_one_of_that_name(stand_in):
    checkout.load(checkout.find())
    checkout.method_table()["NSE"] = print
    editor = hosting.BaseEditor(quick(model_name="gpt2"))
    assert editor.hparams.alg_name == "NSE-plugin" and editor.hparams.layers == [1, 2]


def test_the_editor_names_what_is_not_there(stand_in):
    from types import SimpleNamespace

    from nse_plugin.errors import ModelError

    editor = hosting.BaseEditor
    with pytest.raises(HostError, match="'ROMA'; did you mean 'ROME'"):
        editor(SimpleNamespace(alg_name="ROMA", model_name="gpt2"))
    with pytest.raises(ModelError, match="atlas:bert"):
        editor(quick(model_name="atlas:bert"))
    plugin.unregister()
    with pytest.raises(HostError, match=r"register\(\)"):
        editor(quick(model_name="gpt2"))


def test_ours_is_run_in_full_under_its_other_name(easyedit, saved):
    """As in a later EasyEdit that ships an NSE of its own."""
    plugin.unregister()
    table = checkout.method_table()
    table["NSE"] = lambda *args, **kwargs: pytest.fail("this is EasyEdit's")
    try:
        editor = hosting.BaseEditor(quick(model_name=saved["llama"], batch_size=1))
        metrics, *_ = editor.edit(**fact(0), sequential_edit=True, verbose=False)
        assert len(metrics) == 1 and editor.alg_name == "NSE-plugin"
        editor.batch_edit(**fact(1), sequential_edit=True, verbose=False)
    finally:
        plugin.unregister()
        del table["NSE"]


@pytest.mark.parametrize("name", ["LoRA", "GRACE"])
def test_methods_that_attach_modules_stay_out(table, name):
    """EasyEdit's editors undo changes of weights only."""
    from nse_plugin.hparams import GRACEHparams, LoRAHparams

    theirs = table.get(name)
    done = plugin.register()
    assert "FT-plugin" in done.names and table.get(name) is theirs
    assert not any(entry.startswith(name) for entry in done.names)
    with pytest.raises(HostError, match=f"{name} of nse_plugin attaches modules.*embedded"):
        plugin.register([name])
    hparams = {
        "LoRA": LoRAHparams(alg_name="LoRA", model_name="m", target_modules=["c_attn"]),
        "GRACE": GRACEHparams(alg_name="GRACE", model_name="m", inner_params=["h[0].mlp.weight"]),
    }[name]
    with pytest.raises(HostError, match=f"{name} of nse_plugin attaches modules"):
        editor._for_host(hparams)
