"""DP-SGD: right gradients, noise as stated, the steps accounted for, and an audit that minds."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from scipy import stats
from torch import nn

from recipes import cards, data
from recipes.dp_sgd import (
    Attack,
    Config,
    Ledger,
    Parts,
    Settings,
    Trainer,
    audit,
    budget,
    chapters_epsilon,
    check_network,
    clipped_sum,
    epsilon,
    lesson,
    many_runs,
    networks,
    noise_for,
    one_run,
    original,
    planted,
    report,
    run,
    scattering,
    tradeoff,
    training,
)
from recipes.dp_sgd.accounting import first_that_holds, rounded_up
from recipes.dp_sgd.gradients import cross_entropy
from recipes.dp_sgd.sampling import Sampler

CHANCE = 1e-6
"""How often a statistical test may fail by chance, each."""


def one_by_one(network, inputs, labels, clip):
    """The slow twin: one backward pass an example."""
    sums = [torch.zeros_like(p) for p in network.parameters() if p.requires_grad]
    norms = []
    for x, y in zip(inputs, labels, strict=True):
        network.zero_grad()
        cross_entropy(network(x[None]), y[None]).sum().backward()
        gradients = [p.grad for p in network.parameters() if p.requires_grad]
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        norms.append(norm)
        for total, gradient in zip(sums, gradients, strict=True):
            total += gradient * min(1.0, clip / norm)
    return sums, torch.tensor(norms, dtype=inputs.dtype)


def small_network(seed, **convolution):
    torch.manual_seed(seed)
    options = {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1, "bias": True} | convolution
    return nn.Sequential(
        *(nn.Conv2d(2, 3, **options), nn.ReLU(inplace=True), nn.MaxPool2d(2, 1)),
        *(nn.Conv2d(3, 4, 2, bias=options["bias"]), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        *(nn.Linear(16, 5, bias=options["bias"]), nn.ReLU(inplace=True), nn.Linear(5, 3)),
    ).double()


def a_batch(seed, size=6, shape=(2, 9, 8)):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, *shape, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, 3, (size,), generator=generator)


# ---- gradients


@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 7),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.sampled_from([0, 1, (1, 0), "valid"]),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    clip=st.floats(1e-3, 10),
    chunk=st.sampled_from([None, 1, 4]),
)
@settings(max_examples=40, deadline=None)
def test_all_engines_give_the_gradients_of_single_examples(
    seed, size, kernel, stride, padding, dilation, bias, clip, chunk
):
    network = small_network(
        seed, kernel_size=kernel, stride=stride, padding=padding, dilation=dilation, bias=bias
    )
    try:
        inputs, labels = a_batch(seed, size)
        network(inputs)
    except RuntimeError:
        return  # the picture is too small for such a kernel
    sums, norms = one_by_one(network, inputs, labels, clip)
    for engine in ("fast", "vmap"):
        found = clipped_sum(network, inputs, labels, clip, engine=engine, chunk=chunk)
        torch.testing.assert_close(found.norms, norms, rtol=1e-9, atol=1e-12)
        for one, other in zip(found.gradients, sums, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.losses, cross_entropy(network(inputs), labels).detach())


def test_without_a_clip_the_sum_is_the_gradient_of_the_sum():
    network, (inputs, labels) = small_network(0), a_batch(1)
    cross_entropy(network(inputs), labels).sum().backward()
    for found, p in zip(
        clipped_sum(network, inputs, labels, math.inf).gradients, network.parameters(), strict=True
    ):
        torch.testing.assert_close(found, p.grad)


def test_each_gradient_is_clipped_to_at_most_the_clip():
    network, (inputs, labels) = small_network(0), a_batch(1, 20)
    norms = clipped_sum(network, inputs, labels, 1.0).norms
    clip = float(norms.median())
    for x, y in zip(inputs, labels, strict=True):
        alone = clipped_sum(network, x[None], y[None], clip)
        length = math.sqrt(sum(float(g.square().sum()) for g in alone.gradients))
        assert length == pytest.approx(min(clip, float(alone.norms[0])), rel=1e-9)


def test_sequences_and_frozen_layers():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Flatten(), nn.Linear(15, 3)
    ).double()
    network[0].requires_grad_(False)
    inputs, labels = a_batch(0, 5, (3, 4))
    sums, norms = one_by_one(network, inputs, labels, 0.3)
    found = clipped_sum(network, inputs, labels, 0.3)
    torch.testing.assert_close(found.norms, norms)
    for one, other in zip(found.gradients, sums, strict=True):
        torch.testing.assert_close(one, other)
    assert all(p.requires_grad == (i > 1) for i, p in enumerate(network.parameters()))


def test_an_empty_batch_has_no_gradient():
    network, (inputs, labels) = small_network(0), a_batch(1)
    for engine in ("fast", "vmap"):
        found = clipped_sum(network, inputs[:0], labels[:0], 1.0, engine=engine)
        assert all(
            not g.any() and g.shape == p.shape
            for g, p in zip(found.gradients, network.parameters(), strict=True)
        )
        assert len(found.norms) == 0


class Shared(nn.Module):
    """One layer used twice."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.layer(torch.tanh(self.layer(x))))


class Behind(nn.Module):
    """A weight that is used behind its layer's back as well."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) + 2 * nn.functional.linear(x, self.layer.weight)


class InPlace(nn.Module):
    """An output that is overwritten."""

    def __init__(self, first):
        super().__init__()
        self.first, self.layer, self.last = first, nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.layer(self.first(x)).relu_())


class Mixing(nn.Module):
    """An example's output depends on the others, without a layer that says so."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x - x.mean(0))


