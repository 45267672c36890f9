"""All clients and the server in one process: the rounds, in the order in which the protocol runs."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from recipes.data import Dataset, scale
from recipes.federated_averaging.algorithms import ALGORITHMS, FedAvg, Pull
from recipes.federated_averaging.config import Config
from recipes.federated_averaging.networks import NETWORKS, Examples
from recipes.federated_averaging.partition import partition
from recipes.federated_averaging.robust import REVERSED_BY, turned
from recipes.files import shipped

COHORT = 16
"""Clients that are trained in step with one another, at most."""


class Update(NamedTuple):
    """What a client sends back after a round."""

    change: np.ndarray
    """`[P]` float32: its model minus the one that it was sent."""
    examples: int
    """Examples that it trained on (n_k in the paper); the server weights by them."""
    correct: int
    """Right answers among the examples x epochs that it saw, before each step."""
    loss: float
    """Sum of their cross-entropies, in nats."""
    steps: int
    """Of gradient descent that it took."""


class Round(NamedTuple):
    """The global model after a round, and how the clients fared in it."""

    model: np.ndarray
    """`[P]` float32."""
    train_accuracy: float | None
    """None if nobody took part, as may happen with Poisson sampling."""
    train_loss: float | None
    clients: tuple[int, ...]
    """Which ones took part."""


Aggregate = Callable[[Sequence[Update], np.random.Generator | None], np.ndarray]
"""Updates of a round, and where noise is drawn from -> the one change `[P]` that the server's step is made
of."""


# ---- the protocol, in the order in which it runs


def clients_of(data: Dataset, config: Config) -> list[Examples]:
    """The training set dealt out, as `config.partition` says.

    Raises:
        ValueError: some client would get nothing.
    """
    count = len(data.train)
    random = np.random.default_rng((config.seed, 0))
    if config.order == "chapter":
        # [2, 30000] uint16: the order in which tensorflow-datasets 1.3.2 served the two halves
        order = np.load(shipped("datasets", "fashion-mnist-tfds-1.3.2-order.npy")).ravel()
    elif config.order == "shuffled":
        order = np.random.default_rng(config.seed).permutation(count)
    else:
        order = np.arange(count)
    pixels, labels = flatten(data.train.images), data.train.labels
    parts = partition(labels[order], config.clients, config.partition, config.alpha, random)
    return [Examples(pixels[order[part]], labels[order[part]]) for part in parts]


def flatten(images: np.ndarray) -> np.ndarray:
    """`[N, 28, 28]` uint8 to `[N, 784]` float32 in [0, 1]."""
    return scale(images).reshape(len(images), -1)


def sample(config: Config, random: np.random.Generator) -> list[int]:
    """Which clients take part in a round (S_t in the paper).

    A fixed number at random; with noise each by itself with the same probability (Poisson sampling), as the
    accountant supposes, so that there may be more or fewer, or none.
    """
    if config.noise:
        return np.flatnonzero(random.random(config.clients) < config.sampled / config.clients).tolist()
    return sorted(random.choice(config.clients, config.sampled, replace=False).tolist())


def chosen(config: Config, number: int) -> list[int]:
    """Who takes part in round `number`, from 1."""
    return sample(config, np.random.default_rng((config.seed, 1, number)))


def client_update(
    model: np.ndarray,
    examples: Examples,
    config: Config,
    random: np.random.Generator | None = None,
    pull: Pull | None = None,
) -> Update:
    """Train the global model on one client's data (ClientUpdate in the paper).

    Args:
        model: `[P]` float32; it is left as it is.
        random: draws each epoch's order; None: the order stays.
        pull: what an algorithm adds to each gradient.

    Raises:
        ValueError: the client holds no examples.
    """
    count = len(examples.labels)
    if count == 0:
        raise ValueError("a client holds no examples: leave it out, or give it some")
    network, local, gradient = NETWORKS[config.network], model.copy(), np.empty_like(model)
    correct, loss, steps = 0, 0.0, 0
    for _ in range(config.local_epochs):
        order = slice(None) if random is None else random.permutation(count)
        pixels, labels = examples.pixels[order], examples.labels[order]
        for start in range(0, count, config.batch_size):
            places = slice(start, start + config.batch_size)
            batch = Examples(pixels[places], labels[places])
            right, lost = network.gradient(local, batch, gradient)
            if pull is not None:
                gradient += pull(local)
            gradient *= np.float32(config.learning_rate)
            local -= gradient
            correct, loss, steps = correct + right, loss + lost, steps + 1
    local -= model
    return Update(local, count, int(correct), float(loss), steps)


def client_updates(
    model: np.ndarray,
    cohort: Sequence[Examples],
    config: Config,
    randoms: Sequence[np.random.Generator | None],
    pulls: Sequence[Pull | None],
) -> list[Update]:
    """`client_update` of several clients that hold as many examples each, in step with one another: the same
    up to rounding, and several times as fast for a small network.

    Args:
        cohort: the clients' data; `randoms` and `pulls` are theirs, in the same order.
    """
    network, count = NETWORKS[config.network], len(cohort[0].labels)
    local = np.repeat(model[None], len(cohort), axis=0)  # [K, P]
    gradient = np.empty_like(local)
    correct, loss, steps = 0, 0.0, 0
    for _ in range(config.local_epochs):
        orders = [np.arange(count) if random is None else random.permutation(count) for random in randoms]
        for start in range(0, count, config.batch_size):
            places = [order[start : start + config.batch_size] for order in orders]
            pixels = np.stack([one.pixels[mine] for one, mine in zip(cohort, places, strict=True)])
            labels = np.stack([one.labels[mine] for one, mine in zip(cohort, places, strict=True)])
            right, lost = network.gradient(local, Examples(pixels, labels), gradient)
            for pull, one, row in zip(pulls, local, gradient, strict=True):
                if pull is not None:
                    row += pull(one)
            gradient *= np.float32(config.learning_rate)
            local -= gradient
            correct, loss, steps = correct + right, loss + lost, steps + 1
    local -= model
    figures = zip(local, correct.tolist(), loss.tolist(), strict=True)
    return [Update(change, count, right, lost, steps) for change, right, lost in figures]


def take_part(
    number: int,
    client: int,
    model: np.ndarray,
    examples: Examples,
    config: Config,
    pull: Pull | None = None,
) -> Update:
    """What a client does in round `number`, from 1, honest or not.

    All that it draws comes from the seed, the round and the client, so that it is the same in whichever
    thread, process or machine it is done.
    """
    examples = poisoned(client, examples, config)
    update = client_update(model, examples, config, randomness(number, client, config), pull)
    return disguised(client, update, config)


def take_parts(
    number: int,
    group: Sequence[int],
    model: np.ndarray,
    clients: Sequence[Examples],
    config: Config,
    algorithm: FedAvg,
) -> list[Update]:
    """`take_part` of a cohort."""
    pulls = [algorithm.pull(client, model) for client in group]
    with np.errstate(over="ignore", invalid="ignore"):  # a run that diverges is told so by its loss
        if len(group) == 1:
            (client,) = group
            return [take_part(number, client, model, clients[client], config, *pulls)]
        examples = [poisoned(client, clients[client], config) for client in group]
        randoms = [randomness(number, client, config) for client in group]
        updates = client_updates(model, examples, config, randoms, pulls)
        return [disguised(client, update, config) for client, update in zip(group, updates, strict=True)]


def cohorts(takers: Sequence[int], clients: Sequence[Examples], config: Config) -> list[list[int]]:
    """Clients that are trained in step with one another: of as many examples each, and no more than fit into
    a processor's cache. If the network cannot do that, each by itself."""
    size = COHORT if NETWORKS[config.network].in_step else 1
    groups: dict[int, list[int]] = {}
    for client in takers:
        groups.setdefault(len(clients[client].labels), []).append(client)
    return [each[start : start + size] for each in groups.values() for start in range(0, len(each), size)]


