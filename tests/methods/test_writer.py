"""The passes of a round read what plain forward passes read, and run no block more than needed."""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from nse_plugin.locate.keys import Lookups
from nse_plugin.locate.rows import encode_round
from nse_plugin.locate.values import Values
from nse_plugin.methods.bookkeeping import Clock
from nse_plugin.methods.writer import ONE_PASS, Passes, Writer
from nse_plugin.model.layout import first_tensor
from nse_plugin.model.partial_pass import can_begin_at
from nse_plugin.model.residual_path import path_of
from nse_plugin.session.norms import Factors
from nse_plugin.session.session import EditSession
from tests.tiny import some_requests, tiny_model, tiny_tokenizer

CONTEXTS = ("The river is closed. ", "I think that you. ")
MODELS = [
    ("llama", [2, 3, 4]),
    ("gpt2", [2, 3, 4]),
    ("gptj", [1, 3]),  # its blocks return tuples
    ("llama", [0, 1, 2]),
    ("llama", [3]),
]

six_blocks = functools.partial(tiny_model, num_hidden_layers=6)


def bridged(model):
    """Have block 3 add what the MLP of block 1 has given, past the blocks in between."""
    blocks, left = EditSession.of(model, tiny_tokenizer()).layout.blocks, {}
    blocks[1].mlp.register_forward_hook(lambda _module, _args, output: left.update(given=output))
    blocks[3].register_forward_pre_hook(
        lambda _module, args: (args[0] + left.pop("given"), *args[1:])
    )
    return model


def plainly(layout, rows, layers):
    """Keys of one request by layer [d_ff], and h [d_model], from whole passes over single rows."""
    keys = {layer: [] for layer in layers}
    h = []

    def see_h(_module, _args, output):
        h.append(first_tensor(output)[0, -1])

    def see_key(layer):
        return lambda _module, args: keys[layer].append(args[0].reshape(-1, layout.d_ff)[-1])

    hooks = [layout.down(layer).register_forward_pre_hook(see_key(layer)) for layer in layers]
    hooks.append(layout.blocks[layers[-1]].register_forward_hook(see_h))
    with torch.no_grad():
        for prompt in rows.rewriting:
            layout.model(input_ids=torch.tensor([prompt.ids[: prompt.subject_last + 1]]))
    for hook in hooks:
        hook.remove()
    mean = {layer: k[0] / 2 + torch.stack(k[1:]).mean(dim=0) / 2 for layer, k in keys.items()}
    return mean, h[0]


class Round:
    """A round whose solve moves the weights a lot, and notes what it is given."""

    def __init__(self, model, tokenizer, layers):
        self.model, self.session = model, EditSession.of(model, tokenizer)
        self.layout, self.layers = self.session.layout, layers
        self.rows = encode_round(self.layout, tokenizer, some_requests(4), CONTEXTS)
        self.solved = []
        with self.session.round(layers):
            lookups = Lookups.of(self.layout, self.rows, 60)  # a few micro-batches
            h = lookups.activations(layers[-1])
        drawn = torch.randn(h.shape, generator=torch.Generator().manual_seed(0))
        z = h + drawn * h.norm(dim=1, keepdim=True) / math.sqrt(h.shape[1])
        self.values = Values(z, h, torch.zeros(4), torch.zeros(4, dtype=torch.long))
        self.lookups = lookups

    def writer(self, solve, allowed=ONE_PASS, weights=(1.0, 1.0, 1.0, 1.0)):
        first, z_layer = self.layers[0], self.layers[-1]
        start = self.lookups.read([first], h_of=z_layer, keep=first)
        return Writer(
            self.session, some_requests(4), self.layers, start, self.values, solve, allowed,
            Clock(), {}, torch.tensor(weights),
        )  # fmt: skip

    def write(self, layer, keys, residual):
        right = keys.T[: residual.shape[1]] / keys.square().sum()
        return Factors(torch.arange(self.layout.d_ff), residual, right)

    def wrongly(self, layer, keys, residual):
        return self.write(layer, keys, -5 * residual)

    def compare(self, layer, keys, residual):
        self.solved.append((layer, keys, residual, *self.now()))
        return self.write(layer, keys, residual)

    def now(self):
        found = [plainly(self.layout, rows, self.layers) for rows in self.rows]
        keys = {layer: torch.stack([k[layer] for k, _ in found], dim=1) for layer in self.layers}
        return keys, torch.stack([h for _, h in found])

    def check_pass(self, order, some):
        """What the solves of a pass were given, for its requests in their order."""
        for step, (layer, keys, residual, plain, h) in enumerate(self.solved):
            assert layer == self.layers[step]
            close(keys, plain[layer][:, order])
            left = self.values.z[some] - h[some]
            close(residual, left.T / (len(self.layers) - step))
        self.solved.clear()

    def check_end(self, writer):
        plain, h = self.now()
        for layer, keys in writer.keys().items():
            close(keys, plain[layer])
        close(writer.after, (self.values.z - h).norm(dim=1))


