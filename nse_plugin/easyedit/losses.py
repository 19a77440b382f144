"""Another loss for EasyEdit's own editors: their cross-entropy term, and only it, is replaced.

Each editor computes that term in one place, in one of two ways.  It runs unchanged, except that
for the duration of a call this place computes an objective of ours:

=====  ==================================  ===========================================
FT     ``execute_ft``                      ``CrossEntropyLoss`` of its module
WISE   ``WISE._cal_ft_loss``               ``CrossEntropyLoss`` of its module
LoRA   ``execute_lora``                    ``loss_function`` of the transformers model
MELO   ``LORA.edit``                       ``loss_function`` of the transformers model
=====  ==================================  ===========================================

All other terms of an editor (WISE's activation margins, AdaLoRA's orthogonality, weight decay)
stay.  There is no silent fallback to the plain loss: :meth:`Term.check` inspects the place before
anything is written, and an optimizer step without a use of the new term ends the call in a
:class:`HostError` and restores the model.

The value of the new term is the objective's ``stop``, its gradient that of ``train``, because the
editors stop by the value of their loss and a clipped loss never falls below its clip.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

from nse_plugin.easyedit.checkout import method_table, part
from nse_plugin.easyedit.snapshot import Snapshot
from nse_plugin.errors import HostError, HparamsError
from nse_plugin.objectives import TokenObjective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_IGNORED = -100  # the label that torch's cross entropy ignores by default


class TermLoss:
    """An objective in place of a cross entropy; counts the target tokens it is computed for."""

    def __init__(self, objective: TokenObjective, method: str) -> None:
        self._objective, self._method = objective, method
        self.tokens = 0
        """Target tokens since the beginning."""
        self.since_step = 0
        """Target tokens since the optimizer's last step."""

    def cross_entropy(
        self, *, reduction: str = "mean", ignore_index: int = _IGNORED, **others: Any
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The replacement of the class ``torch.nn.CrossEntropyLoss``."""
        if others or reduction not in ("none", "mean", "sum"):
            raise self._unknown(f"CrossEntropyLoss({reduction=}, {others})")

        def loss(logits: Tensor, targets: Tensor) -> Tensor:
            """Logits [n, vocab] and targets [n] give [n], or a scalar."""
            if logits.dim() != 2 or targets.shape != logits.shape[:1]:
                raise self._unknown(f"shapes {tuple(logits.shape)} and {tuple(targets.shape)}")
            kept = targets != ignore_index
            each = self._per_token(logits[kept], targets[kept])
            if reduction != "none":
                return each.mean() if reduction == "mean" else each.sum()
            return each.new_zeros(targets.shape).masked_scatter(kept, each)

        return loss

    def loss_function(
        self,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int | None = None,
        num_items_in_batch: Any = None,
        ignore_index: int = _IGNORED,
        shift_labels: Tensor | None = None,
        **_ignored: Any,
    ) -> Tensor:
        """The replacement of the ``loss_function`` of a transformers model.

        The mean over each request's target tokens, then over requests (transformers takes one mean
        over the tokens of the batch).

        Args:
            logits: [requests, length, vocab].
            labels: [requests, length]; a token is predicted by the one before it.
            shift_labels: [requests, length], labels that are already shifted.
        """
        if logits.dim() != 3 or num_items_in_batch is not None:
            raise self._unknown(f"shape {tuple(logits.shape)}, {num_items_in_batch=}")
        if shift_labels is None:
            shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        targets = shift_labels.to(logits.device)
        kept = targets != ignore_index
        counts = kept.sum(dim=1)
        if not counts.all():
            raise HostError(
                f"EasyEdit's {self._method} cut a request off before its target; shorten the prompt"
            )
        each = self._per_token(logits[kept], targets[kept])
        owner = kept.nonzero()[:, 0]
        return (each.new_zeros(len(counts)).index_add(0, owner, each) / counts).mean()

    def _per_token(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[tokens], from [tokens, vocab] and [tokens]."""
        self.tokens += len(targets)
        self.since_step += len(targets)
        train, stop = self._objective(logits, targets)
        return stop.detach() + (train - train.detach())

    def _unknown(self, what: str) -> HostError:
        return HostError(
            f"EasyEdit's {self._method} computes its cross entropy in an unknown way: {what}. "
            f"{_KNOWN_COMMIT}"
        )


