"""Federated averaging against closed forms, against TensorFlow Federated, attacked, and as a command."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import re
import secrets
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes import federated_averaging as fa
from recipes.federated_averaging import (
    algorithms,
    checkpoint,
    leakage,
    networks,
    privacy,
    robust,
    simulation,
    table,
)
from recipes.federated_averaging import secure_aggregation as sealing
from recipes.federated_averaging.partition import partition
from recipes.files import shipped
from recipes.secret_sharing import Shamir

COMMAND = [sys.executable, "-m", "recipes.federated_averaging"]
SOFTMAX = fa.NETWORKS["softmax"]
ZEROS = SOFTMAX.initial()


def some_client(count: int, seed: int = 0) -> fa.Examples:
    rng = np.random.default_rng(seed)
    return fa.Examples(rng.random((count, 784), np.float32), rng.integers(0, 10, count, np.uint8))


def some_model(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, SOFTMAX.size).astype(np.float32)


def some_updates(*changes: np.ndarray, examples: int = 1) -> list[fa.Update]:
    return [fa.Update(np.asarray(change, np.float32), examples, 0, 0.0, 1) for change in changes]


def first(count: int, rounds) -> list[fa.Round]:
    with contextlib.closing(rounds):
        return list(itertools.islice(rounds, count))


# ---- a client and the server, against closed forms


def test_a_clients_first_step_from_zeros_is_the_closed_form():
    # At zero every class has probability 1/10, so the gradient is X^T (1/10 - onehot) / B.
    client = some_client(8)
    update = fa.client_update(ZEROS, client, fa.Config(batch_size=8, learning_rate=0.5))
    error = np.full((8, 10), 0.1)
    error[np.arange(8), client.labels] -= 1
    weights, bias = SOFTMAX.unpack(update.change)
    assert weights == pytest.approx(-0.5 * client.pixels.T @ error / 8, abs=1e-6)
    assert bias == pytest.approx(-0.5 * error.mean(axis=0), abs=1e-6)
    assert (update.examples, update.steps) == (8, 1)
    assert update.loss / 8 == pytest.approx(np.log(10), abs=1e-6)


def test_a_clients_step_is_the_numerical_gradient():
    client, model, config = some_client(5), some_model(), fa.Config(batch_size=5, learning_rate=1.0)
    step = -fa.client_update(model, client, config).change
    for place in [*range(7840, 7850), 3000, 4001]:
        shift = np.zeros(SOFTMAX.size)
        shift[place] = 1e-4
        ahead, behind = (SOFTMAX.evaluate(model + sign * shift, client)[1] for sign in (1, -1))
        assert step[place] == pytest.approx((ahead - behind) / 2e-4, abs=1e-4)


def test_a_client_does_not_change_what_the_server_sent():
    model = some_model()
    before = model.copy()
    fa.client_update(model, some_client(40), fa.Config())
    assert (model == before).all()


def test_the_last_small_batch_is_averaged_over_its_own_size():
    client, config = some_client(33), fa.Config(batch_size=32)
    one = fa.client_update(ZEROS, fa.Examples(*(a[:32] for a in client)), config)
    last = fa.client_update(ZEROS + one.change, fa.Examples(*(a[32:] for a in client)), config)
    both = fa.client_update(ZEROS, client, config)
    assert both.change == pytest.approx(one.change + last.change, abs=1e-7)
    assert both.correct == one.correct + last.correct
    assert both.steps == 2


def test_two_local_epochs_are_two_passes():
    client = some_client(50)
    once = fa.client_update(ZEROS, client, fa.Config())
    again = fa.client_update(ZEROS + once.change, client, fa.Config())
    both = fa.client_update(ZEROS, client, fa.Config(local_epochs=2))
    assert both.change == pytest.approx(once.change + again.change, abs=1e-7)
    assert both.loss == pytest.approx(once.loss + again.loss)


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_average_is_weighted_by_examples(counts, random):
    changes = [some_model(random.randrange(2**31)) for _ in counts]
    updates = [fa.Update(change, n, 0, 0.0, 1) for change, n in zip(changes, counts, strict=True)]
    expected = sum(n * c.astype(float) for c, n in zip(changes, counts, strict=True)) / sum(counts)
    model = some_model()
    assert fa.server_update(model, updates) == pytest.approx(model + expected, abs=1e-6)
    random.shuffle(updates)
    assert fa.server_update(model, updates) == pytest.approx(model + expected, abs=1e-6)


def test_nothing_is_not_averaged():
    with pytest.raises(ValueError, match="no client has sent an update"):
        fa.mean([])


def test_one_client_alone_is_plain_sgd():
    client, config = some_client(70), fa.Config(clients=1)
    one, two = first(2, fa.federated_rounds([client], config))
    alone = ZEROS + fa.client_update(ZEROS, client, config).change
    assert (one.model == alone).all()
    assert (two.model == alone + fa.client_update(alone, client, config).change).all()


def test_with_one_batch_a_client_federated_averaging_is_centralised_gradient_descent():
    # FedSGD: the mean of the clients' full-batch steps is the step on the pooled batch.
    clients = [some_client(12, seed=1), some_client(30, seed=2)]
    pooled = fa.Examples(*map(np.concatenate, zip(*clients, strict=True)))
    config = fa.Config(batch_size=100, learning_rate=0.1)
    (federated,) = first(1, fa.federated_rounds(clients, config))
    (alone,) = first(1, fa.federated_rounds([pooled], dataclasses.replace(config, clients=1)))
    assert federated.model == pytest.approx(alone.model, abs=1e-6)
    assert federated.train_loss == pytest.approx(alone.train_loss)


def test_a_client_without_examples_is_refused():
    with pytest.raises(ValueError, match="no examples"):
        fa.client_update(ZEROS, some_client(0), fa.Config())


def test_log_softmax_survives_large_logits():
    assert networks.log_softmax(np.float32([[1e4, 0.0, -1e4]])).tolist() == [[0.0, -1e4, -2e4]]


# ---- McMahan's CNN, against PyTorch's own layers


def test_the_cnn_is_pytorchs():
    import torch
    from torch import nn

    network, client = fa.NETWORKS["cnn"], some_client(6)
    layers = [nn.Conv2d(1, 32, 5, padding=2), nn.MaxPool2d(2), nn.ReLU()]
    layers += [nn.Conv2d(32, 64, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()]
    twin = nn.Sequential(*layers, nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10))
    assert network.size == sum(parameter.numel() for parameter in twin.parameters()) == 1_663_370
    vector = network.initial(3)
    nn.utils.vector_to_parameters(torch.from_numpy(vector), twin.parameters())
    images, labels = (
        torch.from_numpy(client.pixels).view(-1, 1, 28, 28),
        torch.from_numpy(client.labels).long(),
    )
    loss = nn.functional.cross_entropy(twin(images), labels)
    loss.backward()
    expected = nn.utils.parameters_to_vector([parameter.grad for parameter in twin.parameters()]).numpy()
    found = np.full_like(vector, np.nan)
    right, lost = network.gradient(vector, client, found)
    assert found == pytest.approx(expected, abs=1e-6)
    assert lost / 6 == pytest.approx(float(loss.detach()), abs=1e-5)
    assert network.evaluate(vector, client) == pytest.approx((right / 6, lost / 6), abs=1e-5)


def test_the_cnn_begins_as_the_seed_says():
    network = fa.NETWORKS["cnn"]
    assert (network.initial(1) == network.initial(1)).all()
    assert (network.initial(1) != network.initial(2)).any()
    for part, bound in zip(network.unpack(network.initial()), [1 / 5, 1 / 5], strict=False):
        assert 0.9 * bound < np.abs(part).max() <= bound


# ---- who holds what


@given(st.sampled_from(["halves", "iid", "dirichlet", "shards"]), st.integers(1, 20), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_example_has_one_owner(kind, clients, seed):
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, 2_000, np.uint8)
    parts = partition(labels, clients, kind, 10.0, random)
    assert len(parts) == clients
    assert (np.sort(np.concatenate(parts)) == np.arange(2_000)).all()
    if kind in ("halves", "iid"):
        assert {len(part) for part in parts} <= {2_000 // clients, -(-2_000 // clients)}


def test_halves_stay_in_order_and_iid_do_not():
    labels, random = np.zeros(100, np.uint8), np.random.default_rng(0)
    assert [part.tolist() for part in partition(labels, 2, "halves", 1, random)] == [
        list(range(50)),
        list(range(50, 100)),
    ]
    assert partition(labels, 2, "iid", 1, random)[0].tolist() != list(range(50))


def test_with_two_shards_a_client_knows_two_labels():
    # 60,000 images, 6,000 a label, 200 shards of 300: no shard holds two labels.
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(10, dtype=np.uint8), 6_000))
    parts = partition(labels, 100, "shards", 1, np.random.default_rng(0))
    assert {len(part) for part in parts} == {600}
    known = [len(np.unique(labels[part])) for part in parts]
    assert set(known) == {1, 2}
    # Both shards are of one label with probability 19/199: 9.5 of 100 clients, standard deviation below 3.3.
    assert known.count(1) < 30


def test_a_dirichlet_distribution_has_its_variance():
    # The share of a label that one of K clients gets is beta distributed: its variance is
    # (K - 1) / (K^2 (K alpha + 1)). 4,000 shares; six standard errors, by the fourth moment, are below 15 %.
    labels, clients, alpha = np.repeat(np.arange(10, dtype=np.uint8), 1_000), 10, 2.0
    shares = []
    for seed in range(40):
        parts = partition(labels, clients, "dirichlet", alpha, np.random.default_rng(seed))
        shares += [np.bincount(labels[part], minlength=10) / 1_000 for part in parts]
    expected = (clients - 1) / (clients**2 * (clients * alpha + 1))
    assert np.var(shares) == pytest.approx(expected, rel=0.15)
    assert np.mean(shares) == pytest.approx(1 / clients)


@pytest.mark.parametrize(
    ("kind", "clients", "alpha", "said"),
    [
        ("halves", 11, 1.0, "1 of 11 clients would hold no example of 10: take fewer clients$"),
        ("shards", 11, 1.0, "clients would hold no example of 10"),
        ("dirichlet", 10, 0.01, "a larger alpha or another seed"),
        ("thirds", 3, 1.0, "partition is thirds"),
    ],
)
def test_a_client_that_would_get_nothing_is_refused(kind, clients, alpha, said):
    labels = np.arange(10, dtype=np.uint8)
    with pytest.raises(ValueError, match=said):
        partition(labels, clients, kind, alpha, np.random.default_rng(0))


# ---- the algorithms


def steps_of(name: str, changes: list[np.ndarray], **settings) -> list[np.ndarray]:
    """The models that an algorithm's server goes through, from zeros, by the mean changes that come in."""
    algorithm = algorithms.ALGORITHMS[name](len(changes[0]), 1, **settings)
    models = [np.zeros(len(changes[0]), np.float32)]
    for change in changes:
        models.append(fa.server_update(models[-1], some_updates(change), algorithm))
    return models[1:]


