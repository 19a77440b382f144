"""The choice between our and EasyEdit's implementation of a method, and its hyperparameters.

If EasyEdit is the host and has the method, its own implementation is run, unless the method is
given as ``NAME-plugin`` or with OVERTONE.  A change (``NAME:key=value``) of a key that EasyEdit's
method does not have is refused.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from nse_plugin import host as hosting
from nse_plugin.compare.plan import Cell
from nse_plugin.compare.results import MethodInfo
from nse_plugin.compare.specs import MethodSpec
from nse_plugin.errors import HparamsError
from nse_plugin.hparams import Hparams, LocateHparams, OvertoneHparams
from nse_plugin.methods.registry import find_method
from nse_plugin.model.probe import layout_of
from nse_plugin.runs.differences import completed, differences
from nse_plugin.runs.identity import as_json
from nse_plugin.session.session import EditSession
from nse_plugin.statistics.files import stats_folder

_FROM_THE_MODEL = ("model_name", "lm_head_module")
"""Keys of the host's hyperparameters whose values are not from the YAML."""
_NULL_SPACE = "null_space_project.pt"
"""EasyEdit's AlphaEdit writes its projection there, whatever ``P_loc`` is.  If ``P_loc`` is another
file that does not exist, it computes the projection again in each round."""
OURS, THEIRS = "nse_plugin", "EasyEdit"
"""The implementations."""


@dataclass(frozen=True)
class Recipe:
    """A method's hyperparameters and implementation."""

    hparams: Any
    implementation: str
    ignored: tuple[str, ...] = ()
    """Keys of the YAML that the host's method does not have."""

    @property
    def hosts_own(self) -> bool:
        """The host's own implementation is run."""
        return self.implementation == THEIRS


def is_hosts_own(spec: MethodSpec) -> bool:
    """Whether the host's own implementation is run."""
    if spec.ours or spec.overtone or hosting.host() != "easyedit":
        return False
    from nse_plugin.easyedit.register import has_own

    return has_own(spec.method)


def recipe(cell: Cell) -> Recipe:
    """The hyperparameters and the implementation of a cell's method.

    Raises:
        HparamsError: there is no YAML for this model, or a key or value is wrong.
        HostError: the host's method cannot take them.
    """
    spec, settings = cell.spec, cell.settings
    values = cell.values()
    try:
        hparams = find_method(values["alg_name"]).hparams.from_dict(values)
    except HparamsError as error:
        raise HparamsError(f"method {spec.name!r} on {cell.model.key}: {error}") from None
    hosts_own = is_hosts_own(spec)
    hparams = _with_statistics(hparams, settings.stats_dir, hosts_own)
    if not hosts_own:
        return Recipe(hparams, OURS)
    lost = sorted(set(spec.changes) - _host_keys(spec.method))
    if lost:  # changes without effect
        raise HparamsError(
            f"method {spec.name!r}: EasyEdit's {spec.method} has no {', '.join(lost)}; leave it "
            f"out, or change ours: {spec.method}-plugin"
        )
    return Recipe(hparams, THEIRS)


def _host_keys(method: str) -> set[str]:
    from nse_plugin.easyedit.hparams import hparams_class

    return {field.name for field in dataclasses.fields(hparams_class(method))}


def changed_since(cell: Cell, kept: MethodInfo) -> list[str]:
    """In words: what differs between a cell's result and a run of it now."""
    if cell.untouched:
        return []
    made = recipe(cell)
    if made.implementation != kept["implementation"]:
        return differences(kept["implementation"], made.implementation, "implementation")
    before, now = _any_gpu(kept["hparams"]), _any_gpu(as_json(made.hparams))
    if made.hosts_own:  # EasyEdit's class lacks some keys, and others were filled in
        now = {
            key: value
            for key, value in now.items()
            if key in before and value is not None and key not in _FROM_THE_MODEL
        }
        before = {key: before[key] for key in now}
    return differences(completed(before, now, made.hparams), now)


def _any_gpu(hparams: Any) -> Any:
    """JSON values with ``cuda`` for any GPU: with Ray a cell runs on the one that is free."""
    if not isinstance(hparams, dict):
        return hparams
    found = {key: _any_gpu(value) for key, value in hparams.items()}
    device = str(found.get("device", ""))
    return found | {"device": "cuda"} if device.isdigit() or device.startswith("cuda") else found


def _with_statistics(hparams: Hparams, folder: str | None, hosts_own: bool = False) -> Hparams:
    """The hyperparameters with an absolute folder of statistics.

    EasyEdit's own methods use ``./data/stats`` and never the cache, because their files name their
    model only by the name of its folder.
    """
    if isinstance(hparams, OvertoneHparams):
        return dataclasses.replace(hparams, base=_with_statistics(hparams.base, folder))
    if not isinstance(hparams, LocateHparams):
        return hparams
    named = folder or hparams.stats_dir
    place = named if hosts_own else stats_folder(named)
    return dataclasses.replace(hparams, stats_dir=os.path.abspath(place))


def editor_of(made: Recipe, model: Any, tokenizer: Any) -> tuple[Any, Recipe]:
    """The session or editor that the scheduler edits, and the recipe as it is run.

    The host's editor gets this model and hyperparameters of the host's class: the keys that ours
    and the host's have in common, and those that only the host needs.

    Raises:
        HostError: the host's method needs something that is not known.
    """
    if not made.hosts_own:
        return EditSession.of(model, tokenizer), made
    from nse_plugin.easyedit.editor import ReadyModel
    from nse_plugin.easyedit.hparams import hparams_of

    values = _host_values(made.hparams, model)
    known = _host_keys(made.hparams.method)
    given = {key for key, value in made.hparams.to_dict().items() if value is not None}
    ignored = tuple(sorted(given - known))
    hparams = hparams_of({key: value for key, value in values.items() if key in known})
    hparams.model_name = ReadyModel(model, tokenizer)
    editor = hosting.BaseEditor.from_hparams(hparams)
    return editor, dataclasses.replace(made, hparams=hparams, ignored=ignored)


def _host_values(hparams: Hparams, model: Any) -> dict[str, Any]:
    """Values for the keys of EasyEdit's YAMLs, including those that ours do not need."""
    layout = layout_of(model)
    needed = {
        **layout.templates(),
        "v_loss_layer": layout.n_layers - 1,
        "P_loc": _NULL_SPACE,
    }
    if isinstance(hparams, LocateHparams):
        needed["context_template_length_params"] = [[hparams.context_length, hparams.n_contexts]]
    given = hparams.to_dict()
    open_ones = {key: value for key, value in needed.items() if given.get(key) is None}
    head = _holder(model, model.get_output_embeddings())
    return {**given, **open_ones, "lm_head_module": head, "alg_name": hparams.method}


def _holder(model: Any, head: Any) -> str:
    """The module under which ``named_parameters`` lists the head's weight, which EasyEdit looks up:
    the embedding if the head is tied."""
    names = (name for name, parameter in model.named_parameters() if parameter is head.weight)
    return next(names).removesuffix(".weight")