_KNOWN_COMMIT = (
    "Use EasyEdit at a commit that nse_plugin was tested with (14cea82); our own FT and LoRA "
    "need none: NSE_PLUGIN_HOST=embedded"
)


@dataclass(frozen=True)
class Term:
    """Where an editor of EasyEdit computes its cross entropy."""

    method: str
    """``alg_name`` in EasyEdit's table."""
    apply: str
    """The function of that name in EasyEdit's table, as ``module:name``."""
    computed_in: str
    """The function that computes the term, as ``module:name``."""
    settings: Mapping[str, str]
    """Values of hyperparameters without which it computes another loss."""
    needs: tuple[str, ...] = ()
    """Hyperparameters that are optional in ours and required by EasyEdit."""
    copying: str = "copy"
    """The argument that makes :attr:`apply` work on a copy of the model."""

    def check(self, hparams: Any, model: nn.Module) -> Callable[..., Any]:
        """Check the place before anything is written; returns EasyEdit's function.

        Raises:
            HparamsError: with these hyperparameters the editor computes another loss.
            HostError: the code there has changed.
        """
        for name, needed in self.settings.items():
            if getattr(hparams, name, None) != needed:
                raise HparamsError(
                    f"{name} of EasyEdit's {self.method} is {getattr(hparams, name, None)!r}; "
                    f"its loss can be replaced with {name}: {needed} only"
                )
        for name in self.needs:
            if getattr(hparams, name, None) is None:
                raise HparamsError(f"EasyEdit's {self.method} needs {name}; write it under base")
        try:
            function, computing = part(self.apply), part(self.computed_in)
            in_table = method_table().get(self.method)
        except (ImportError, AttributeError) as error:
            raise self.changed(str(error)) from error
        if in_table is not function:
            raise self.changed(f"its method table has another {self.method}: {in_table!r}")
        if problem := self._problem(computing, model):
            raise self.changed(problem)
        return function

    def changed(self, why: str) -> HostError:
        """The error for code of EasyEdit that is not as expected."""
        return HostError(
            f"the cross entropy of EasyEdit's {self.method} cannot be replaced: {why}. "
            f"{_KNOWN_COMMIT}"
        )

    def _problem(self, computing: Callable[..., Any], model: nn.Module) -> str:
        raise NotImplementedError

    def put(self, loss: TermLoss, model: nn.Module) -> AbstractContextManager[None]:
        """A context in which the term is ``loss``."""
        raise NotImplementedError


class NamedTerm(Term):
    """The editor uses ``CrossEntropyLoss``, which its module imports by that name."""

    @property
    def _module(self) -> Any:
        return importlib.import_module(self.computed_in.partition(":")[0])

    def _problem(self, computing: Callable[..., Any], model: nn.Module) -> str:
        if getattr(self._module, "CrossEntropyLoss", None) is not nn.CrossEntropyLoss:
            return f"{self._module.__name__} has no CrossEntropyLoss of torch"
        if "CrossEntropyLoss" not in _names_in(computing):
            return f"{self.computed_in} does not use CrossEntropyLoss"
        return ""

    @contextmanager
    def put(self, loss: TermLoss, model: nn.Module) -> Iterator[None]:
        """Replace the module's ``CrossEntropyLoss``."""
        module = self._module
        module.CrossEntropyLoss = loss.cross_entropy
        try:
            yield
        finally:
            module.CrossEntropyLoss = nn.CrossEntropyLoss