CHANGES = [np.random.default_rng(seed).normal(size=7).astype(np.float32) for seed in range(5)]


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "scaffold"])
def test_the_server_adds_the_mean_change_times_its_rate(name):
    models = steps_of(name, CHANGES, server_rate=0.5)
    assert models == pytest.approx(0.5 * np.cumsum(CHANGES, axis=0), abs=1e-6)


def test_server_momentum_is_a_geometric_sum():
    # v_t = 0.9 v_{t-1} + d for a constant d is d (1 - 0.9^t) / 0.1.
    models = steps_of("fedavgm", [CHANGES[0]] * 6)
    speeds = [CHANGES[0] * (1 - 0.9**t) / 0.1 for t in range(1, 7)]
    assert models == pytest.approx(np.cumsum(speeds, axis=0), rel=1e-5)


@pytest.mark.parametrize("name", ["fedadagrad", "fedadam", "fedyogi"])
def test_adaptive_servers_are_algorithm_2_of_reddi_et_al(name):
    # Number by number, as the paper writes it: beta_1 = 0.9, beta_2 = 0.99, tau = 1e-3.
    found = steps_of(name, CHANGES, server_rate=0.1)
    for place in range(7):
        x, m, v = 0.0, 0.0, 1e-3**2
        for model, change in zip(found, CHANGES, strict=True):
            d = float(change[place])
            m = 0.9 * m + 0.1 * d
            if name == "fedadagrad":
                v = v + d**2
            elif name == "fedadam":
                v = 0.99 * v + 0.01 * d**2
            else:
                v = v - 0.01 * d**2 * (1 if v > d**2 else -1)
            x += 0.1 * m / (math.sqrt(v) + 1e-3)
            assert model[place] == pytest.approx(x, rel=1e-4)


def test_fedprox_adds_its_pull_to_every_gradient():
    client, rate, mu = some_client(20), 0.3, 0.7
    config = fa.Config(batch_size=20, local_epochs=2, learning_rate=rate)
    pull = algorithms.FedProx(SOFTMAX.size, 1, proximal=mu).pull(0, ZEROS)
    gradient = np.empty_like(ZEROS)
    SOFTMAX.gradient(ZEROS, client, gradient)
    one = -rate * gradient
    SOFTMAX.gradient(one, client, gradient)
    expected = one - rate * (gradient + mu * one)
    assert fa.client_update(ZEROS, client, config, pull=pull).change == pytest.approx(expected, abs=1e-6)


def test_scaffold_with_one_step_a_round_is_federated_sgd_and_learns_each_clients_gradient():
    # y = x - eta (g_i - c_i + c); the c_i average to c, so the mean is x - eta mean(g_i); and with one step
    # option II makes c_i the gradient at x.
    clients = [some_client(12, seed=seed) for seed in (1, 2, 3)]
    config = fa.Config(clients=3, batch_size=12, learning_rate=0.2, algorithm="scaffold")
    scaffold = algorithms.Scaffold(SOFTMAX.size, 3)
    found = first(4, fa.federated_rounds(clients, config, algorithm=scaffold))
    plain = first(4, fa.federated_rounds(clients, dataclasses.replace(config, algorithm="fedavg")))
    for one, other in zip(found, plain, strict=True):
        assert one.model == pytest.approx(other.model, abs=1e-6)
    gradient = np.empty_like(ZEROS)
    for number, client in enumerate(clients):
        SOFTMAX.gradient(found[2].model, client, gradient)
        assert scaffold.memory[f"client {number}"] == pytest.approx(gradient, abs=1e-5)