class Tokens(nn.Module):
    """Examples are spread over the first axis, so that a row is less than an example."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x):
        return self.layer(x.reshape(-1, 2)).view(len(x), -1, 3).mean(1)


class Small(Behind):
    """The same with gradients too short for an absolute tolerance."""

    def forward(self, x):
        return 1e-6 * super().forward(x)


class MixingInTraining(nn.Module):
    """Batch normalisation under another name: it is not to be seen in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x - x.mean(0) if self.training else x)


class Remembering(nn.Module):
    """A buffer that keeps what the network sees."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(4, dtype=torch.float64))

    def forward(self, x):
        if self.training:
            self.seen = 0.9 * self.seen + 0.1 * x.detach()[0]
        return self.layer(x)


class Unused(nn.Module):
    """A layer that is worked out and not used."""

    def __init__(self):
        super().__init__()
        self.layer, self.other = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        self.other(x)
        return self.layer(x)


@pytest.mark.parametrize(
    ("network", "engine", "says"),
    [
        (Tokens(), "fast", "along the first axis"),
        (Small(), "fast", "are wrong"),
        (MixingInTraining(), "fast", "depends on the other examples"),
        (Remembering(), "fast", "seen changes with what"),
        (Remembering(), "vmap", "seen changes with what"),
        (Unused(), "fast", "no part in the loss"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), "fast", "vmap"),
        (nn.utils.weight_norm(nn.Linear(4, 3)), "fast", "made of others"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), "fast", "GroupNorm"),
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), "vmap", "GroupNorm"),
        (nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4), nn.Linear(4, 3)), "fast", "vmap"),
        (Shared(), "fast", "used once"),
        (Behind(), "fast", "are wrong"),
        (InPlace(nn.Linear(4, 4)), "fast", "in place"),
        (InPlace(nn.Identity()), "fast", "in place"),
        (Mixing(), "fast", "depends on the other examples"),
        (Mixing(), "vmap", "depends on the other examples"),
        (nn.Flatten(), "fast", "no parameter"),
    ],
)
def test_a_network_that_is_none_for_dp_sgd_is_refused(network, engine, says):
    inputs, labels = a_batch(0, 5, (4,))
    with pytest.raises(ValueError, match=says):
        check_network(network.double().train(), inputs, labels, engine)


def test_half_precision_is_refused():
    inputs, labels = a_batch(0, 5, (4,))
    with pytest.raises(ValueError, match="float32 or float64"):
        check_network(nn.Linear(4, 3).half(), inputs.half(), labels)


@pytest.mark.parametrize(
    "network", [Shared(), Behind(), nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4), nn.Linear(4, 3))]
)
def test_vmap_knows_what_the_fast_engine_does_not(network):
    network.double()
    inputs, labels = a_batch(0, 5, (4,))
    check_network(network, inputs, labels, "vmap")
    sums, _ = one_by_one(network, inputs, labels, 0.5)
    for one, other in zip(
        clipped_sum(network, inputs, labels, 0.5, engine="vmap").gradients, sums, strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "options", [{"groups": 2}, {"padding": "same"}, {"padding": 1, "padding_mode": "circular"}]
)
def test_convolutions_that_the_fast_engine_does_not_know_are_named(options):
    network = nn.Sequential(nn.Conv2d(2, 2, 3, **options), nn.Flatten(), nn.LazyLinear(3)).double()
    inputs, labels = a_batch(0)
    network(inputs)
    with pytest.raises(ValueError, match=r"groups=.*vmap"):
        clipped_sum(network, inputs, labels, 1.0)


def test_the_fast_engine_leaves_the_network_as_it_was():
    network, (inputs, labels) = small_network(0), a_batch(1)
    before = [p.detach().clone() for p in network.parameters()]
    clipped_sum(network, inputs, labels, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert network[1].inplace
    assert not any(m._forward_hooks for m in network.modules())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_stops_training(bad):
    network, (inputs, labels) = small_network(0), a_batch(1)
    inputs[3, 0, 0, 0] = bad
    for engine in ("fast", "vmap"):
        with pytest.raises(ValueError, match=r"not finite.*learning rate"):
            clipped_sum(network, inputs, labels, 1.0, engine=engine)


# ---- beside the libraries


@pytest.fixture(scope="module")
def some_digits():
    """Weights and 50 stand-in digits, for one step on each library."""
    digits = data.load("mnist", "embedded").train
    return networks.initial_weights(3), digits.images[:50], digits.labels[:50]


def one_step(weights, images, labels, clip, engine="fast"):
    """The network's weights after one step of size 1 without noise, in Keras' layout."""
    network = networks.chapter(weights)
    found = clipped_sum(network, networks.images(images), networks.labels(labels), clip, engine=engine)
    with torch.no_grad():
        for p, gradient in zip(network.parameters(), found.gradients, strict=True):
            p -= gradient / len(images)
    assert (found.norms > clip).any()  # the clip does something
    return networks.keras_weights(network)


def test_one_step_without_noise_is_tensorflow_privacys(some_digits):
    weights, images, labels = some_digits
    theirs = original.train(
        weights,
        images,
        labels,
        steps=1,
        batch=50,
        microbatches=50,
        clip=2.0,
        noise_multiplier=0.0,
        learning_rate=1.0,
    )
    for ours, other in zip(one_step(weights, images, labels, 2.0), theirs, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-5)


@pytest.mark.parametrize("mode", ["hooks", "ew", "ghost"])
def test_one_step_without_noise_is_opacus(some_digits, mode):
    from opacus import PrivacyEngine

    # Opacus 1.6 gets convolutions wrong where channels come last, but for "ew"
    weights, images, labels = some_digits
    network = networks.chapter(weights).to(memory_format=torch.contiguous_format)
    inputs, targets = (
        networks.images(images).clone(memory_format=torch.contiguous_format),
        networks.labels(labels),
    )
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), batch_size=50)
    criterion = nn.CrossEntropyLoss()
    private = PrivacyEngine().make_private(
        module=network,
        optimizer=torch.optim.SGD(network.parameters(), 1.0),
        data_loader=loader,
        noise_multiplier=0.0,
        max_grad_norm=2.0,
        poisson_sampling=False,
        criterion=criterion,
        grad_sample_mode=mode,
    )
    wrapped, optimizer = private[0], private[1]
    criterion = private[2] if mode == "ghost" else criterion
    criterion(wrapped(inputs), targets).backward()
    optimizer.step()
    for ours, other in zip(
        one_step(weights, images, labels, 2.0), networks.keras_weights(network), strict=True
    ):
        np.testing.assert_allclose(ours, other, atol=1e-5)


def test_the_layouts_of_keras_and_pytorch_are_each_others_inverse():
    weights = networks.initial_weights(1)
    assert sum(w.size for w in weights) == 26_010
    for there, back in zip(weights, networks.keras_weights(networks.chapter(weights)), strict=True):
        np.testing.assert_array_equal(there, back)


# ---- noise and batches


def test_noise_has_the_mean_and_covariance_that_are_stated():
    network, (inputs, labels) = nn.Linear(4, 3).double(), a_batch(0, 8, (4,))
    how = Settings(steps=8_000, batch=8, clip=0.5, noise_multiplier=1.7, learning_rate=1e-12, seed=1)
    trainer = Trainer(network, inputs, labels, how)
    exact = torch.cat([g.flatten() for g in clipped_sum(network, inputs, labels, 0.5).gradients])
    trainer.sampler = iter(lambda: torch.arange(8), None)  # the same batch each time
    seen = torch.stack([torch.cat([g.flatten() for g in step.noisy]) for step in trainer.remaining()])
    white = ((seen - exact) / (1.7 * 0.5)).numpy()
    steps, size = white.shape
    z = white.mean(0) * math.sqrt(steps)
    assert stats.chi2.sf(float(z @ z), size) > CHANCE
    covariance = white.T @ white / steps
    spread = np.where(np.eye(size, dtype=bool), 2.0, 1.0)  # of each entry, times the steps
    z = (covariance - np.eye(size)) * np.sqrt(steps / spread)
    assert np.abs(z).max() < stats.norm.isf(CHANCE / size**2)
    percentile = stats.chi2(white.size).cdf(np.square(white).sum())  # sees 2 % too much variance
    assert CHANCE < percentile < 1 - CHANCE
    assert stats.kstest(white.ravel()[:: size + 1], "norm").pvalue > CHANCE


def test_poisson_batches_are_independent_draws():
    sampler = Sampler(40, 10, "poisson", torch.Generator().manual_seed(0))
    there = np.zeros((20_000, 40), dtype=int)
    for row in there:
        row[next(sampler).numpy()] = 1
    sizes = np.bincount(there.sum(1), minlength=41)
    expected = stats.binom.pmf(np.arange(41), 40, 0.25) * len(there)
    kept = expected > 5
    assert (
        stats.chisquare(
            np.append(sizes[kept], sizes[~kept].sum()), np.append(expected[kept], expected[~kept].sum())
        ).pvalue
        > CHANCE
    )
    assert stats.chisquare(there.sum(0), np.full(40, there.sum() / 40)).pvalue > CHANCE
    correlations = np.corrcoef(there.T)[np.triu_indices(40, 1)] * math.sqrt(len(there))
    assert np.abs(correlations).max() < stats.norm.isf(CHANCE / 1600)
    assert abs(np.corrcoef(there[1:, 0], there[:-1, 0])[0, 1]) * math.sqrt(len(there)) < stats.norm.isf(
        CHANCE
    )


def test_shuffled_batches_have_every_example_once_an_epoch():
    sampler = Sampler(23, 5, "shuffle", torch.Generator().manual_seed(0))
    epochs = [torch.cat([next(sampler) for _ in range(4)]) for _ in range(30)]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch.tolist())) == 20
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 30


@pytest.mark.parametrize("batch", [0, 24])
def test_a_batch_that_cannot_be_drawn_is_refused(batch):
    with pytest.raises(ValueError, match="from 1 to the 23"):
        Sampler(23, batch, "poisson", torch.Generator())


# ---- accounting

Q = 250 / 60_000


@pytest.mark.parametrize(
    ("steps", "rdp", "pld"), [(240, 0.731, 0.302), (3600, 1.266, 1.118), (14_400, 2.562, 2.350)]
)
def test_epsilon_at_the_reference_points(steps, rdp, pld):
    assert epsilon(Q, 1.1, steps, 1e-5, "rdp") == pytest.approx(rdp, abs=6e-4)
    assert epsilon(Q, 1.1, steps, 1e-5) == pytest.approx(pld, abs=6e-4)


@pytest.mark.parametrize(("epochs", "printed"), [(1, 1.0245), (15, 1.578), (60, 2.970)])
def test_what_the_chapters_accountant_printed_is_explained(epochs, printed):
    assert chapters_epsilon(240 * epochs) == pytest.approx(printed, abs=5e-4)


@given(noise=st.floats(0.5, 5), steps=st.integers(1, 20), exponent=st.integers(-8, -2))
@settings(max_examples=15, deadline=None)
def test_without_sampling_epsilon_is_that_of_one_gaussian(noise, steps, exponent):
    # Balle and Wang, 2018, theorem 8: delta of a Gaussian with sensitivity mu at a given epsilon
    delta, mu = 10.0**exponent, math.sqrt(steps) / noise
    found = epsilon(1.0, noise, steps, delta)
    exact = stats.norm.cdf(mu / 2 - found / mu) - math.exp(found) * stats.norm.cdf(-mu / 2 - found / mu)
    assert exact <= delta * (1 + 1e-6)  # never below the truth …
    lower = found - max(2e-3, 2e-3 * found)
    if lower > 0:  # … and close to it
        at = stats.norm.cdf(mu / 2 - lower / mu) - math.exp(lower) * stats.norm.cdf(-mu / 2 - lower / mu)
        assert at > delta


def test_a_shuffled_epoch_is_bounded_from_both_sides():
    low, high = Ledger(1.1, 250, 60_000, "shuffle", 240).shuffle_bounds(1e-5)
    assert low == pytest.approx(2.97, abs=0.005)
    assert high == pytest.approx(3.92, abs=0.005)
    assert Ledger(1.1, 250, 60_000, "shuffle", 240).epsilon(1e-5) == high
    more = Ledger(1.1, 250, 60_000, "shuffle", 241).shuffle_bounds(1e-5)
    assert more[1] > high  # a second epoch has begun


@pytest.mark.parametrize("steps", [10, 4])
def test_the_lower_bound_of_shuffling_is_what_sampling_it_shows(steps):
    # ten batches, one of them 2 above the others, or 1; all or some are seen: is one above a threshold?
    random, noise, delta, trials = np.random.default_rng(0), 1.0, 0.02, 1_000_000
    low = Ledger(noise, 1, 10, "shuffle", steps).shuffle_bounds(delta)[0]
    others = [random.normal(0, noise, (trials, steps - 1)).max(1) for _ in range(2)]
    mine = [
        random.normal(0, noise, trials) + shift * (random.random(trials) < steps / 10) for shift in (2, 1)
    ]
    highest = [np.maximum(a, b) for a, b in zip(others, mine, strict=True)]
    found = 0.0
    for threshold in np.linspace(1, 6, 51):
        there, gone = (np.mean(values > threshold) for values in highest)
        if gone * trials > 1000 and there > delta:
            found = max(found, math.log((there - delta) / gone))
    assert low == pytest.approx(found, rel=0.05)


def test_the_lower_bound_of_shuffling_keeps_below_what_is_proven_and_never_falls():
    # one batch, drawn without replacement (Balle, Barthe and Gaboardi, 2018): epsilon' = log(1 + q (e^epsilon
    # - 1)) and delta' = q delta, where another example takes the place of the one: twice the sensitivity
    once = epsilon(1.0, 1.1 / 2, 1, 1e-5 / Q)
    lows = [
        Ledger(1.1, 250, 60_000, "shuffle", steps).shuffle_bounds(1e-5)[0] for steps in (1, 2, 10, 60, 240)
    ]
    assert lows[0] <= math.log1p(Q * math.expm1(once))
    assert lows == sorted(lows)
    assert Ledger(1.1, 8192, 60_000, "shuffle", 7).shuffle_bounds(1e-5)[0] < lows[-1] + 1


@pytest.mark.parametrize("grouped", [False, True])
def test_bounds_are_those_of_tensorflow_privacys_statement(grouped):
    from tensorflow_privacy import compute_dp_sgd_privacy_statement

    said = compute_dp_sgd_privacy_statement(60_000, 250, 3, 1.1, 1e-5, used_microbatching=grouped)
    once, poisson = (float(line.split(":")[1]) for line in said.splitlines() if "Epsilon" in line)
    noise = 1.1 / (2 if grouped else 1)  # as the recipe accounts for groups of examples
    assert Ledger(noise, 250, 60_000, "shuffle", 720).epsilon(1e-5, "rdp") == pytest.approx(once, abs=6e-4)
    assert Ledger(noise, 250, 60_000, "poisson", 720).epsilon(1e-5, "rdp") == pytest.approx(poisson, abs=6e-4)


def test_budgets_add_up():
    half, whole = Ledger(1.1, 250, 60_000, steps=120), Ledger(1.1, 250, 60_000, steps=240)
    for accountant in ("rdp", "pld"):
        together = budget([half, half], 1e-5, accountant)
        assert together == pytest.approx(whole.epsilon(1e-5, accountant), rel=1e-3)
        assert together > half.epsilon(1e-5, accountant)
    assert budget([], 1e-5) == budget([Ledger(1.1, 250, 60_000)], 1e-5) == 0
    assert budget([half, Ledger(0.0, 250, 60_000, steps=1)], 1e-5) == math.inf
    with pytest.raises(ValueError, match="shuffled"):
        budget([half, Ledger(1.1, 250, 60_000, "shuffle", 240)], 1e-5)


def test_the_noise_for_a_target_keeps_to_it_closely():
    for target, accountant in ((1.0, "pld"), (3.0, "rdp")):
        noise = noise_for(target, 0.05, 100, 1e-5, accountant)
        assert 0.98 * target < epsilon(0.05, noise, 100, 1e-5, accountant) <= target


@given(st.integers(1, 2**14), st.integers(1, 2**14))
def test_a_search_from_any_guess_finds_the_first_place_in_few_looks(first, near):
    asked = []

    def holds(place: int) -> bool:
        asked.append(place)
        return place >= first

    assert first_that_holds(holds, 2**14, near) == first
    assert len(asked) == len(set(asked)) <= 30
    if abs(first - near) <= 1:
        assert len(asked) <= 4


def test_the_least_noise_is_the_one_that_bisection_finds():
    low, high = 0.05, 1e4
    while high > 1.001 * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if epsilon(0.1, middle, 20, 1e-5) <= 2 else (middle, high)
    assert noise_for(2, 0.1, 20, 1e-5) == high


def test_a_statement_names_all_that_it_depends_on():
    poisson = Ledger(1.1, 250, 60_000, steps=240).statement(1e-5)
    for part in (
        "0.302",
        "0.731",
        "1e-05",
        "PLD",
        "RDP",
        "added or removed",
        "240 steps",
        "1.1",
        "250/60,000",
        "Poisson",
    ):
        assert part in poisson
    shuffled = Ledger(1.1, 250, 60_000, "shuffle", 240).statement(1e-5)
    for part in ("3.93", "2.97", "replaced", "shuffled"):  # 3.9213, rounded up
        assert part in shuffled
    assert "no privacy" in Ledger(0.0, 250, 60_000, steps=240).statement(1e-5)


# ---- training


def a_training(**changes):
    inputs, labels = a_batch(0, 60, (4,))
    network = nn.Linear(4, 3).double()
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)
    how = Settings(**({"steps": 30, "batch": 12, "momentum": 0.5, "averaged": 0.4, "seed": 5} | changes))
    return Trainer(network, inputs, labels, how)


def test_a_step_is_what_the_paper_says():
    trainer = a_training(momentum=0.0, averaged=0.0)
    before = copy.deepcopy(trainer.network)
    step = trainer.step()
    exact, _ = one_by_one(before, trainer.inputs[step.examples], trainer.labels[step.examples], 1.0)
    noise = training.gaussian(exact, 1.1, training.generators(5)[0])
    for old, new, total, drawn, noisy in zip(
        before.parameters(), trainer.parameters, exact, noise, step.noisy, strict=True
    ):
        torch.testing.assert_close(noisy, total + drawn)
        torch.testing.assert_close(new.detach(), old.detach() - 0.15 * (total + drawn) / 12)


def test_steps_taken_are_steps_accounted_for():
    releases = []
    trainer = a_training()
    trainer.observe = releases.append
    ledger = trainer.run()
    assert ledger.steps == len(releases) == 30
    assert ledger == Ledger(1.1, 12, 60, "poisson", 30)


def test_momentum_and_averages_are_those_of_pytorch():
    trainer = a_training()
    twin = [p.detach().clone().requires_grad_() for p in trainer.parameters]
    optimiser, weights = torch.optim.SGD(twin, 0.15, 0.5), []

    def follow(step):
        for p, noisy in zip(twin, step.noisy, strict=True):
            p.grad = noisy / 12
        optimiser.step()
        weights.append([p.detach().clone() for p in twin])

    trainer.observe = follow
    trainer.run()
    for i, p in enumerate(trainer.parameters):
        torch.testing.assert_close(p.detach(), torch.stack([w[i] for w in weights[-12:]]).mean(0))


def test_a_seed_fixes_everything_and_no_seed_nothing():
    def weights(seed):
        trainer = a_training(seed=seed)
        trainer.run()
        return torch.cat([p.detach().flatten() for p in trainer.parameters])

    assert torch.equal(weights(5), weights(5))
    assert not torch.equal(weights(5), weights(6))
    assert not torch.equal(weights(None), weights(None))


def test_all_of_the_seed_counts_and_each_stream_is_its_own():
    # PyTorch's own seeding takes 32 bits, which can be tried one after the other
    drawn = [
        torch.rand(1000, generator=stream, dtype=torch.float64)
        for seed in (5, 5 + 2**32, 5 + 12345 * 2**32)
        for stream in training.generators(seed)
    ]
    correlations = np.corrcoef(torch.stack(drawn).numpy())[np.triu_indices(6, 1)] * math.sqrt(1000)
    assert np.abs(correlations).max() < stats.norm.isf(CHANCE / 15)
    assert stats.kstest(torch.cat(drawn), "uniform").pvalue > CHANCE
    again = torch.rand(1000, generator=training.generators(5)[0], dtype=torch.float64)
    assert torch.equal(drawn[0], again)


@pytest.mark.parametrize("sampling", ["poisson", "shuffle"])
def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_been(tmp_path, sampling):
    whole = a_training(sampling=sampling)
    whole.run()
    first = a_training(sampling=sampling)
    for count, _ in enumerate(first.remaining(), start=1):
        if count == 17:
            break
    path = tmp_path / "state.safetensors"
    first._write(path)
    second = a_training(sampling=sampling)
    assert second.take_up(path) == 17
    assert torch.equal(second.noise.get_state(), first.noise.get_state())
    ledger = second.run(path)
    assert ledger == whole.ledger
    for a, b in zip(whole.parameters, second.parameters, strict=True):
        assert torch.equal(a, b)
    third = a_training(sampling=sampling)
    assert third.take_up(path) == 30
    assert third.run().steps == 30
    for a, b in zip(whole.parameters, third.parameters, strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    path = tmp_path / "state.safetensors"
    a_training()._write(path)
    assert path.stat().st_mode & 0o777 == 0o600  # it holds the noise's state
    others = [a_training(clip=2.0), a_training(), a_training()]
    others[1].labels = others[1].labels.flip(0)
    others[2].network.bias.requires_grad_(False)
    for other in others:
        with pytest.raises(ValueError, match="another training"):
            other.take_up(path)
    with safe_open(path, "pt") as file:
        tensors, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    before = [p.detach().clone() for p in a_training().parameters]
    for name, changed in (
        ("counts", torch.tensor([9, 0])),
        ("weight.0", torch.zeros(3, 1, dtype=torch.float64)),
        ("noise", torch.zeros(5056, dtype=torch.uint8)),
    ):
        save_file(tensors | {name: changed}, path, about)
        trainer = a_training()
        with pytest.raises(ValueError, match="damaged"):
            trainer.take_up(path)
        assert all(torch.equal(a, b) for a, b in zip(before, trainer.parameters, strict=True))
    save_file({name: tensor for name, tensor in tensors.items() if name != "draws"}, path, about)
    with pytest.raises(ValueError, match="no checkpoint"):
        a_training().take_up(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="no checkpoint"):
        a_training().take_up(path)
    assert a_training().take_up(tmp_path / "none") == 0


def test_dropout_goes_on_where_it_was(tmp_path):
    def a_dropping_training():
        torch.manual_seed(3)
        trainer = a_training()
        return Trainer(
            nn.Sequential(nn.Dropout(0.5), trainer.network), trainer.inputs, trainer.labels, trainer.settings
        )

    whole, first = a_dropping_training(), None
    whole.run()
    first = a_dropping_training()
    for count, _ in enumerate(first.remaining(), start=1):
        if count == 17:
            break
    path = tmp_path / "state.safetensors"
    first._write(path)
    second = a_dropping_training()
    torch.rand(100)
    assert second.take_up(path) == 17
    second.run()
    for a, b in zip(whole.parameters, second.parameters, strict=True):
        assert torch.equal(a, b)


def test_a_run_that_is_killed_goes_on_from_its_checkpoint(tmp_path, root):
    config = Config(data="embedded", steps=100, batch=60, audit_runs=0)
    whole, state = run(config), tmp_path / "state"
    flags = "--data embedded --steps 100 --batch 60 --audit-runs 0 --checkpoint"
    command = [sys.executable, "-m", "recipes.dp_sgd", *flags.split(), str(state)]
    first = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not state.exists() and time.monotonic() < until and first.poll() is None:
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL, "it had ended before it could be killed"
    second = run(dataclasses.replace(config, checkpoint=state))
    assert 0 < second.resumed_from < 100
    assert second.steps == whole.steps == 100
    for name in ("accuracy", "epsilon_pld", "epsilon_rdp"):
        assert getattr(second, name) == getattr(whole, name)


def test_whoever_has_the_seed_takes_the_noise_away():
    trainer = a_training(momentum=0.0, averaged=0.0)
    known = training.gaussian(trainer.parameters, 1.1, training.generators(5)[0])
    step = trainer.step()
    for noisy, noise, exact in zip(step.noisy, known, step.clipped.gradients, strict=True):
        torch.testing.assert_close(noisy - noise, exact)


def test_plain_training_is_dp_sgd_without_clip_and_noise():
    private = a_training(clip=1e9, noise_multiplier=0.0, averaged=0.0)
    plain = a_training(clip=1e9, noise_multiplier=0.0, averaged=0.0)
    private.run()
    training.train_plainly(plain.network, plain.inputs, plain.labels, plain.settings)
    for a, b in zip(private.parameters, plain.parameters, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": -1},
        {"noise_multiplier": 1e-6},
        {"steps": 0},
        {"clip": 0.0},
        {"clip": math.inf},
        {"noise_multiplier": -1.0},
        {"learning_rate": math.nan},
        {"momentum": 1.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        Settings(**({"steps": 1} | changes))


# ---- the audit


def test_an_honest_training_is_audited_within_a_factor_of_two():
    bound = many_runs(Attack(), 1000)
    assert bound.stated == pytest.approx(Ledger(1.1, 4, 8, steps=2).epsilon(1e-5))
    assert bound.stated / 2 <= bound.this_mechanism <= bound.stated
    assert 0 < bound.any_mechanism <= bound.stated
    assert not bound.found_out


@pytest.mark.parametrize("name", list(planted()))
def test_a_planted_fault_is_found_and_the_honest_training_beside_it_is_not(name):
    # 5 % of honest trainings may be found out by chance, at the most; seeds are fixed
    parts, attack = planted()[name]
    runs = 600 if name == "batches of fixed size" else 200  # it gives least away
    faulty = many_runs(attack, runs, parts)
    assert faulty.found_out
    assert faulty.this_mechanism > faulty.stated
    if attack != Attack():
        assert not many_runs(attack, 200).found_out


def test_an_audit_is_right_as_often_as_it_says_and_sees_a_third_less_noise():
    # 6 honest audits, each wrong in 5 % at the most: more than 3 wrong has a chance of 9e-5
    attack = Attack(noise_multiplier=1.0, steps=1, batch=8)
    less = Parts(noise=lambda like, deviation, stream: training.gaussian(like, 0.65 * deviation, stream))
    wrong = found = 0
    for seed in range(6):
        wrong += many_runs(dataclasses.replace(attack, seed=seed), 200).found_out
        found += many_runs(dataclasses.replace(attack, seed=seed), 200, less).found_out
    assert wrong <= 3
    assert found >= 3


def test_much_noise_leaves_nothing_to_find():
    bound = many_runs(Attack(noise_multiplier=60.0), 100)
    assert bound.any_mechanism < 0.2
    assert not bound.found_out


def test_one_run_bounds_epsilon_and_finds_faults():
    attack = Attack(steps=1, batch=8)
    honest = one_run(attack, 1000)
    assert 0.5 < honest.any_mechanism < honest.this_mechanism < honest.stated
    for name in ("noise scaled by 0.1", "clipping forgotten"):
        assert one_run(attack, 1000, planted()[name][0]).found_out


def test_guesses_about_a_gaussian_keep_to_the_one_run_bounds():
    # 400 games at the true curve, each bound wrong in 5 % at the most: more than 50 has a chance below 1e-8
    random, canaries, guessed = np.random.default_rng(0), 200, 60
    curve = tradeoff.Curve(1.0, 1.0, 1)
    ledger = Ledger(1.0, 1, 1, steps=1)
    stated = ledger.epsilon(1e-5)
    by_curve = by_epsilon = 0
    for _ in range(400):
        there = random.random(canaries) < 0.5
        order = np.argsort(-(there + random.normal(0, 1, canaries)))
        right, count = audit._right(there[order], guessed)
        by_curve += audit._too_many_right(right, count, canaries, 0.05, curve)
        by_epsilon += audit.one_run_bound(right, count, canaries, 0.05, 1e-5) > stated
    assert by_curve <= 50
    assert by_epsilon <= 50


def test_perfect_guesses_are_too_many():
    curve = tradeoff.Curve(1.0, 1.0, 1)
    assert audit._too_many_right(60, 60, 200, 0.05, curve)
    assert not audit._too_many_right(30, 60, 200, 0.05, curve)
    assert audit.one_run_bound(60, 60, 200, 0.05, 0.0) == pytest.approx(
        -math.log(0.05 ** (-1 / 60) - 1), abs=2e-3
    )


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0])
def test_the_curve_of_a_gaussian_is_the_closed_one(mu):
    curve = tradeoff.Curve(1 / mu, 1.0, 1)
    for false in (1e-3, 0.05, 0.3, 0.8):
        exact = stats.norm.cdf(stats.norm.ppf(false) + mu)
        assert curve.most_true(false) == pytest.approx(exact, abs=2e-3)
        assert curve.most_true(false) >= exact - 1e-9
        assert curve.least_false(exact) == pytest.approx(false, abs=2e-3)


@given(n=st.integers(5, 200), rate=st.floats(0.05, 0.95), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_rates_are_clopper_and_pearsons(n, rate, seed):
    random = np.random.default_rng(seed)
    with_, without = (random.random(n) < rate).astype(float), (random.random(n) < 0.3).astype(float)
    low, high = audit._rates(with_, without, 0.5, 0.9)
    hits, alarms = int(with_.sum()), int(without.sum())
    assert low == pytest.approx(stats.binomtest(hits, n).proportion_ci(0.9, "exact").low, abs=1e-9)
    assert high == pytest.approx(stats.binomtest(alarms, n).proportion_ci(0.9, "exact").high, abs=1e-9)


# ---- features


@pytest.fixture
def few_features(monkeypatch):
    """Fifty features from 300 stand-ins: quick, and otherwise the same."""
    monkeypatch.setattr(scattering, "_EXAMPLES", 300)
    monkeypatch.setattr(scattering, "KEPT", 50)
    scattering.preconditioner.cache_clear()
    yield
    scattering.preconditioner.cache_clear()
    scattering.prepared.cache_clear()


def test_features_come_from_each_image_alone_and_a_classifier_is_written_with_them(
    few_features, empty_models
):
    images = data.load("mnist", "embedded").test.images[:20].copy()
    before = scattering.features(images, "mnist")
    network = scattering.classifier()
    torch.manual_seed(0)
    nn.init.normal_(network.weight)
    scattering.write(network, "mnist", 1, {"about": "it"})
    path = scattering.shipped_path("mnist", 1)
    assert path.parent == empty_models
    expected = network(before).detach().numpy()
    np.testing.assert_allclose(
        scattering.predict(scattering.scattered(images), path), expected, rtol=1e-3, atol=1e-2
    )
    images[1:] = 255 - images[1:]
    after = scattering.features(images, "mnist")
    torch.testing.assert_close(before[0], after[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before[1], after[1], atol=1e-1)


def test_a_file_that_is_no_classifier_is_refused(tmp_path):
    path = tmp_path / "classifier.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="no classifier"):
        scattering.predict(torch.zeros(1, 3969), path)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_shipped_classifiers_are_as_accurate_and_as_private_as_they_say(name):
    # a thousand images, the first: within four standard deviations of what all ten thousand gave
    try:
        dataset = data.load(name)
    except data.DatasetUnavailable as error:
        pytest.skip(str(error))
    features = scattering.scattered(dataset.test.images[:1000])
    for target in scattering.TARGETS:
        path = scattering.shipped_path(name, target)
        with safe_open(path, "pt") as file:
            about = file.metadata()
        stated = float(re.match(r"\(([0-9.]+), 1e-05\)", about["statement"])[1])
        assert 0.9 * target < stated <= target
        assert about["data"] == f"{name} {dataset.digest()}"
        found = scattering.predict(features, path).argmax(1) == dataset.test.labels[:1000]
        claimed = float(about["test_accuracy"])
        assert abs(found.mean() - claimed) < 4 * math.sqrt(claimed * (1 - claimed) / 1000)


# ---- the lesson and the run


def test_an_outlier_shows_without_privacy_and_not_with_it(monkeypatch):
    monkeypatch.setattr(lesson, "PLAIN", dataclasses.replace(lesson.PLAIN, steps=800))  # half: it shows
    odd = lesson.outlier(data.load("mnist", "embedded"), 1e-5, seeds=1)
    (there, gone), (private_there, private_gone) = odd.plain[0], odd.private[0]
    assert there > gone + 0.5
    assert abs(private_there - private_gone) < 0.3
    assert odd.private_accuracy > 0.6
    assert 0 < odd.epsilon < 3


@pytest.fixture(scope="module")
def quick():
    """A short run on stand-ins."""
    return run(Config(data="embedded", steps=60, audit_runs=100))


def test_a_result_says_all_that_it_should(quick):
    record = json.loads(json.dumps(cards.run_record(Config(), quick, Watch())["result"]))
    keys = {
        "engine",
        "sampling",
        "steps",
        "accuracy",
        "epsilon_rdp",
        "epsilon_pld",
        "epsilon_lower_bound",
        "delta",
    }
    assert keys | {"cpu_seconds_epoch", "slowdown"} <= set(record)
    assert record["steps"] == 60
    assert record["epsilon_pld"] == epsilon(Q, 1.1, 60, 1e-5)
    assert record["epsilon_rdp"] == epsilon(Q, 1.1, 60, 1e-5, "rdp")
    assert record["accuracy"] < record["plain_accuracy"]
    assert record["slowdown"] > 0.5
    assert quick.statement in report.describe(quick)


class Watch:
    """A stopwatch that has run for a second."""

    wall = 1.0


def test_figures_are_drawn(quick, tmp_path):
    figure = report.plot(quick)
    figure.savefig(tmp_path / "figure.png")
    assert len(figure.axes) == 2
    swept = dataclasses.replace(quick, sweep=((1.1, 0.3, 0.7, 0.1), (2.0, 0.1, 0.5, 0.0)))
    assert len(report.plot(swept).axes) == 3
    assert len(report.plot(dataclasses.replace(quick, bound=None)).axes) == 1


def test_the_classifier_on_features_keeps_to_its_target(few_features, monkeypatch):
    whole = data.load("mnist", "embedded")
    small = {
        name: data.Split(s.images[:count], s.labels[:count])
        for name, s, count in (("train", whole.train, 1000), ("test", whole.test, 500))
    }
    monkeypatch.setattr(data, "load", lambda *_: dataclasses.replace(whole, **small))
    result = run(
        Config(data="embedded", network="scattering", target_epsilon=2, steps=20, batch=333, audit_runs=0)
    )
    assert 1.9 < result.epsilon_pld <= 2
    assert result.accuracy > 0.8
    assert result.slowdown is None
    assert result.epsilon_lower_bound is None


def test_without_noise_there_is_no_epsilon():
    result = run(Config(data="embedded", steps=3, noise_multiplier=0.0, audit_runs=0))
    assert result.epsilon_pld is result.epsilon_rdp is result.epsilon_shuffle_high is None
    assert "no privacy" in report.describe(result)


def test_shuffled_training_states_bounds_and_no_poisson_figure():
    result = run(Config(data="embedded", steps=20, sampling="shuffle", audit_runs=0))
    assert result.sampling == "shuffle"
    assert result.epsilon_pld == result.epsilon_shuffle_high == pytest.approx(3.92, abs=0.005)
    poisson = rounded_up(epsilon(250 / 60_000, 1.1, 20, 1e-5))
    assert len(poisson) > 3
    assert poisson not in report.describe(result)
    assert poisson in report.describe(run(Config(data="embedded", steps=20, audit_runs=0)))


def test_groups_of_examples_cost_twice_the_noise():
    result = run(
        Config(data="embedded", engine="tf-privacy", steps=1, batch=20, microbatches=10, noise_multiplier=2.0)
    )
    assert (result.engine, result.sampling, result.noise_multiplier) == ("tf-privacy", "shuffle", 1.0)
    assert result.slowdown is None


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--noise-multiplier", "0", "--target-epsilon", "1"), "epsilon is infinite"),
        (("--noise-multiplier", "1", "--target-epsilon", "1"), "give one"),
        (("--engine", "tf-privacy", "--batch", "250", "--microbatches", "7"), "do not divide"),
        (("--microbatches", "10"), "tf-privacy"),
        (("--engine", "tf-privacy", "--sampling", "poisson"), "shuffles"),
        (("--engine", "tf-privacy", "--network", "scattering"), "chapter's network"),
        (("--sampling", "shuffle", "--target-epsilon", "1"), "Poisson"),
        (("--delta", "0"), "delta must be between 0 and 1"),
        (("--delta", "1.5"), "delta must be between 0 and 1"),
        (("--batch", "70000"), "at most 60000"),
        (("--clip", "0"), "clip must be a number above 0"),
        (("--noise-multiplier", "-1"), "must be 0, or from"),
        (("--noise-multiplier", "0.001"), "must be 0, or from"),
        (("--target-epsilon", "1e-9"), "would take a noise"),
        (("--seed", "-1"), "seed must be from 0"),
        (("--seed", "99999999999999999999999"), "seed must be from 0"),
        (("--epochs", "1", "--steps", "5"), "give one"),
        (("--audit-runs", "5"), "at least 20"),
        (("--learning-rate", "1e30", "--noise-multiplier", "0", "--steps", "20"), "not finite"),
        (("--train",), "real data"),
        (("--engine", "opacus"), "engine"),
        (("--checkpoint", "/dev/null"), "cannot be written"),
    ],
)
def test_bad_input_gets_one_line(refused, flags, says):
    assert says in refused("dp_sgd", "--data", "embedded", *flags)


def test_a_delta_that_is_too_large_is_warned_of(caplog):
    run(Config(data="embedded", steps=1, delta=1e-3, audit_runs=0))
    assert "not below 1/N" in caplog.text