def randomness(number: int, client: int, config: Config) -> np.random.Generator | None:
    """From which a client draws the order of its examples in round `number`; None: the order stays."""
    if config.partition == "halves":
        return None
    return np.random.default_rng((config.seed, 2, number, client))


def poisoned(client: int, examples: Examples, config: Config) -> Examples:
    """What a client trains on: its examples, or, if it is hostile so, these with labels turned around."""
    return turned(examples) if client < config.hostile and config.poison == "labels" else examples


def disguised(client: int, update: Update, config: Config) -> Update:
    """What a client sends: its update, or, if it is hostile so, this reversed and longer."""
    if client < config.hostile and config.poison == "signs":
        return update._replace(change=np.float32(-REVERSED_BY) * update.change)
    return update


def mean(
    updates: Sequence[Update], random: np.random.Generator | None = None, *, weighted: bool = True
) -> np.ndarray:
    """The clients' changes averaged, weighted by their numbers of examples or not: `[P]` float32.

    Raises:
        ValueError: there are no updates.
    """
    if not updates:
        raise ValueError("no client has sent an update: there is nothing to average")
    weights = [update.examples if weighted else 1 for update in updates]
    change = np.zeros(updates[0].change.shape)
    for update, weight in zip(updates, weights, strict=True):
        change += (weight / sum(weights)) * update.change
    return change.astype(np.float32)