def test_scaffold_finds_the_optimum_where_federated_averaging_drifts():
    # Two clients with other labels for the same images, many local steps: FedAvg's fixed point is not where
    # the gradient of their mean loss vanishes, SCAFFOLD's is. Both count alike in SCAFFOLD's mean.
    one = some_client(20, seed=1)
    clients = [one, fa.Examples(one.pixels[:5], (one.labels[:5] + 1) % 10)]
    left = {}
    for name in ("fedavg", "scaffold"):
        config = fa.Config(batch_size=100, local_epochs=20, learning_rate=0.02, algorithm=name)
        *_, last = first(
            150,
            fa.federated_rounds(
                clients,
                config,
            ),
        )
        gradients = np.empty((2, SOFTMAX.size), np.float32)
        for client, out in zip(clients, gradients, strict=True):
            SOFTMAX.gradient(last.model, client, out)
        left[name] = np.linalg.norm(gradients.mean(axis=0))
    assert left["scaffold"] < left["fedavg"] / 3


def equal_mean(updates, random):
    return fa.mean(updates, weighted=False)


def test_scaffold_counts_clients_alike_and_sends_twice_as_much():
    updates = [fa.Update(np.full(3, value, np.float32), n, 0, 0.0, 1) for value, n in ((0, 1), (1, 99))]
    found, aggregator = aggregate(fa.Config(algorithm="scaffold"), updates)
    assert found.tolist() == [0.5] * 3
    assert aggregator.bytes_up == 2 * 3 * 4
    assert fa.mean(updates) == pytest.approx([0.99] * 3)


# ---- rounds of many clients

MANY = {"clients": 40, "clients_per_round": 8, "partition": "iid", "batch_size": 10}


@given(st.integers(1, 5), st.integers(2, 30), st.sampled_from(["fedavg", "fedprox", "scaffold"]))
@settings(max_examples=15, deadline=None)
def test_clients_in_step_are_clients_one_by_one(epochs, count, name):
    config = fa.Config(**MANY | {"clients": 6, "clients_per_round": 0}, local_epochs=epochs, algorithm=name)
    config = dataclasses.replace(config, poison="labels", hostile=2)
    clients = [some_client(count if number < 4 else 7, number) for number in range(6)]
    algorithm = algorithms.ALGORITHMS[name](SOFTMAX.size, 6)
    algorithm.memory = {"all": some_model(1), "client 3": some_model(2)}
    groups = simulation.cohorts(range(6), clients, config)
    assert sorted(map(sorted, groups)) == ([[0, 1, 2, 3], [4, 5]] if count != 7 else [[0, 1, 2, 3, 4, 5]])
    together = {}
    for group in groups:
        updates = simulation.take_parts(2, group, ZEROS, clients, config, algorithm)
        together.update(zip(group, updates, strict=True))
    for number, update in sorted(together.items()):
        pull = algorithm.pull(number, ZEROS)
        alone = fa.take_part(2, number, ZEROS, clients[number], config, pull)
        assert update.change == pytest.approx(alone.change, abs=1e-6)
        assert (update.examples, update.correct, update.steps) == (alone.examples, alone.correct, alone.steps)
        assert update.loss == pytest.approx(alone.loss, rel=1e-5)


def test_threads_change_nothing():
    clients = [some_client(25 + seed % 2, seed) for seed in range(40)]
    one, *others = (
        first(3, fa.federated_rounds(clients, fa.Config(**MANY, workers=workers))) for workers in (1, 3, 10)
    )
    for other in others:
        for a, b in zip(one, other, strict=True):
            assert (a.model == b.model).all()
            assert a[1:] == b[1:]


def test_a_round_that_nobody_takes_part_in_says_so(capsys):
    config = fa.Config(clients=30, clients_per_round=1, clip=1.0, noise=1.0, rounds=4, data="embedded")
    result = fa.run(dataclasses.replace(config, partition="iid", batch_size=100))
    empty = [len(simulation.chosen(config, number)) == 0 for number in range(1, 5)]
    assert any(empty)
    assert [accuracy is None for accuracy in result.train_accuracy] == empty
    assert fa.describe(result).count("–   ") >= empty.count(True)


def test_a_round_has_as_many_clients_as_asked_for_and_each_is_drawn_as_often():
    # 2,000 rounds of 8 out of 40: each 400 times on average, standard deviation 17.9; 5 of them for any of 40
    # clients are left with probability 2e-5.
    config, random = fa.Config(**MANY), np.random.default_rng(0)
    drawn = [simulation.sample(config, random) for _ in range(2_000)]
    assert {len(set(chosen)) for chosen in drawn} == {8}
    assert np.abs(np.bincount(np.concatenate(drawn), minlength=40) - 400).max() < 5 * 17.9


def test_with_noise_clients_are_drawn_each_by_itself():
    # Sizes are binomial: mean 8, variance 6.4. Over 4,000 rounds the mean has a standard error of 0.04, the
    # variance one of about 0.143; 5 of each are left with probability below 1e-6.
    config, random = fa.Config(**MANY, clip=1.0, noise=1.0), np.random.default_rng(0)
    sizes = [len(simulation.sample(config, random)) for _ in range(4_000)]
    assert np.mean(sizes) == pytest.approx(8, abs=5 * 0.04)
    assert np.var(sizes) == pytest.approx(6.4, abs=5 * 0.143)


def test_work_depends_on_seed_round_and_client_only():
    client, config = some_client(30), fa.Config(**MANY)
    again = [fa.take_part(2, 5, ZEROS, client, config).change for _ in range(2)]
    assert (again[0] == again[1]).all()
    assert (fa.take_part(3, 5, ZEROS, client, config).change != again[0]).any()
    assert (fa.take_part(2, 6, ZEROS, client, config).change != again[0]).any()


# ---- what an update gives away


@pytest.mark.parametrize("before", [ZEROS, some_model()], ids=["zeros", "trained"])
def test_an_update_of_one_image_gives_the_image_away(before):
    for seed in range(10):
        client = some_client(1, seed)
        change = fa.client_update(before, client, fa.Config(learning_rate=0.5, local_epochs=2)).change
        pixels, label = fa.image_from_change(change)
        assert label == client.labels[0]
        assert pixels == pytest.approx(client.pixels[0], abs=1e-3)  # float32, at worst


def test_the_division_does_not_work_for_many_images():
    client = some_client(32)
    pixels, _ = fa.image_from_change(fa.client_update(ZEROS, client, fa.Config()).change)
    assert np.abs(client.pixels - pixels).mean(axis=1).min() > 0.1


