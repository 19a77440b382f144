"""NSE rounds against the formulas of the paper, in float64."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from nse_plugin.errors import HparamsError, ModelError, RequestError, StatisticsError
from nse_plugin.hparams.overtone import OTHERWISE
from nse_plugin.locate.keys import Lookups
from nse_plugin.locate.rows import encode_round
from nse_plugin.locate.update import select_by
from nse_plugin.methods import spread
from nse_plugin.methods.bases import BASES
from nse_plugin.methods.nse import edit_round
from nse_plugin.methods.systems import Systems
from nse_plugin.methods.writer import Passes
from nse_plugin.model.prompts import encode_request
from nse_plugin.objectives import nll
from nse_plugin.objectives.overtone import Overtone
from nse_plugin.requests import EditRequest
from nse_plugin.session.session import EditSession
from tests.locate.values import values_of
from tests.methods.brute import check_equal, down_weights, hparams_of, three_rounds
from tests.tiny import (
    bits,
    same_bits,
    some_requests,
    tiny_gemma3_with_vision,
    tiny_hparams,
    tiny_model,
)


def other_keys(model, tokenizer, requests, layers):
    """By layer: keys of all tokens of the bare prompts that are not edited, text by text."""
    layout = EditSession.of(model, tokenizer).layout
    prompts = [encode_request(tokenizer, request) for request in requests]
    texts = {prompt.ids[: i + 1] for prompt in prompts for i in range(prompt.n_prompt)}
    found = {layer: [] for layer in layers}
    hooks = [
        layout.down(layer).register_forward_pre_hook(
            lambda _, args, to=keys: to.append(args[0][0, -1].detach().double())
        )
        for layer, keys in found.items()
    ]
    for text in sorted(texts - {prompt.up_to_subject for prompt in prompts}):
        model(torch.tensor([text]))
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(
    "threshold, rule, other", [(1.0, "cover", 0.0), (0.7, "cover", 0.0), (0.7, "within", 2.0)]
)
def test_three_rounds_equal_the_formula(model, tokenizer, hparams, threshold, rule, other):
    hparams = replace(
        hparams, neuron_threshold=threshold, selection_rule=rule, other_token_weight=other,
        v_num_grad_steps=3,
    )  # fmt: skip
    original, expected = brute_rounds(model, tokenizer, three_rounds(), hparams)
    for requests in three_rounds():
        edit_round(EditSession.of(model, tokenizer), requests, hparams)
    check_equal(original, model, expected, hparams.layers)


@pytest.mark.parametrize("method", ["NSE", "MEMIT"])
def test_other_tokens_of_the_prompts_keep_what_they_give(tokenizer, method, tmp_path):
    moved = {}
    for weight in (0.0, 1000.0):
        model = tiny_model("llama")
        session = EditSession.of(model, tokenizer)
        settings = dict(stats_dir=str(tmp_path), other_token_weight=weight)
        hparams = hparams_of(BASES[method].hparams, **settings)
        requests = some_requests(4)
        others = other_keys(model, tokenizer, requests, hparams.layers)
        record = BASES[method].edit_round(session, requests, hparams)
        first = record.writes[0]
        kept = first.right.untyped_storage().nbytes()
        assert kept == first.right.nbytes, "without the rows of the other tokens"
        delta = first.change(session.layout.d_ff, torch.device("cpu")).double()
        moved[weight] = (delta @ torch.stack(others[first.layer]).T).norm() / delta.norm()
    assert moved[1000.0] < 0.25 * moved[0.0]


def test_the_round_reaches_its_values(model, tokenizer, hparams, device):
    hparams.mom2_update_weight, hparams.alpha = 1e-3, 0.0
    session = EditSession.of(model, tokenizer)
    record = edit_round(session, some_requests(4), hparams)
    for outcome in record.outcomes:
        assert outcome.residual_after < 0.2 * outcome.residual_before
        assert outcome.passes >= 1
        assert outcome.status in ("converged", "residual_left")


def test_every_outcome_is_reported(model, tokenizer, hparams):
    session = EditSession.of(model, tokenizer)
    residuals = [o.residual_before for o in edit_round(session, some_requests(4), hparams).outcomes]
    session.undo_all()
    low, high = sorted(residuals)[0] * 1.001, sorted(residuals)[3] * 0.999
    hparams.alpha, hparams.upper_bound, hparams.max_iterations = low, high, 1
    record = edit_round(session, some_requests(4), hparams)
    within = [i for i, r in enumerate(residuals) if low < r < high]
    assert [o.case_id for o in record.outcomes] == [0, 1, 2, 3]
    assert [o.passes for o in record.outcomes] == [int(i in within) for i in range(4)]
    assert all(list(w.case_ids) == within for w in record.writes) and 0 < len(within) < 4
    for o in record.outcomes:
        assert (o.status == "out_of_bounds") == (o.residual_before >= high)
        enough = o.residual_after <= max(low * o.passes, 0.5 * o.residual_before)
        assert (o.status == "converged") == (enough and o.status != "out_of_bounds")


def test_values_are_kept_where_nothing_that_they_depend_on_differs(
    model, tokenizer, hparams, monkeypatch, device
):
    asked, real = [], spread.compute_values
    monkeypatch.setattr(
        spread, "compute_values", lambda *given, **more: asked.append(given) or real(*given, **more)
    )
    session = EditSession.of(model, tokenizer)

    def edited(objective=nll, **changes):
        record = edit_round(session, some_requests(3), replace(hparams, **changes), objective)
        weights = down_weights(model, hparams.layers)
        session.undo_all()
        return [outcome.z_norm for outcome in record.outcomes], weights

    first = edited()
    session.untouched.keep_values()
    assert edited()[0] == first[0] and len(asked) == 2
    again = edited()
    assert all(map(torch.equal, again[1], first[1])) and len(asked) == 2
    edited(mom2_update_weight=5.0, max_iterations=1)
    assert len(asked) == 2
    for number, change in enumerate(
        (dict(v_lr=0.05), dict(n_contexts=0), dict(layers=[0, 1]), dict(v_num_grad_steps=2))
    ):
        edited(**change)
        assert len(asked) == 3 + number
    other = edited(Overtone(**OTHERWISE))[0]
    assert len(asked) == 7 and other != first[0]
    assert edited(Overtone(**OTHERWISE))[0] == other and len(asked) == 7


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_changes_nothing(model, tokenizer, hparams, side, device):
    tok = copy.deepcopy(tokenizer)
    tok.padding_side = side
    other = copy.deepcopy(model)
    edit_round(EditSession.of(model, tok), some_requests(4), hparams)
    edit_round(EditSession.of(other, tokenizer), some_requests(4), hparams)
    assert tok.padding_side == side
    for a, b in zip(model.parameters(), other.parameters()):
        assert torch.equal(a, b)


def test_bounds_without_a_unit(model, tokenizer, hparams):
    hparams = replace(hparams, mom2_update_weight=None, alpha=0.0, max_iterations=1)
    session = EditSession.of(model, tokenizer)
    lam = 0.25 / session.layout.d_ff

    def written(**changes):
        record = edit_round(session, some_requests(4), replace(hparams, **changes))
        weights = down_weights(model, hparams.layers)
        session.undo_all()
        return record.outcomes, weights

    outcomes, weights = written(mom2_update_weight=0.25)
    assert all(map(torch.equal, written(mom2_update_weight_relative=lam)[1], weights))
    residuals = [o.residual_before for o in outcomes]
    # a first residual is ||delta||, as values rewind to the same weights here
    assert [o.z_shift for o in outcomes] == pytest.approx(residuals, rel=1e-5)
    low, high = Passes(1, 0.0, None, 0.4, 0.3).bounds(
        torch.tensor(residuals), torch.tensor([10 * r for r in residuals])
    )
    assert low.tolist() == pytest.approx([0.4 * r for r in residuals])
    assert high.tolist() == pytest.approx([3 * r for r in residuals])
    for changes, status in (
        (dict(alpha_relative=1.0), "residual_left"),  # no request is written
        (dict(upper_bound_relative=1e-6), "out_of_bounds"),
    ):
        outcomes, _ = written(mom2_update_weight=0.25, **changes)
        assert [(o.status, o.passes) for o in outcomes] == [(status, 0)] * 4


def test_fewer_neurons_than_all_are_written(model, tokenizer, hparams):
    hparams.neuron_threshold = 0.5
    session = EditSession.of(model, tokenizer)
    before = None
    with session.round(hparams.layers):
        before = down_weights(model, hparams.layers)
    record = edit_round(session, some_requests(3), hparams)
    for layer, w0, w in zip(hparams.layers, before, down_weights(model, hparams.layers)):
        written = {int(i) for write in record.writes if write.layer == layer for i in write.neurons}
        changed = ((w - w0).norm(dim=0) > 0).nonzero()[:, 0].tolist()
        assert set(changed) == written and 0 < len(written) < session.layout.d_ff


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_take_an_edit(tokenizer, hparams, dtype):
    for family in ("gpt2", "llama", "gemma2"):
        model = tiny_model(family, dtype=dtype)
        record = edit_round(EditSession.of(model, tokenizer), some_requests(3), hparams)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert all(o.residual_after < 0.3 * o.residual_before for o in record.outcomes)


def test_gemma3_beside_its_vision_tower(tokenizer, hparams):
    model = tiny_gemma3_with_vision()
    before = bits(model)
    record = edit_round(EditSession.of(model, tokenizer), some_requests(3), hparams)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {f"model.language_model.layers.{i}.mlp.down_proj.weight" for i in (1, 2)}
    assert all(o.residual_after < 0.5 * o.residual_before for o in record.outcomes)


def test_an_exception_half_way_leaves_all_as_it_was(model, tokenizer, hparams, monkeypatch, device):
    session = EditSession.of(model, tokenizer)
    edit_round(session, some_requests(2), hparams)
    before = bits(model)
    writes = []
    real_write = session.write

    def failing_write(write):
        writes.append(write.layer)
        if len(writes) == 2:
            raise KeyboardInterrupt
        real_write(write)

    monkeypatch.setattr(session, "write", failing_write)
    with pytest.raises(KeyboardInterrupt):
        edit_round(session, some_requests(4)[2:], hparams)
    assert len(writes) == 2 and len(session.ledger) == 1
    assert same_bits(model, before)


def test_bad_rounds_change_nothing(model, tokenizer, hparams):
    session = EditSession.of(model, tokenizer)
    before = bits(model)
    good = some_requests(1)

    with pytest.raises(RequestError, match="empty"):
        edit_round(session, [], hparams)
    twice = [EditRequest(0, "{} is", "Ann", "a"), EditRequest(1, "{} is", "Ann", "b")]
    with pytest.raises(RequestError, match="0 and 1 .*two targets, 'a' and 'b'"):
        edit_round(session, twice, hparams)
    with pytest.raises(ModelError, match=r"\[7\] do not exist: the model has 4 blocks"):
        edit_round(session, good, tiny_hparams(layers=[1, 7]))
    long = [EditRequest(0, "word " * 60 + "{} is", "Ann", "a")]
    with pytest.raises(RequestError, match="longer than the model's context of 64"):
        edit_round(session, long, hparams)
    with pytest.raises(ModelError, match="ln_f_module is 'model.final'"):
        hparams.ln_f_module = "model.final"
        edit_round(session, good, hparams)
    assert same_bits(model, before)
    assert len(session.ledger) == 0


def test_nan_in_the_weights_is_refused(model, tokenizer, hparams):
    session = EditSession.of(model, tokenizer)
    with torch.no_grad():
        session.layout.down(1).weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"1\.mlp.*weight holds NaN"):
        edit_round(session, some_requests(1), hparams)


def test_nan_elsewhere_in_the_model_is_refused(model, tokenizer, hparams):
    hparams.mom2_adjustment, hparams.n_contexts = False, 0
    session = EditSession.of(model, tokenizer)
    with torch.no_grad():
        session.layout.down(3).weight[0, 0] = float("nan")
    before = down_weights(model, hparams.layers)
    with pytest.raises(ModelError, match=r"values of requests \[0, 1\] are not finite"):
        edit_round(session, some_requests(2), hparams)
    assert all(map(torch.equal, before, down_weights(model, hparams.layers)))


# --- variants and stabilisers -------------------------------------------------------------------

VARIANTS = dict(
    rewind=True, use_previous_keys=True, selection_by="key_mass", value_norm_anchor=False,
    protect_top_directions=0, ridge=None, soft_projection=None,
)  # fmt: skip


def brute_rounds(model, tokenizer, rounds, hparams):
    """Rounds written out in float64, variants too; gives the original and the edited copy.

    Section 1.2-1.4, one layer after the other.
    """
    original, edited = copy.deepcopy(model), copy.deepcopy(model)
    clean, brute = EditSession.of(original, tokenizer), EditSession.of(edited, tokenizer)
    layout, z_layer = brute.layout, hparams.layers[-1]
    contexts, covariances = clean.untouched.contexts(hparams), clean.untouched.covariances(hparams)
    P = {layer: torch.zeros(layout.d_ff, layout.d_ff).double() for layer in hparams.layers}
    for requests in rounds:
        begun = down_weights(edited, hparams.layers)
        source = clean if hparams.rewind else brute  # whose values
        z = values_of(source.layout, tokenizer, requests, contexts, hparams, nll).z
        lookups = Lookups.of(layout, encode_round(layout, tokenizer, requests, contexts), 100_000)
        if hparams.value_norm_anchor:
            h = Lookups.of(
                clean.layout, encode_round(clean.layout, tokenizer, requests, contexts), 100_000
            )
            z = z / z.norm(dim=1, keepdim=True)
            z = z * h.activations(z_layer).norm(dim=1, keepdim=True)
        others = {}
        if hparams.other_token_weight:
            others = other_keys(edited, tokenizer, requests, hparams.layers)
        for _ in range(hparams.max_iterations):
            distance = (z - lookups.activations(z_layer)).norm(dim=1)
            active = (distance > hparams.alpha).nonzero()[:, 0]
            for i, layer in enumerate(hparams.layers if len(active) else ()):
                K = lookups.select(active).keys([layer])[layer].double()
                h = lookups.select(active).activations(z_layer)
                R = (z[active] - h).double().T / (len(hparams.layers) - i)
                A = hparams.mom2_update_weight * covariances[layer].double() + K @ K.T
                A += P[layer] if hparams.use_previous_keys else 0
                for k in others.get(layer, ()):
                    share = hparams.other_token_weight / len(others[layer])
                    A += share * hparams.mom2_update_weight * torch.outer(k, k)
                if share := hparams.ridge:
                    mean = covariances[layer].diagonal().mean().double()
                    A += share * hparams.mom2_update_weight * mean * torch.eye(layout.d_ff).double()
                score = K.abs().sum(dim=1)
                if hparams.selection_by == "update":
                    score = (R @ K.T @ torch.linalg.inv(A)).norm(dim=0)
                I = smallest_cover(score, hparams.neuron_threshold)
                if hparams.selection_rule == "within":
                    I = select_by(score, hparams.neuron_threshold, "within")
                delta = torch.zeros(layout.d_model, layout.d_ff, dtype=torch.float64)
                delta[:, I] = R @ K[I].T @ torch.linalg.inv(A[I][:, I])
                if k := hparams.protect_top_directions:
                    weight = layout.to_weight(clean.layout.down(layer).weight.detach()).double()
                    U, _, Vh = torch.linalg.svd(weight)
                    V_I = Vh[:k, I].T
                    delta -= U[:, :k] @ U[:, :k].T @ delta
                    delta[:, I] -= delta[:, I] @ V_I @ torch.linalg.pinv(V_I)
                if alpha := hparams.soft_projection:
                    weight = begun[i].double()  # not that of this pass
                    eigenvalues, V = torch.linalg.eigh(weight.T @ weight)  # rising
                    below = eigenvalues.flip(0).cumsum(0) < 0.5 * eigenvalues.sum()
                    V_I = V.flip(1)[I, : int(below.sum()) + 1]
                    delta[:, I] -= alpha * delta[:, I] @ V_I @ torch.linalg.pinv(V_I)
                with torch.no_grad():
                    layout.down(layer).weight += layout.to_weight(delta).float()
        for layer, K in lookups.keys(hparams.layers).items():
            P[layer] += K.double() @ K.double().T
    return original, edited


def smallest_cover(score, p):
    """Rising indices of the fewest neurons with a share of at least p; one by one."""
    chosen: list[int] = []
    for neuron in score.argsort(descending=True).tolist():
        if float(score[chosen].sum()) >= p * float(score.sum()) - 1e-12:
            break
        chosen.append(neuron)
    return torch.tensor(sorted(chosen))


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("gpt2", {"rewind": False}),
        ("llama", {"use_previous_keys": False}),
        ("gpt2", {"selection_by": "update", "neuron_threshold": 0.6}),
        ("llama", {"value_norm_anchor": True}),
        ("gpt2", {"value_norm_anchor": True, "rewind": False}),
        ("gpt2", {"protect_top_directions": 5}),
        ("llama", {"protect_top_directions": 5, "neuron_threshold": 0.7}),
        ("gpt2", {"ridge": 0.3}),
        ("llama", {"ridge": 0.3, "neuron_threshold": 0.7}),
        ("llama", {"soft_projection": 0.8, "max_iterations": 2}),
        ("gpt2", {"soft_projection": 0.8, "max_iterations": 2, "neuron_threshold": 0.7}),
    ],
    ids=str,
)
def test_variants_equal_the_formula_and_differ_from_the_method(family, tokenizer, hparams, change):
    model = tiny_model(family)
    hparams = replace(hparams, max_iterations=1, alpha=0.0, v_num_grad_steps=3)
    hparams = replace(hparams, **change)
    plain = replace(hparams, **{name: VARIANTS[name] for name in change if name in VARIANTS})
    rounds = [some_requests(6)[i : i + 2] for i in (0, 2)]
    original, expected = brute_rounds(model, tokenizer, rounds, hparams)
    method = copy.deepcopy(model)
    for requests in rounds:
        edit_round(EditSession.of(model, tokenizer), requests, hparams)
        edit_round(EditSession.of(method, tokenizer), requests, plain)
    weights = [down_weights(m, hparams.layers) for m in (original, model, expected, method)]
    for w0, w, want, other in zip(*weights):
        assert (w - want).norm() < 1e-3 * (want - w0).norm()
        assert (w - other).norm() > 1e-2 * (other - w0).norm()
    session = EditSession.of(model)
    session.undo_all()
    assert same_bits(model, original)


def test_switched_off_by_default():
    hparams = tiny_hparams()
    assert {name: getattr(hparams, name) for name in VARIANTS} == VARIANTS


def test_protected_directions_are_untouched(model, tokenizer, hparams):
    hparams.protect_top_directions = 0.5  # of the squared singular values
    session = EditSession.of(model, tokenizer)
    before = down_weights(model, hparams.layers)
    edit_round(session, some_requests(3), hparams)
    for w0, w in zip(before, down_weights(model, hparams.layers)):
        U, S, Vh = torch.linalg.svd(w0.double())
        share = S.square().cumsum(dim=0) / S.square().sum()
        k = int((share < 0.5).sum()) + 1
        change = (w - w0).double()
        assert 1 < k < len(S) and change.norm() > 0
        assert (U[:, :k].T @ change).norm() < 1e-5 * change.norm()
        assert (change @ Vh[:k].T).norm() < 1e-5 * change.norm()
        assert change.norm() > 0


@pytest.mark.parametrize("change", [
    {"protect_top_directions": 32}, {"protect_top_directions": 20, "neuron_threshold": 0.3},
])  # fmt: skip
def test_protecting_every_direction_is_refused(model, tokenizer, hparams, change):
    """Nothing would be written."""
    session, before = EditSession.of(model, tokenizer), bits(model)
    with pytest.raises(HparamsError, match="protect_top_directions .* nothing would be written"):
        edit_round(session, some_requests(1), replace(hparams, **change))
    assert same_bits(model, before)


def test_anchored_values_have_the_original_norm(model, tokenizer, hparams):
    hparams.value_norm_anchor = True
    session = EditSession.of(model, tokenizer)
    for requests in (some_requests(2), some_requests(4)[2:]):
        with session.weights.rewound():
            lookups = Lookups.of(
                session.layout, encode_round(session.layout, tokenizer, requests, []), 4096
            )
            norms = lookups.activations(2).norm(dim=1).tolist()
        record = edit_round(session, requests, hparams)
        assert [o.z_norm for o in record.outcomes] == pytest.approx(norms, rel=1e-5)


def test_a_ridge_is_solved_alike_with_few_keys_and_with_many(model, tokenizer, hparams):
    """Few keys and all neurons: C is factored once; otherwise the whole system is."""
    session = EditSession.of(model, tokenizer)
    d_ff = session.layout.d_ff
    systems = Systems(session, hparams, False, ridge=0.3)
    K = torch.randn(d_ff, 3, generator=torch.Generator().manual_seed(0))
    C = session.untouched.covariances(hparams)[1].double()
    A = hparams.mom2_update_weight * (C + 0.3 * C.diagonal().mean() * torch.eye(d_ff).double())
    for keys in (K, torch.cat([K, torch.zeros(d_ff, d_ff)], dim=1)):
        want = K.double().T @ torch.linalg.inv(A + K.double() @ K.double().T)
        got = systems.right(1, keys, torch.arange(d_ff))[:3].double()
        assert (got - want).norm() < 1e-5 * want.norm()


def test_a_ridge_without_a_covariance_is_refused(hparams):
    with pytest.raises(HparamsError, match=r"ridge is 0\.1, .* mom2_adjustment is false"):
        replace(hparams, ridge=0.1, mom2_adjustment=False)


def test_a_broken_number_of_directions_is_refused(hparams):
    with pytest.raises(HparamsError, match="protect_top_directions is 2.5"):
        replace(hparams, protect_top_directions=2.5)


def test_settings_of_another_model_are_refused_by_name(model, tokenizer, hparams):
    session = EditSession.of(model, tokenizer)
    beyond = replace(hparams, v_loss_layer=47)
    with pytest.raises(ModelError, match=r"^v_loss_layer is 47, .* numbered 0 to 3; give 3"):
        edit_round(session, some_requests(1), beyond)
    invented = replace(hparams, mom2_adjustment=True, mom2_dataset="atlas")
    with pytest.raises(StatisticsError, match=r"mom2_dataset is 'atlas'.*wikipedia, factbook"):
        edit_round(session, some_requests(1), invented)
    assert not len(session.ledger)