def close(got, expected):
    assert (got - expected).norm() < 3e-6 * expected.norm()


@pytest.mark.parametrize(("family", "layers"), MODELS)
def test_what_is_read_between_writes_equals_plain_passes(family, layers, tokenizer):
    one = Round(six_blocks(family), tokenizer, layers)
    assert all(can_begin_at(one.layout, layer, 5) for layer in layers if layer)
    check_all_passes(one)
    assert not any("forward" in vars(block) for block in one.layout.blocks)


def test_a_model_in_which_no_pass_can_begin_half_way_is_read_by_whole_passes(tokenizer):
    one = Round(bridged(six_blocks("llama")), tokenizer, [2, 3, 4])
    assert [can_begin_at(one.layout, block, 5) for block in (1, 2, 3)] == [True, False, False]
    check_all_passes(one)


def check_all_passes(one):
    writer = one.writer(one.compare)
    writer.run()
    one.check_pass([0, 1, 2, 3], [0, 1, 2, 3])
    one.check_end(writer)
    writer.rewrite(torch.tensor([1, 3]), one.values[torch.tensor([1, 3])])
    one.check_pass([1, 3, 0, 2], [1, 3])
    one.check_end(writer)
    writer._write(torch.tensor([2]))  # the others are not read
    one.check_pass([2], [2])
    one.check_end(writer)


def test_weights_count_where_requests_are_written_again(tokenizer):
    """In a solve, a weight of 4 is as good as four copies of the request."""
    one = Round(six_blocks("llama"), tokenizer, [2, 3, 4])
    writer = one.writer(one.compare, weights=(1.0, 4.0, 9.0, 1.0))
    writer.run()
    one.check_pass([0, 1, 2, 3], [0, 1, 2, 3])
    writer.rewrite(torch.tensor([1, 3]), one.values[torch.tensor([1, 3])])
    layer, keys, residual, plain, h = one.solved[0]
    left = (one.values.z[[1, 3]] - h[[1, 3]]).T / len(one.layers)
    copies, spared = [1, 1, 1, 1, 3], plain[layer][:, [0, 2]]
    k = plain[layer][:, copies]
    close(keys @ keys.T, k @ k.T + spared @ spared.T)
    close(residual @ keys[:, :2].T, left[:, [0, 0, 0, 0, 1]] @ k.T)