def test_two_clients_have_no_secrets_from_each_other():
    # The average of two gives each the other's change: twice the average less one's own.
    clients = [some_client(40, seed=1), some_client(40, seed=2)]
    updates = [fa.client_update(ZEROS, client, fa.Config()) for client in clients]
    assert 2 * fa.mean(updates) - updates[0].change == pytest.approx(updates[1].change, abs=1e-6)


@pytest.mark.parametrize("labels", [[3], [0, 9], [7, 7], [1, 2, 3, 4], [5, 5, 5, 8], [0, 1, 2, 4, 6, 7]])
def test_the_labels_of_a_small_batch_are_read_off_the_bias(labels):
    batch = fa.Examples(some_client(len(labels)).pixels, np.array(labels, np.uint8))
    change = fa.client_update(fa.NETWORKS["cnn"].initial(), batch, fa.Config(network="cnn")).change
    assert leakage.labels_from_change(change, len(labels)).tolist() == sorted(labels)


@pytest.fixture(scope="module")
def two_garments() -> fa.Examples:
    from recipes.data import load

    train = load("fashion-mnist", "embedded").train
    places = [int(np.flatnonzero(train.labels == label)[0]) for label in (1, 8)]
    return fa.Examples(fa.flatten(train.images[places]), train.labels[places])


def test_two_images_come_back_from_one_step_of_the_cnn(two_garments):
    model = fa.NETWORKS["cnn"].initial()
    change = fa.client_update(model, two_garments, fa.Config(network="cnn")).change
    pixels, labels = fa.images_from_change(model, change, 2, steps=150)
    assert labels.tolist() == [1, 8]
    even_grey = two_garments.pixels.var(axis=1).mean()  # the error of the best
    assert np.mean((pixels - two_garments.pixels) ** 2) < even_grey / 10
    noise = np.random.default_rng(0).normal(size=change.shape).astype(np.float32)
    pixels, _ = fa.images_from_change(model, noise, 2, steps=60)
    assert np.mean((pixels - two_garments.pixels) ** 2) > even_grey


def test_the_attack_fails_on_what_the_server_sees_of_secure_aggregation():
    client = some_client(100)
    clear = fa.reconstruction_mse(client, fa.Config())
    sealed = fa.reconstruction_mse(client, fa.Config(clients=3, secure=True))
    assert clear < 1e-10
    # Grey all over is wrong by 1/12 on uniform pixels; a sealed change tells less than that.
    assert sealed > 1 / 12


def test_clipping_does_not_keep_the_server_from_seeing():
    client, short = some_client(100), fa.Config(clip=1e-3)
    change = fa.client_update(ZEROS, fa.Examples(*(a[:1] for a in client)), fa.Config()).change
    (sent,) = fa.one_by_one([change], short)
    assert np.linalg.norm(sent) == pytest.approx(1e-3)
    assert np.linalg.norm(change) > 1e-2
    assert fa.reconstruction_mse(client, short) < 1e-10


def test_a_sum_of_few_clients_still_gives_their_images_away():
    clients = [
        fa.Examples(some_client(1, seed).pixels, np.uint8([label])) for seed, label in enumerate([2, 7, 3])
    ]
    changes = [fa.client_update(ZEROS, client, fa.Config(learning_rate=0.5)).change for client in clients]
    sealed = sealing.aggregate(changes, step=sealing.step_of(1, 3))
    found = fa.images_from_sum(sealed.total, [2, 7, 3], 0.5)
    for image, client in zip(found, clients, strict=True):
        assert image == pytest.approx(client.pixels[0], abs=1e-4)


# ---- secure aggregation


def vectors_of(count: int, size: int = 50, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).uniform(-1, 1, (count, size)))


