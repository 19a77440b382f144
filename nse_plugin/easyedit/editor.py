"""EasyEdit's editor and evaluator, as nse_plugin provides them if EasyEdit is the host."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from typing import Any

from nse_plugin.data.models import model_place
from nse_plugin.easyedit import overtone
from nse_plugin.easyedit.checkout import import_easyedit, method_table, part, probe
from nse_plugin.easyedit.register import ALIAS, refuse_attaching, register, registration
from nse_plugin.errors import HostError, did_you_mean
from nse_plugin.evaluation import edit_quality
from nse_plugin.hparams import Hparams
from nse_plugin.methods.registry import attaches


class ReadyModel(str):
    """A loaded model and its tokenizer as ``hparams.model_name``, for EasyEdit.

    EasyEdit accepts a (model, tokenizer) pair as model_name, but its evaluator treats it as a text.
    This is both: a text, the model's name, that unpacks into model and tokenizer.  It can go once
    EasyEdit's evaluator no longer looks for "t5" in a pair.
    """

    model: Any
    tokenizer: Any

    def __new__(cls, model: Any, tokenizer: Any) -> ReadyModel:
        """The name is that in the model's config, or else the model's family."""
        config = model.config
        ready = super().__new__(cls, getattr(config, "_name_or_path", "") or config.model_type)
        ready.model, ready.tokenizer = model, tokenizer
        return ready

    def __iter__(self) -> Any:
        return iter((self.model, self.tokenizer))

    def __deepcopy__(self, _memo: dict[int, Any]) -> ReadyModel:
        return self  # EasyEdit copies hparams for its records; the model must not be copied


def base_editor() -> type:
    """The BaseEditor of nse_plugin if EasyEdit is the host; registers our methods.

    It is a subclass of EasyEdit's that accepts ``atlas:`` names and (model, tokenizer) pairs as
    ``model_name``, runs *our* method for hyperparameters of our classes even if EasyEdit has a
    method of that name, and reports nltk data missing for fluency before any work.  Everything
    else is EasyEdit's, so ``easyeditor.BaseEditor`` works as well.

    Raises:
        HostError: as :func:`register`.
    """
    register()
    return _subclass(part("easyeditor.editors.editor:BaseEditor"))


def evaluator() -> Callable[..., dict[str, Any]]:
    """EasyEdit's ``compute_edit_quality``, or ours, which is equivalent, if it has none.

    Raises:
        HostError: EasyEdit is not there or cannot be imported.
    """
    if "evaluator" not in probe(import_easyedit()):
        return part("easyeditor.evaluate.evaluate:compute_edit_quality")
    return edit_quality.compute_edit_quality


@functools.cache
def _subclass(theirs: type) -> type:
    class BaseEditor(theirs):
        """EasyEdit's BaseEditor, with what nse_plugin's hparams allow."""

        def __init__(self, hparams: Any) -> None:
            super().__init__(hparams if hparams is None else _for_host(hparams))
            if overtone.wraps_easyedit(hparams):
                self.apply_algo = overtone.apply_function(hparams)

        def edit_requests(self, *args: Any, **kwargs: Any) -> Any:
            _check_fluency(kwargs.get("test_generation") or (len(args) > 3 and args[3]))
            return super().edit_requests(*args, **kwargs)

        def batch_edit(self, *args: Any, **kwargs: Any) -> Any:
            _check_fluency(kwargs.get("test_generation"))
            return super().batch_edit(*args, **kwargs)

    BaseEditor.__qualname__ = "BaseEditor"
    BaseEditor.__module__ = "nse_plugin.host"
    return BaseEditor


def _for_host(hparams: Any) -> Any:
    """The hparams in a form that EasyEdit understands; a copy if anything has to change."""
    if overtone.wraps_easyedit(hparams):
        hparams = overtone.base_hparams(hparams)
    changes = {}
    name = hparams.model_name
    if isinstance(name, str):
        if (place := model_place(name)) != name:
            changes["model_name"] = place
    elif isinstance(name, (tuple, list)) and len(name) == 2:
        changes["model_name"] = ReadyModel(*name)
    table = method_table()
    done = registration()
    ours = {} if done is None else done.functions
    found = table.get(hparams.alg_name)
    if isinstance(hparams, Hparams) and (found is None or found is not ours.get(hparams.alg_name)):
        alias = ALIAS.format(hparams.method)
        refuse_attaching([hparams.method] if attaches(hparams) else [])
        if alias not in ours:
            raise HostError(
                f"{hparams.alg_name} of nse_plugin is not in EasyEdit's method table; "
                "call nse_plugin.register() first"
            )
        changes["alg_name"] = alias
    elif found is None:
        raise HostError(
            f"EasyEdit has no method {hparams.alg_name!r}{did_you_mean(hparams.alg_name, table)}"
        )
    if not changes:
        return hparams
    hparams = copy.copy(hparams)
    for key, value in changes.items():
        setattr(hparams, key, value)
    return hparams


def _check_fluency(wanted: Any) -> None:
    if not wanted:
        return
    import nltk

    try:
        nltk.word_tokenize("One. Two.")
    except LookupError as error:
        asked_for = re.search(r"nltk\.download\('(\w+)'\)", str(error))
        data = asked_for[1] if asked_for else "punkt_tab"  # by version
        raise HostError(
            f"test_generation asks EasyEdit for fluency, which needs nltk's {data} data, and they "
            f"are not on this machine; download them with `python -m nltk.downloader {data}`, "
            "leave test_generation out, or use NSE_PLUGIN_HOST=embedded, which needs none"
        ) from error