def test_key_mass_is_a_share_of_sums_of_absolute_keys(tokenizer):
    """Of the requests that are written, without their weights and without what is preserved."""
    one, neurons = Round(six_blocks("llama"), tokenizer, [2, 3]), torch.arange(0, 48, 3)

    def of_some(layer, keys, residual):
        right = one.compare(layer, keys, residual).right
        return Factors(neurons, residual, right[:, neurons])

    writer = one.writer(of_some, weights=(1.0, 4.0, 9.0, 1.0))
    writer.run()
    writer.rewrite(torch.tensor([1, 3]), one.values[torch.tensor([1, 3])])
    written = [[0, 1, 2, 3]] * 2 + [[1, 3]] * 2
    for write, some, (layer, *_, plain, _h) in zip(writer.writes, written, one.solved, strict=True):
        mass = plain[layer][:, some].abs().sum(dim=1)
        assert write.key_mass == pytest.approx(float(mass[neurons].sum() / mass.sum()), rel=1e-5)


@pytest.mark.parametrize(("most", "status"), [(1, "residual_left"), (2, "out_of_bounds")])
def test_out_of_bounds_is_what_a_pass_left_out(most, status, tokenizer):
    """Not what the last pass wrote, though its residual grew beyond the bound."""
    one = Round(six_blocks("llama"), tokenizer, [2, 3])
    bound = 1.01 * float(one.writer(one.write).before.max())
    writer = one.writer(one.wrongly, Passes(most, upper_bound=bound))
    writer.run()
    assert bool((writer.after > bound).all()) and writer.passes.tolist() == [1] * 4
    assert writer.progress().status == (status,) * 4
    rows = torch.tensor([2])
    near = replace(one.values[rows], z=writer.h[rows] + 0.9 * bound / math.sqrt(32))
    assert writer.rewrite(rows, near).tolist() == [2]
    assert writer.progress().status[2] == "residual_left"


def test_a_fact_that_the_model_knew_has_converged(tokenizer):
    """Its first residual is nothing, and half of nothing is not reached."""
    a_round = Round(tiny_model("llama"), tokenizer, [1, 2])
    writer = a_round.writer(a_round.write)
    writer.first = torch.tensor([0.0, 0.0, 1.0, 1.0])
    h = a_round.values.base.norm(dim=1)
    writer.after = torch.tensor([0.005 * h[0], 0.02 * h[1], 0.5, 0.9])
    assert writer.progress().status == ("converged", "residual_left", "converged", "residual_left")


def test_what_was_never_written_stays_out_of_bounds_where_other_writes_move_it(tokenizer):
    one = Round(six_blocks("llama"), tokenizer, [2, 3])
    before = one.writer(one.write).before
    farthest = int(before.argmax())
    writer = one.writer(one.write, Passes(1, upper_bound=0.999 * float(before.max())))
    writer.run()
    writer.after = writer.after / 3
    progress = writer.progress()
    assert [passes == 0 for passes in progress.passes.tolist()] == [i == farthest for i in range(4)]
    assert [i for i, s in enumerate(progress.status) if s == "out_of_bounds"] == [farthest]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_block_runs_anew_only_if_what_goes_into_it_may_have_changed(family, tokenizer):
    one = Round(six_blocks(family), tokenizer, [2, 3, 4])
    for layer in one.layers:
        assert can_begin_at(one.layout, layer, 5) and path_of(one.layout, layer)
    rows = Counter()
    for number, block in enumerate(one.layout.blocks):

        def see(_module, args, kwargs, number=number):
            rows[number] += len(args[0] if args else kwargs["hidden_states"])

        attention = block.get_submodule(one.layout.family.attn)
        attention.register_forward_pre_hook(see, with_kwargs=True)
    n, m = 4, 8  # bare prompts, and prompts in context
    writer = one.writer(one.write)
    assert rows == {0: n + m, 1: n + m, 2: n + m, 3: n, 4: n}
    rows.clear()
    writer.run()
    assert rows == {2: n + m, 3: 2 * n + 2 * m, 4: 3 * n + m}
    rows.clear()
    writer.keys()
    assert not rows
    writer.rewrite(torch.tensor([1]), one.values[torch.tensor([1])])  # the others are spared
    assert rows == {2: n + m, 3: 2 * n + 2 * m, 4: 2 * n + 1 + m}