@given(st.integers(3, 12), st.integers(0, 2**32), st.data())
@settings(max_examples=25, deadline=None)
def test_the_sealed_sum_is_the_plain_one_to_half_a_step_each(count, seed, data):
    vectors = vectors_of(count, seed=seed)
    lost = data.draw(st.sets(st.integers(0, count - 1), max_size=(count - 1) // 2))
    step = sealing.step_of(1, count)
    sealed = sealing.aggregate(vectors, step=step, lost=sorted(lost))
    left = [place for place in range(count) if place not in lost]
    assert sealed.here == tuple(left)
    assert np.abs(sealed.total - sum(vectors[place] for place in left)).max() <= len(left) * step / 2 * (
        1 + 1e-9
    )


def test_extremes_fit_into_the_field():
    for count in (3, 30):
        vectors = [np.array([1.0, -1.0])] * count
        sealed = sealing.aggregate(vectors, step=sealing.step_of(1, count))
        assert sealed.total == pytest.approx([count, -count], rel=1e-6)


def test_a_vector_too_large_for_the_field_is_refused_and_not_wrapped():
    vectors = vectors_of(3)
    vectors[1][7] = 1.01
    with pytest.raises(ValueError, match=r"reaches 1.01, and the field holds 1 of each of 3"):
        sealing.aggregate(vectors, step=sealing.step_of(1, 3))
    vectors[1][7] = np.nan
    with pytest.raises(ValueError, match="reaches nan"):
        sealing.aggregate(vectors, step=sealing.step_of(1, 3))


def test_what_the_server_sees_of_a_client_is_uniform():
    # Chi-square over 64 equal parts of the field, 3 x 20,000 residues of all-zero and of extreme vectors.
    # Each of 6 p-values is below 1e-5 with that probability: this fails for no reason once in 16,000 times.
    from scipy.stats import chisquare

    for value in (0.0, 1.0):
        sealed = sealing.aggregate([np.full(20_000, value)] * 3, step=sealing.step_of(1, 3))
        for view in sealed.view.values():
            counts = np.bincount(
                (view.astype(np.uint64) * 64 // sealing.FIELD.prime).astype(int), minlength=64
            )
            assert chisquare(counts).pvalue > 1e-5
            assert np.unique(view).size > 0.99 * view.size


def test_masks_do_not_depend_on_what_they_hide():
    # With the same draws, other vectors move the view by exactly their difference: the view of any vectors is
    # that of any others under other masks, which are as likely.
    def view(vectors):
        source = np.random.default_rng(5)
        return sealing.aggregate(vectors, step=step, draw=lambda count: source.bytes(count)).view

    step = sealing.step_of(1, 4)
    one, other = vectors_of(4, seed=1), vectors_of(4, seed=2)
    for place, (a, b) in enumerate(zip(view(one).values(), view(other).values(), strict=True)):
        moved = sealing.FIELD.subtract(a.astype(np.uint64), b.astype(np.uint64))
        expected = [sealing.quantise(vectors[place], step, 4) for vectors in (one, other)]
        assert (moved == sealing.FIELD.subtract(*expected)).all()


def test_the_sum_of_what_the_server_sees_is_still_covered_by_the_own_masks():
    # So that a client that is called lost, and whose vector comes late, is not opened by pair masks alone.
    step = sealing.step_of(1, 3)
    sealed = sealing.aggregate(vectors_of(3), step=step)
    total = sealing.FIELD.total(np.stack([view.astype(np.uint64) for view in sealed.view.values()]))
    assert np.abs(sealing.restore(total, step) - sealed.total).max() > 1


def round_of(count: int):
    scheme = Shamir(count, sealing.FIELD, threshold=count // 2)
    clients = [sealing.Client(number, scheme) for number in range(count)]
    public = {client.number: client.public_keys() for client in clients}
    letters = {client.number: client.letters(public) for client in clients}
    return clients, letters


def deliver(clients, letters) -> None:
    for client in clients:
        client.read({other: sent[client.number] for other, sent in letters.items() if other != client.number})


def test_a_client_gives_nothing_away_if_too_few_are_left_or_twice():
    clients, letters = round_of(5)
    deliver(clients, letters)
    with pytest.raises(ValueError, match="2 clients are left, and 3 are needed"):
        clients[0].reveal([0, 1])
    clients[0].reveal([0, 1, 2])
    with pytest.raises(ValueError, match="once a round"):
        clients[0].reveal([0, 1, 2, 3])


def test_a_client_gives_one_of_two_shares_of_every_other_and_never_both():
    clients, letters = round_of(4)
    deliver(clients, letters)
    held = dict(clients[0]._shares)
    given = clients[0].reveal([0, 1, 2])
    assert set(given) == {0, 1, 2, 3}
    for other, share in given.items():
        assert (share == held[other][0 if other == 3 else 1]).all()


def test_letters_are_sealed_and_a_changed_one_is_refused():
    clients, letters = round_of(3)
    letter = letters[0][1]
    mine = clients[0]._shares[0]
    assert all(bytes(share.astype("<u4")) not in letter for share in mine)
    letters[0][1] = bytes([letter[0] ^ 1]) + letter[1:]
    with pytest.raises(InvalidTag):
        deliver(clients, letters)


def test_bytes_are_those_that_are_sent():
    # Up: two public keys, a letter of 2 x 11 words and a tag of 16 bytes to each other, P words, 11 words of
    # each client. Down: two keys of each, and the letters.
    count, size = 10, 7_850
    sealed = sealing.aggregate([np.zeros(size)] * count, step=1.0)
    letters = (count - 1) * (2 * 11 * 4 + 16)
    assert sealed.bytes_up == 64 + letters + 4 * size + count * 11 * 4
    assert sealed.bytes_down == 64 * count + letters


def test_keys_survive_being_cut_into_words():
    for _ in range(20):
        key = secrets.token_bytes(32)
        assert sealing._key(sealing._words(key)) == key


def test_two_are_too_few():
    with pytest.raises(ValueError, match="2 clients: with fewer than three"):
        sealing.aggregate(vectors_of(2), step=1.0)


# ---- the aggregate as a config says


def aggregate(config: fa.Config, updates, seed: int = 0) -> tuple[np.ndarray, fa.Aggregator]:
    aggregator = fa.Aggregator(config, len(updates[0].change))
    return aggregator(updates, np.random.default_rng(seed)), aggregator


def test_the_secure_mean_is_the_plain_one_to_half_a_step():
    changes = [0.1 * some_model(seed) for seed in range(6)]
    updates = [fa.Update(c, 10 * n, 0, 0.0, 1) for n, c in enumerate(changes, start=1)]
    sealed, aggregator = aggregate(fa.Config(clients=6, secure=True), updates)
    assert 0 < aggregator.error <= 0.5
    assert sealed == pytest.approx(fa.mean(updates), abs=1e-7)
    assert len(aggregator.view) == 6


def test_those_who_are_lost_are_not_in_the_mean():
    updates = some_updates(*np.eye(7))
    config = fa.Config(clients=7, secure=True, dropouts=3)
    sealed, aggregator = aggregate(config, updates)
    left = sorted(aggregator.view)
    assert len(left) == 4
    assert sealed == pytest.approx(np.eye(7)[left].mean(axis=0), abs=1e-6)


@pytest.mark.parametrize("secure", [False, True])
def test_clipped_changes_count_alike_and_are_no_longer_than_asked(secure):
    long, short = np.array([30.0, 40.0]), np.array([0.03, 0.04])
    updates = [fa.Update(c.astype(np.float32), n, 0, 0.0, 1) for c, n in ((long, 1), (short, 99), (short, 5))]
    found, _ = aggregate(fa.Config(clients=3, clip=0.5, secure=secure), updates)
    assert found == pytest.approx((np.array([0.3, 0.4]) + 2 * short) / 3, abs=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 8, 10, 13])
@pytest.mark.parametrize("secure", [False, True])
def test_the_sum_has_the_noise_that_is_stated_however_many_take_part(secure, count):
    # 40,000 coordinates without signal: the standard deviation has a relative standard error of 0.35 %, and
    # five of them are left with probability 6e-7 in each of 20 cases.
    size = 40_000
    config = fa.Config(
        clients=20, clients_per_round=8, clip=2.0, noise=1.5, secure=secure, dropouts=3 * secure
    )
    aggregator = fa.Aggregator(config, size)
    updates = some_updates(*np.zeros((count, size)))
    total = aggregator(updates, np.random.default_rng(0)) * config.sampled
    assert np.std(total) == pytest.approx(1.5 * 2.0, rel=5 * 0.0036)
    assert abs(total.mean()) < 5 * 3.0 / 200


def test_one_client_more_moves_the_sum_by_its_bound_at_most():
    # What the accountant supposes. The same draws, so that the noise cancels.
    size = 500
    updates = [fa.Update(10 * change, 3, 0, 0.0, 1) for change in np.float32(np.eye(size)[:5])]
    updates[4] = updates[4]._replace(change=np.full(size, np.float32(9)))
    config = fa.Config(clients=5, clip=1.0, noise=0.5)
    (one, _), (other, _) = aggregate(config, updates), aggregate(config, updates[:4])
    assert np.linalg.norm((one - other) * config.sampled) == pytest.approx(1, abs=1e-4)


def test_rounds_with_fewer_than_three_clients_are_sealed_too():
    config = fa.Config(clients=4, clip=1.0, noise=0.5, secure=True)
    for count in (0, 1, 2):
        aggregators = [fa.Aggregator(config, 20) for _ in range(2)]
        changes = np.eye(20)[:count], np.zeros((count, 20))
        found, noise = (
            aggregator(some_updates(*each), np.random.default_rng(0))
            for aggregator, each in zip(aggregators, changes, strict=True)
        )
        assert (found - noise) * 4 == pytest.approx(np.eye(20)[:count].sum(axis=0), abs=1e-5)
        assert len(aggregators[0].view) == 3


def test_a_change_that_is_not_finite_counts_as_none():
    assert (privacy.shortened(np.float32([np.nan, 1]), 1.0) == 0).all()
    assert (privacy.shortened(np.float32([0, 0]), 1.0) == 0).all()
    assert privacy.shortened(np.float32([3, 4]), 1.0) == pytest.approx([0.6, 0.8])


def test_epsilon_is_dp_accountings_for_poisson_sampling():
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    config = fa.Config(**MANY, clip=1.0, noise=0.8)
    event = dp_accounting.PoissonSampledDpEvent(8 / 40, dp_accounting.GaussianDpEvent(0.8))
    accountant = PLDAccountant().compose(dp_accounting.SelfComposedDpEvent(event, 12))
    assert privacy.epsilon(config, 12) == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-6)
    assert privacy.epsilon(config, 13) > privacy.epsilon(config, 12)
    assert privacy.epsilon(fa.Config(), 1) == math.inf


def test_against_the_server_sampling_hides_nobody():
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    config = fa.Config(**MANY, clip=1.0, noise=4.0, secure=True)
    often = np.bincount(
        np.concatenate([simulation.chosen(config, number) for number in range(1, 13)]).astype(int)
    ).max()
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(4.0), int(often))
    expected = PLDAccountant().compose(event).get_epsilon(1e-5)
    assert privacy.epsilon_against_server(config, 12) == pytest.approx(expected, rel=1e-6)
    assert privacy.epsilon_against_server(config, 12) > privacy.epsilon(config, 12)
    in_the_clear = dataclasses.replace(config, secure=False)
    assert privacy.epsilon_against_server(in_the_clear, 12) == math.inf


# ---- hostile clients


@given(st.integers(0, 2**32), st.integers(5, 12))
@settings(max_examples=30, deadline=None)
def test_robust_means_are_what_their_papers_say(seed, count):
    changes = np.random.default_rng(seed).normal(size=(count, 6))
    hostile = 1
    for place in range(6):
        ordered = sorted(changes[:, place])
        middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
        assert robust.median(changes)[place] == pytest.approx(middle)
        assert robust.trimmed_mean(changes, hostile)[place] == pytest.approx(sum(ordered[1:-1]) / (count - 2))
    distances = ((changes[:, None] - changes) ** 2).sum(axis=2)
    scores = [
        sum(sorted(np.delete(row, place))[: count - hostile - 2]) for place, row in enumerate(distances)
    ]
    assert robust.krum(changes, hostile) == pytest.approx(changes[int(np.argmin(scores))])


@pytest.mark.parametrize("kind", ["median", "trimmed-mean", "krum"])
def test_robust_means_cannot_be_moved_far_and_the_mean_can(kind):
    honest = np.random.default_rng(0).normal(1, 0.1, (8, 30))
    hostile = np.full((3, 30), -1e6)
    both = np.concatenate([honest, hostile])
    assert np.abs(robust.robust_mean(kind, both, 3) - 1).max() < 0.5
    assert both.mean() < -1e5


@pytest.mark.parametrize("kind", ["median", "trimmed-mean", "krum"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_changes_that_are_no_numbers_do_no_harm(kind, bad):
    changes = np.random.default_rng(0).normal(1, 0.1, (9, 4)).astype(np.float32)
    changes[:2] = bad
    changes[2, 1] = bad
    assert np.abs(robust.robust_mean(kind, changes, 3) - 1).max() < 0.5


def test_as_many_hostile_clients_are_allowed_for_as_there_may_be():
    assert fa.Config(clients=10, hostile=3, poison="signs", aggregate="trimmed-mean").tolerated == 3
    assert fa.Config(clients=100, clients_per_round=10, hostile=20, poison="signs").tolerated == 3
    assert fa.Config(clients=100, clients_per_round=10).tolerated == 0


def test_too_many_hostile_clients_are_named():
    changes = np.zeros((6, 2))
    with pytest.raises(ValueError, match="3 hostile of 6 clients: trimming both ends leaves none"):
        robust.trimmed_mean(changes, 3)
    with pytest.raises(ValueError, match="2 hostile of 6 clients: Krum needs at least 7"):
        robust.krum(changes, 2)
    with pytest.raises(ValueError, match="aggregate is mode"):
        robust.robust_mean("mode", changes, 1)


def test_hostile_clients_do_what_their_poison_says():
    client = some_client(30)
    honest = fa.take_part(1, 0, ZEROS, client, fa.Config()).change
    signs = fa.Config(poison="signs", hostile=1)
    assert (fa.take_part(1, 0, ZEROS, client, signs).change == -10 * honest).all()
    assert (fa.take_part(1, 1, ZEROS, client, signs).change == honest).all()
    labels = fa.take_part(1, 0, ZEROS, client, fa.Config(poison="labels", hostile=1)).change
    turned = fa.client_update(ZEROS, fa.Examples(client.pixels, 9 - client.labels), fa.Config()).change
    assert (labels == turned).all()


def test_a_median_outlives_hostile_clients_that_end_the_mean():
    attacked = {**MANY, "clients_per_round": 12, "poison": "signs", "hostile": 8, "rounds": 6}
    attacked |= {"learning_rate": 0.05, "data": "embedded"}
    by = {
        kind: fa.run(fa.Config(**attacked, aggregate=kind)).test_accuracy[-1] for kind in ("mean", "median")
    }
    assert by["median"] > 0.6 > 0.3 > by["mean"]


# ---- a long run goes on


@pytest.mark.parametrize("name", ["fedavg", "fedadam", "scaffold"])
def test_a_run_that_is_interrupted_ends_as_one_that_is_not(tmp_path, name):
    settings = {**MANY, "data": "embedded", "algorithm": name, "clients_per_round": 3}
    whole = fa.run(fa.Config(**settings, rounds=4))
    fa.run(fa.Config(**settings, rounds=2, checkpoints=tmp_path))
    resumed = fa.run(fa.Config(**settings, rounds=4, checkpoints=tmp_path))
    assert (resumed.model == whole.model).all()
    for column in ("train_accuracy", "test_accuracy", "centralised_accuracy"):
        assert getattr(resumed, column) == getattr(whole, column)
    assert len(list(tmp_path.iterdir())) == 1
    fa.run(fa.Config(**settings, rounds=1, seed=7, checkpoints=tmp_path))  # another run has a file of its own
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ValueError, match=r"rounds is 1: .* has 4 behind it"):
        fa.run(fa.Config(**settings, rounds=1, checkpoints=tmp_path))


def test_every_setting_that_changes_the_course_has_a_checkpoint_of_its_own(tmp_path):
    base = fa.Config(checkpoints=tmp_path)
    changed = [{"seed": 1}, {"learning_rate": 0.1}, {"order": "shuffled"}, {"clip": 1.0}, {"network": "cnn"}]
    paths = {checkpoint.checkpoint_of(dataclasses.replace(base, **one), "x") for one in [{}, *changed]}
    assert len(paths) == 1 + len(changed)
    assert checkpoint.checkpoint_of(base, "y") not in paths
    assert checkpoint.checkpoint_of(dataclasses.replace(base, rounds=9), "x") in paths


def test_a_damaged_checkpoint_and_a_folder_that_cannot_be_are_one_line(python, tmp_path):
    command = ("-m", "recipes.federated_averaging", "--data", "embedded", "--no-table", "--checkpoints")
    assert python(*command, str(tmp_path)).returncode == 0
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    for folder, said in ((tmp_path, "delete it to begin anew"), (path, "checkpoints is")):
        done = python(*command, str(folder))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert said in done.stderr


# ---- McMahan's table in small


def test_rounds_to_a_target_are_counted_from_one():
    from recipes.data import load

    data, config = load("fashion-mnist", "embedded"), fa.Config(**MANY)
    rounds = table.rounds_to(0.5, 20, data, config)
    history = fa.run(fa.Config(**MANY, data="embedded", rounds=rounds, target=0.5))
    assert history.rounds_to_target == history.rounds == rounds
    assert [accuracy >= 0.5 for accuracy in history.test_accuracy] == [False] * (rounds - 1) + [True]
    assert table.rounds_to(1.0, 2, data, config) is None


def test_more_local_work_takes_fewer_rounds_and_unlike_clients_more(real_fashion_mnist):
    sgd, one, five = fa.run(fa.Config(data="real", table=True)).table
    assert five.iid < one.iid < sgd.iid
    assert five.shards < one.shards < sgd.shards
    assert all(10 * row.iid < sgd.iid and 5 * row.iid < row.shards for row in (one, five))


# ---- the source chapter's figures, on real data


def test_the_first_rounds_in_file_order(real_fashion_mnist):
    result = fa.run(fa.Config(data="real", rounds=3))
    assert result.train_accuracy == pytest.approx([0.743367, 0.806983, 0.821250], abs=5e-7)
    assert result.train_loss == pytest.approx([0.820889, 0.591461, 0.542566], abs=2e-6)
    assert result.test_accuracy[0] == pytest.approx(0.7872, abs=5e-5)


CHAPTER = ("0.743650", "0.820713")  # it printed 0.74365 and 0.82071316


def figures(result: fa.Result) -> tuple[str, str]:
    """Training accuracy and loss of the first round, to six digits."""
    return f"{result.train_accuracy[0]:.6f}", f"{result.train_loss[0]:.6f}"


def test_the_first_round_in_the_chapters_order(real_fashion_mnist):
    result = fa.run(fa.Config(data="real", order="chapter"))
    assert figures(result) == CHAPTER
    assert result.test_accuracy[0] == pytest.approx(0.7888, abs=5e-5)


def test_the_chapters_order_is_a_permutation_of_the_training_set():
    order = np.load(shipped("datasets", "fashion-mnist-tfds-1.3.2-order.npy"))
    assert order.shape == (2, 30_000)
    assert (np.sort(order, axis=None) == np.arange(60_000)).all()


# ---- TensorFlow Federated


def test_tff_and_the_reference_reach_the_same_weights():
    # Clients of different sizes, so that the weighting counts, and a last batch that is not full.
    clients = [some_client(100, seed=1), some_client(260, seed=2)]
    config = fa.Config(local_epochs=2, learning_rate=0.1)
    with contextlib.closing(fa.tff_rounds(clients, config)) as rounds:
        for tff, reference in zip(rounds, fa.federated_rounds(clients, config), strict=False):
            assert np.abs(tff.model - reference.model).max() < 1e-5
            assert tff.train_accuracy == pytest.approx(reference.train_accuracy, abs=1e-6)
            assert tff.train_loss == pytest.approx(reference.train_loss, rel=1e-5)
            if reference.train_loss < 1.9:
                break
    assert workers_of(os.getpid()) == []


@pytest.mark.parametrize(("order", "expected"), [("chapter", CHAPTER), ("file", ("0.743367", "0.820889"))])
def test_tff_gives_the_figures_in_both_orders(real_fashion_mnist, order, expected):
    reference = fa.run(fa.Config(data="real", order=order))
    result = fa.run(fa.Config(data="real", order=order, engine="tff"))
    assert figures(result) == figures(reference) == expected
    assert result.test_accuracy == reference.test_accuracy
    assert np.abs(result.model - reference.model).max() < 1e-5


def workers_of(pid: int) -> list[psutil.Process]:
    """The TFF servers below a process."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == "worker_binary" and alive(child):
                found.append(child)
    return found


def alive(process: psutil.Process) -> bool:
    """Whether it runs: one that has ended and waits for its parent to ask does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_no_worker_outlives_a_run_and_a_pipe_ends(root):
    arguments = "--engine tff --data embedded --no-table"
    command = f"'{sys.executable}' -m recipes.federated_averaging {arguments} 2>&1 | tail -n 1"
    process = subprocess.Popen(["/bin/sh", "-c", command], cwd=root, stdout=subprocess.PIPE, text=True)
    workers = wait_for_workers(process)
    said, _ = process.communicate(timeout=120)
    assert said.startswith("Out of what the server sees")
    assert not any(map(alive, workers))


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_run_that_is_interrupted_leaves_no_worker_and_no_file(root, tmp_path, by):
    process = subprocess.Popen(
        [*COMMAND, "--engine", "tff", "--data", "embedded", "--rounds", "50", "--no-table"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""},
    )
    workers = wait_for_workers(process)
    while not any(tmp_path.iterdir()):  # TensorFlow's, for the code that it makes
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(1)  # it has begun, and its threads cannot be ended
    process.send_signal(by)
    said, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + by
    assert said == ""
    assert not re.search("Traceback|terminate|FATAL", errors)  # TensorFlow may have said more as it started
    assert errors.endswith("recipes.federated_averaging: interrupted\n") or by == signal.SIGTERM
    assert not any(map(alive, workers))
    assert not any(tmp_path.iterdir())


def wait_for_workers(process: subprocess.Popen) -> list[psutil.Process]:
    for _ in range(600):
        if workers := workers_of(process.pid):
            return workers
        time.sleep(0.1)
    raise AssertionError("no worker_binary was started")


# ---- runs and their results


@pytest.fixture(scope="module")
def embedded() -> fa.Result:
    """Two rounds on the stand-ins."""
    return fa.run(fa.Config(data="embedded", rounds=2))


def test_a_result_has_an_entry_for_every_round(embedded):
    for name in ("train_accuracy", "train_loss", "test_accuracy", "test_loss", "centralised_accuracy"):
        assert len(getattr(embedded, name)) == embedded.rounds == 2
    assert embedded.test_accuracy[1] > embedded.test_accuracy[0] > 0.5
    assert embedded.bytes_up == embedded.bytes_down == (784 * 10 + 10) * 4
    assert embedded.data_source == "embedded"
    assert embedded.reconstruction_mse < 1e-10


def test_the_text_and_the_figure_say_where_the_data_came_from(embedded):
    assert "(embedded)" in fa.describe(embedded)
    assert len(fa.describe(embedded).splitlines()) == 6
    axes = fa.plot(embedded).axes[0]
    assert "embedded" in axes.get_title()
    assert [line.get_ydata().tolist() for line in axes.lines] == [
        list(embedded.centralised_accuracy),
        list(embedded.test_accuracy),
    ]


def test_the_largest_steps_stay_finite():
    # The gradient of softmax regression is bounded, so a large rate is useless and does no harm.
    result = fa.run(fa.Config(data="embedded", learning_rate=1000, batch_size=1000))
    assert np.isfinite([result.train_loss[0], result.test_loss[0]]).all()


def test_a_seed_decides_the_shuffle():
    runs = [fa.run(fa.Config(data="embedded", order="shuffled", seed=seed)) for seed in (1, 1, 2)]
    assert (runs[0].model == runs[1].model).all()
    assert (runs[0].model != runs[2].model).any()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("rounds", 0), ("rounds", 2**63), ("local_epochs", 0), ("batch_size", -1), ("seed", -1)),
        *(("learning_rate", rate) for rate in (0.0, -1.0, 1e-320, 1e308, float("nan"), float("inf"))),
    ],
)
def test_a_bad_config_is_refused_by_name_and_value(field, value):
    with pytest.raises(ValueError, match=re.escape(f"{field} is {value}")):
        fa.Config(**{field: value})