class ModelTerm(Term):
    """The editor uses the loss that a transformers model computes from labels."""

    def _problem(self, computing: Callable[..., Any], model: nn.Module) -> str:
        if "loss" not in _names_in(computing):
            return f"{self.computed_in} does not read the model's loss"
        inner = _transformers_model(model)
        if inner is None:
            return f"there is no model of transformers in a {type(model).__name__}"
        if "loss_function" not in _names_in(type(inner).forward):
            return f"{type(inner).__name__} does not compute its loss by its loss_function"
        return ""

    @contextmanager
    def put(self, loss: TermLoss, model: nn.Module) -> Iterator[None]:
        """Replace the model's ``loss_function``."""
        inner = _transformers_model(model)
        assert inner is not None  # checked
        before = vars(inner).get("_loss_function")
        inner.loss_function = loss.loss_function
        try:
            yield
        finally:
            if before is None:
                vars(inner).pop("_loss_function", None)
            else:
                inner.loss_function = before


_MODELS = "easyeditor.models."
TERMS: dict[str, Term] = {
    term.method: term
    for term in (
        NamedTerm("FT", f"{_MODELS}ft.ft_main:apply_ft_to_model", f"{_MODELS}ft.ft_main:execute_ft",
                  {"objective_optimization": "target_new"}, needs=("rewrite_module_tmp",)),
        ModelTerm("LoRA", f"{_MODELS}lora.lora_main:apply_lora_to_model",
                  f"{_MODELS}lora.lora_main:execute_lora", {}),
        ModelTerm("MELO", f"{_MODELS}melo.melo_main:apply_melo_to_model",
                  f"{_MODELS}melo.melo:LORA.edit", {"task": "hall"},
                  copying="keep_original_weight"),
        NamedTerm("WISE", f"{_MODELS}wise.wise_main:apply_wise_to_model",
                  f"{_MODELS}wise.WISE:WISE._cal_ft_loss",
                  {"objective_optimization": "only_label"}),
    )
}  # fmt: skip
"""The editors of EasyEdit whose term can be replaced, by ``alg_name``."""


@contextmanager
def replaced(term: Term, model: nn.Module, objective: TokenObjective) -> Iterator[TermLoss]:
    """A context in which an editor of EasyEdit has another loss; enter it after :meth:`Term.check`.

    Any exception inside restores the model.

    Raises:
        HparamsError: the objective needs the logits of the unedited model, which no editor keeps.
        HostError: the editor did not use the new term before a step or at all.
    """
    if objective.needs_reference:
        raise HparamsError(
            f"the objective needs the unedited model's logits, and EasyEdit's {term.method} keeps "
            "none; set frozen_reference to false, or use our own FT or LoRA: "
            "NSE_PLUGIN_HOST=embedded"
        )
    loss, snapshot = TermLoss(objective, term.method), Snapshot(model)
    thread = threading.get_ident()

    def before_step(optimizer: torch.optim.Optimizer, *_arguments: Any) -> None:
        if threading.get_ident() != thread:
            return
        if not loss.since_step:
            raise term.changed("it was about to take a step of its optimizer without the term")
        loss.since_step = 0
        snapshot.remember(optimizer)

    hook = register_optimizer_step_pre_hook(before_step)
    try:
        with term.put(loss, model):
            yield loss
        if not loss.tokens:
            raise term.changed("it finished without having used the term")
    except BaseException:
        snapshot.restore()
        raise
    finally:
        hook.remove()


def with_objective(method: str, objective: TokenObjective) -> Callable[..., tuple[Any, Any]]:
    """EasyEdit's function of an editor of :data:`TERMS` with another loss, with the same
    arguments."""
    term = TERMS[method]

    @functools.wraps(part(term.apply))
    def apply(model: Any, tok: Any, requests: Any, hparams: Any, **options: Any) -> Any:
        function = term.check(hparams, model)
        if options.pop(term.copying, False):  # here, so that the copy's term is replaced
            model = copy.deepcopy(model)
        with replaced(term, model, objective):
            return function(model, tok, requests, hparams, **options)

    return apply


def _transformers_model(model: nn.Module) -> PreTrainedModel | None:
    """The transformers model within adapters and editors."""
    from transformers import PreTrainedModel

    return next((m for m in model.modules() if isinstance(m, PreTrainedModel)), None)


def _names_in(function: Callable[..., Any]) -> tuple[str, ...]:
    """Globals and attributes that a function's body names, under all its decorators."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return code.co_names if code else ()