def server_update(
    model: np.ndarray,
    updates: Sequence[Update],
    algorithm: FedAvg | None = None,
    aggregate: Aggregate = mean,
    random: np.random.Generator | None = None,
) -> np.ndarray:
    """The next global model `[P]` float32 (w_{t+1} in the paper): one step along the clients' mean change."""
    algorithm = algorithm or FedAvg(len(model), len(updates))
    return algorithm.step(model, aggregate(updates, random)).astype(np.float32, copy=False)


def federated_rounds(
    clients: Sequence[Examples],
    config: Config,
    aggregate: Aggregate | None = None,
    algorithm: FedAvg | None = None,
    start: tuple[int, np.ndarray] | None = None,
) -> Iterator[Round]:
    """Federated averaging, or what `config.algorithm` makes of it: an endless run of rounds.

    Args:
        aggregate: how changes become one; None: their mean.
        algorithm: with what it remembers; None: a new one.
        start: the rounds that have been run, and the model that they led to; None: none, and the network's
            initial one.
    """
    algorithm = algorithm or new_algorithm(config)
    aggregate = aggregate or functools.partial(mean, weighted=algorithm.weighted)
    done, model = start or (0, NETWORKS[config.network].initial(config.seed))

    with ThreadPoolExecutor(config.workers) as pool:
        for number in itertools.count(done + 1):
            takers = chosen(config, number)
            work = functools.partial(
                take_parts, number, model=model, clients=clients, config=config, algorithm=algorithm
            )
            groups = cohorts(takers, clients, config)
            found = dict(
                pair
                for group, updates in zip(groups, pool.map(work, groups), strict=True)
                for pair in zip(group, updates, strict=True)
            )
            updates = [found[client] for client in takers]
            for client, update in zip(takers, updates, strict=True):
                algorithm.finished(client, update.change, update.steps * config.learning_rate)
            random = np.random.default_rng((config.seed, 3, number))
            model = server_update(model, updates, algorithm, aggregate, random)
            seen = sum(update.examples for update in updates) * config.local_epochs
            correct, lost = sum(update.correct for update in updates), sum(update.loss for update in updates)
            figures = (correct / seen, lost / seen) if seen else (None, None)
            yield Round(model, *figures, tuple(takers))


def new_algorithm(config: Config) -> FedAvg:
    """The algorithm that a config names, with nothing in its memory yet."""
    return ALGORITHMS[config.algorithm](
        NETWORKS[config.network].size,
        config.clients,
        server_rate=config.server_rate,
        proximal=config.proximal,
    )