# ---- the command line


def test_json_and_plot_are_written(python, tmp_path):
    done = python(
        *("-m", "recipes.federated_averaging", "--data", "embedded", "--rounds", "2", "--no-table"),
        *("--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")),
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out.json").read_text())
    assert set(record) == {"config", "result", "environment", "seconds"}
    keys = """engine data_source rounds train_accuracy train_loss test_accuracy bytes_up bytes_down partition
        clients algorithm rounds_to_target epsilon delta reconstruction_mse aggregate_error"""
    assert set(keys.split()) <= set(record["result"])
    assert record["config"]["rounds"] == record["result"]["rounds"] == 2
    assert record["result"]["data_source"] == "embedded"
    assert record["environment"]["numpy"] == np.__version__
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--rounds zero", "--rounds"),
        ("--rounds 0", "rounds is 0: it must lie between 1 and 1,000,000"),
        ("--rounds", "--rounds"),
        ("--frobnicate", "--frobnicate"),
        ("--data fake", "'real', 'embedded', 'auto'"),
        ("--profile slow", "'quick', 'full'"),
        ("--engine pytorch", "'reference', 'tff'"),
        ("--learning-rate nan", "learning_rate is nan"),
        ("--json /nowhere/out.json", "/nowhere"),
        ("--json /", "it is a folder"),
        ("--json /dev/null", "it is no regular file"),
        ("--json here.json --plot here.json", "name two files"),
        ("--card --rounds 2", "--card"),
        ("--rounds 9223372036854775808", "between 1 and 1,000,000"),
        ("--learning-rate 1e308", "between 1e-09 and 1,000"),
        ("--plot out.gif", ".png, .pdf or .svg"),
        ("positional", "positional"),
        ("--clients 4 --clients-per-round 5", "clients_per_round is 5: it must lie between 0 and 4"),
        ("--partition dirichlet --alpha 0", "alpha is 0.0: it must lie between 0.001 and 1,000,000"),
        ("--partition dirichlet --alpha 1e-300", "alpha is 1e-300"),
        ("--clients 9 --clip 1 --noise 0.001", "noise is 0.001: below 0.05 it hides nothing"),
        ("--clients 4 --secure --dropouts 1 --clients-per-round 3", "the sum is of fewer than three"),
        ("--clients 9 --clip 1 --aggregate median", "clip is for the mean"),
        ("--clients 9 --algorithm scaffold --aggregate median", "scaffold sends a second vector"),
        (
            "--algorithm fedprox --proximal 1e6 --learning-rate 1000 --data embedded",
            "training diverged in round 1",
        ),
        ("--partition dirichlet --alpha -1", "alpha is -1.0"),
        ("--noise 1", "give clip, too"),
        ("--data embedded --clients 1000000", "clients would hold no example of"),
        ("--secure", "clients_per_round is 2: secure aggregation is for 3 to 100"),
        ("--clients 500 --secure", "secure aggregation is for 3 to 100"),
        ("--clients 90 --secure --clip 1 --noise 1", "3 to 60, as with noise their number varies"),
        ("--clients 9 --secure --aggregate median", "needs to see each client's change, and secure hides"),
        ("--clients 9 --dropouts 1", "give secure"),
        ("--clients 9 --secure --dropouts 5", "dropouts is 5: it must lie between 0 and 4"),
        ("--clients 9 --clip 1 --noise 1 --aggregate krum", "no epsilon is known"),
        ("--poison signs", "hostile is 0 and poison signs"),
        ("--hostile 1", "hostile is 1 and poison none"),
        ("--clients 4 --aggregate trimmed-mean --hostile 2 --poison signs", "has nothing left"),
        ("--clients 4 --aggregate krum --hostile 1 --poison signs", "Krum needs 5 clients in a round"),
        ("--algorithm scaffold --clip 1", "scaffold sends a second vector"),
        ("--engine tff --algorithm fedadam", "engine tff runs fedavg"),
        ("--dataset mnist --order chapter", "order chapter is one of fashion-mnist"),
        ("--delta 1", "delta is 1.0: it must lie between"),
        ("--target 1.5", "target is 1.5"),
        ("--data embedded --clients 3 --secure --learning-rate 1000", "bound the changes (clip)"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(refused, arguments, said):
    assert said in refused("federated_averaging", *arguments.split())


def test_a_record_is_not_written_into_a_pipe(python):
    done = python("-m", "recipes.federated_averaging", "--json", "/dev/stdout")
    assert (done.returncode, done.stdout) == (2, "")
    assert "it is no regular file" in done.stderr


def test_missing_data_are_the_environments_fault(python, tmp_path):
    proxy = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    environment = os.environ | proxy | {"COOKBOOK_DATA": str(tmp_path), "COOKBOOK_MIRROR": ""}
    (tmp_path / "out.json").write_text("before")
    arguments = ("-m", "recipes.federated_averaging", "--no-table", "--json", str(tmp_path / "out.json"))
    done = python(*arguments, "--data", "real", env=environment)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "fashion-mnist is not available" in done.stderr
    assert (tmp_path / "out.json").read_text() == "before"
    done = python(*arguments, env=environment)  # --data auto
    assert done.returncode == 0
    assert "EMBEDDED STAND-IN DATA" in done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["result"]["data_source"] == "embedded"


def test_a_reader_that_has_seen_enough_ends_the_run_quietly(root):
    command = f"'{sys.executable}' -m recipes.federated_averaging --data embedded --no-table | true"
    done = subprocess.run(["/bin/sh", "-c", command], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_do_no_harm(root, tmp_path, redirection):
    out = tmp_path / "out.json"
    command = (
        f"'{sys.executable}' -m recipes.federated_averaging --data embedded --no-table --rounds 1"
        f" --json '{out}' {redirection}"
    )
    done = subprocess.run(["/bin/sh", "-c", command], cwd=root, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode == 0
    assert json.loads(out.read_text())["result"]["rounds"] == 1
    bad = subprocess.run(
        ["/bin/sh", "-c", command.replace("--rounds 1", "--rounds 0")],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert bad.returncode == 2
    assert bad.stdout == ""


@pytest.mark.parametrize("flags", ["--help", "--data embedded --no-table", "--rounds zero"])
def test_a_terminal_without_unicode_is_told_in_ascii(python, flags):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = python("-m", "recipes.federated_averaging", *flags.split(), env=environment)
    assert done.returncode == (2 if flags == "--rounds zero" else 0)
    assert "codec" not in done.stderr
    assert done.stderr.count("\n") == (1 if flags == "--rounds zero" else 0)


def test_help_describes_every_flag(python):
    said = python("-m", "recipes.federated_averaging", "--help").stdout
    for flag in ("--data", "--engine", "--order", "--rounds", "--profile", "--json", "--plot", "--card"):
        assert flag in said
    assert "models/" in said
