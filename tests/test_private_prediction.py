"""Private prediction: right, secret, and as expensive as it says."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from scipy import stats

from recipes import data, parties
from recipes.private_prediction import (
    Config,
    Layer,
    costs,
    cut_shares,
    fixed_point,
    images_seen_by,
    logits,
    mlp,
    predict,
    prediction,
    read,
    rehearse,
    ring,
    roles,
    run,
    weights_seen_by,
)
from recipes.private_prediction.comparison import PROTOCOLS
from recipes.private_prediction.function_secret_sharing import FunctionSecretSharing
from recipes.private_prediction.randomness import CLIENT, PARTIES, PROVIDER, SERVER, Dealer, Dealt, Stream
from recipes.private_prediction.scales import scales
from recipes.private_prediction.truth_tables import _thermometers, groups, pieces

CHANCE = 1e-6
"""How often a statistical test may fail by chance, each."""

COMPARISONS = tuple(PROTOCOLS)


def network(*sizes: int, seed: int = 0, bias: bool = True) -> list[Layer]:
    """Random layers of these sizes."""
    generator = np.random.default_rng(seed)
    return [
        Layer(
            generator.normal(0, 1.5 / math.sqrt(a), (b, a)).astype(np.float32),
            generator.normal(0, 0.2 * bias, b).astype(np.float32),
        )
        for a, b in itertools.pairwise(sizes)
    ]


def inputs_of(layers: list[Layer], count: int, seed: int = 1) -> np.ndarray:
    """Random inputs in [0, 1]."""
    return np.random.default_rng(seed).random((count, layers[0].weight.shape[1]), np.float32)


# ---- the ring


@given(st.lists(st.floats(-1000, 1000), min_size=1), st.integers(4, 20))
def test_decoding_gives_back_what_was_encoded(values, bits):
    assert np.abs(ring.decode(ring.encode(np.array(values), bits), bits) - values).max() <= 2.0 ** -(bits + 1)


@settings(deadline=None)  # the first one loads PyTorch
@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=4, max_size=4),
    st.lists(st.integers(0, 2**64 - 1), min_size=4, max_size=4),
)
def test_products_are_those_of_integers_modulo_two_to_the_64(left, right):
    a, b = (np.array(words, np.uint64).reshape(2, 2) for words in (left, right))
    exact = np.array(left, object).reshape(2, 2) @ np.array(right, object).reshape(2, 2) % 2**64
    assert ring.product(a, b).astype(object).tolist() == exact.tolist()


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20), st.sampled_from([8, 16, 24, 40, 48, 64]))
def test_words_travel_by_their_lowest_bytes(words, bits):
    words = np.array(words, np.uint64)
    message = ring.to_bytes(words, bits)
    assert len(message) == words.size * bits // 8
    assert (ring.from_bytes(message, bits, words.shape) == ring.lowest(words, bits)).all()


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20), st.integers(1, 64))
def test_planes_hold_each_bit(words, bits):
    words = np.array(words, np.uint64)
    planes = ring.planes(words, bits)
    assert planes.shape == (bits, ring.plane_bytes(words.size))
    for k in range(bits):
        assert (ring.unpacked(planes[k], words.shape) == (words >> np.uint64(k)) & np.uint64(1)).all()


def test_a_stream_is_aes_in_counter_mode():
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    stream, seed = Stream(bytes(range(16))), bytes(range(16))
    blocks = b"".join(number.to_bytes(16, "big") for number in range(3))
    expected = Cipher(algorithms.AES(seed), modes.ECB()).encryptor().update(blocks)  # noqa: S305 - the oracle
    assert stream.words((2,)).tobytes() + stream.words((32,), np.uint8).tobytes() == expected


# ---- comparisons


class Pair:
    """One of two threads that open bits to each other."""

    def __init__(self, index, mine, other):
        self.index, self.mine, self.other = index, mine, other
        self.opened = []

    def open_planes(self, share):
        self.mine.append(share)
        deadline = time.monotonic() + 20
        while len(self.other) < len(self.mine):
            assert time.monotonic() < deadline
            time.sleep(0)
        self.opened.append(share ^ self.other[len(self.mine) - 1])
        return self.opened[-1]


def less_than(name: str, public: np.ndarray, threshold: np.ndarray, bits: int, low: int = 0, draw=os.urandom):
    """[public < threshold] by a protocol, and of the low bits; and the messages of the provider, by party."""
    letters: dict[str, list[bytes]] = {party: [] for party in PARTIES}
    dealer = Dealer(lambda messages: [letters[to].append(bytes(m)) for to, m in messages.items()], draw)
    PROTOCOLS[name]().deal(dealer, public.size, bits, low, threshold)
    said, results = ([], []), [None, None]

    def play(index):
        source = Dealt(PARTIES[index], iter(letters[PARTIES[index]]).__next__)
        protocol = PROTOCOLS[name]()
        material = protocol.deal(source, public.size, bits, low, None)
        pair = Pair(index, said[index], said[1 - index])
        results[index] = protocol.less(pair, public, bits, low, material)
        assert len(pair.opened) == protocol.rounds(bits, low)

    threads = [threading.Thread(target=play, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [ring.unpacked(plane, public.shape) for plane in results[0] ^ results[1]], letters


@pytest.mark.parametrize("name", COMPARISONS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5])
def test_comparison_of_all_small_numbers(name, bits):
    public, threshold = (axis.ravel() for axis in np.meshgrid(*[np.arange(1 << bits, dtype=np.uint64)] * 2))
    assert (less_than(name, public, threshold, bits)[0][0] == (public < threshold)).all()


@pytest.mark.parametrize("name", COMPARISONS)
@settings(max_examples=60, deadline=None)
@given(data_=st.data(), bits=st.integers(1, 63))
def test_comparison_at_every_width(name, data_, bits):
    low = data_.draw(st.integers(0, bits - 1))
    top = (1 << bits) - 1
    number = st.integers(0, top) | st.sampled_from([0, top, top // 2, top // 2 + 1]).map(
        lambda x: min(x, top)
    )
    public = np.array(data_.draw(st.lists(number, min_size=1, max_size=20)), np.uint64)
    nearby = [int(x) + data_.draw(st.sampled_from([-1, 0, 1, 16, -16])) for x in public]
    threshold = np.array([min(max(t, 0), top) for t in nearby], np.uint64)
    found, _ = less_than(name, public, threshold, bits, low)
    assert (found[0] == (public < threshold)).all()
    if low:
        assert (found[1] == (ring.lowest(public, low) < ring.lowest(threshold, low))).all()


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparison_of_many_random_numbers(name):
    generator = np.random.default_rng(3)
    public, threshold = generator.integers(0, 1 << 23, (2, 20_001), np.uint64)
    assert (less_than(name, public, threshold, 23)[0][0] == (public < threshold)).all()


@pytest.mark.parametrize("bits", range(1, 64))
def test_groups_and_pieces_cover_a_number(bits):
    for low in range(bits):
        found = groups(bits, low)
        assert sum(found) == bits
        assert found[-1] == low or not low
        assert all(1 <= size <= 4 for group in found for size in pieces(group))


@pytest.mark.parametrize("name", COMPARISONS)
@pytest.mark.parametrize("threshold", [0, 5, (1 << 39) - 1])
def test_a_partys_material_looks_the_same_whatever_the_threshold(name, threshold):
    copies = 40_000
    zeros = np.zeros(copies, np.uint64)
    _, letters = less_than(name, zeros, zeros + np.uint64(threshold), 39, 16)
    dealt = [np.frombuffer(letter, np.uint8) for letter in letters[SERVER][1:]]
    for letter in dealt:
        assert uniform(letter) > CHANCE
        for part in np.array_split(letter, 16):  # rows, or levels
            assert uniform(part) > CHANCE


def uniform(values: np.ndarray) -> float:
    """The p-value of bytes being uniform."""
    return stats.chisquare(np.bincount(values, minlength=256)).pvalue


def test_material_that_is_not_masked_is_found_out():
    # The tests above do find what they are there to find.
    threshold = np.full(40_000, 5, np.uint64)
    assert uniform(_thermometers(threshold, 23, 0).ravel()) < CHANCE
    key = FunctionSecretSharing()._corrections([np.zeros((40_000, 2), np.uint64)] * 2, threshold, 23, 16)
    assert uniform(key.view(np.uint8).ravel()) < CHANCE


# ---- prediction


def error_bound(layers: list[Layer], bits: int = 16) -> float:
    """By how much logits may differ from those in the clear: rounding of inputs, weights and activations."""
    step, error, high = 2.0**-bits, 2.0 ** -(bits + 1), 1.0
    for layer in layers:
        weight = np.abs(layer.weight.astype(np.float64))
        width = weight.shape[1]
        error = (
            float(weight.sum(axis=1).max()) * error
            + width * high * step / 2
            + width * error * step
            + 2 * step
        )
        high = float((weight.sum(axis=1) * high + np.abs(layer.bias)).max())
    return error + 1e-5 * high  # and float32's own


SIZES = st.lists(st.integers(1, 14), min_size=2, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    SIZES,
    st.sampled_from(COMPARISONS),
    st.sampled_from(["label", "logits"]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(4, 20),
    st.integers(0, 99),
)
def test_what_comes_out_is_exact(sizes, comparison, reveal, count, batch, bits, seed):
    """Bit for bit what the same fixed-point numbers give in the clear, and close to what floats do."""
    layers = network(*sizes, 2 + seed % 9, seed=seed)
    inputs = inputs_of(layers, count, seed)
    seen = rehearse(layers, inputs, reveal=reveal, comparison=comparison, batch=batch, fraction_bits=bits)
    exact = fixed_point(layers, seen.terms.scales, inputs)
    expected = exact if reveal == "logits" else exact.argmax(axis=1)
    assert (seen.answers.revealed == expected).all()
    if all(scale.drop_bits in (0, bits) for scale in seen.terms.scales):  # activations have as many bits
        assert np.abs(exact - logits(layers, inputs)).max() <= error_bound(layers, bits)


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("classes", [2, 3, 16, 17, 256, 300])
def test_any_number_of_classes(comparison, classes):
    # each input lights up one class, well above the others
    layers = [Layer(np.eye(classes, dtype=np.float32), np.zeros(classes, np.float32))]
    few = np.unique(np.linspace(0, classes - 1, 7).astype(int))
    assert (
        predict(layers, np.eye(classes, dtype=np.float32)[few], comparison=comparison).tolist()
        == few.tolist()
    )


def test_of_equal_logits_the_first_is_the_label():
    layers = [Layer(np.ones((12, 3), np.float32), np.zeros(12, np.float32))]
    assert set(predict(layers, inputs_of(layers, 50))) == {0}
    layers = [Layer(np.repeat([[0.0], [1.0]], 6, axis=0).astype(np.float32), np.zeros(12, np.float32))]
    assert set(predict(layers, np.ones((50, 1)))) == {6}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("comparison", COMPARISONS)
def test_numbers_at_the_end_of_their_range_do_not_overflow(sign, comparison):
    # all weights as large as the interval arithmetic assumes, and inputs at both ends
    for width, weight in ((7, 18.0), (126, 1.0), (127, 1.0), (128, 1.0), (3000, 3.0)):
        layers = [
            Layer(np.full((2, width), sign * weight, np.float32), np.zeros(2, np.float32)),
            Layer(np.array([[1.0, 0], [0, 1.5]], np.float32), np.zeros(2, np.float32)),
        ]
        ends = np.array([np.zeros(width), np.ones(width)], np.float32)
        revealed = predict(layers, ends, reveal="logits", comparison=comparison)
        assert np.abs(revealed - logits(layers, ends)).max() <= error_bound(layers)


def test_a_range_is_taken_as_inputs_are_in_float32():
    layers = [Layer(np.array([[1], [-1]], np.float32), np.zeros(2, np.float32))]
    largest = np.full((1, 1), 2.0**28, np.float32)
    assert predict(layers, largest, fraction_bits=1, highest=2.0**28 - 7).tolist() == [0]


def test_inputs_may_have_any_range():
    layers = network(20, 10, 4)
    inputs = inputs_of(layers, 30) * 3.3 - 0.5
    revealed = predict(layers, inputs, reveal="logits", lowest=-0.5, highest=2.8)
    assert np.abs(revealed - logits(layers, inputs)).max() <= 4 * error_bound(layers)


@pytest.mark.parametrize("bits", [4, 10, 20])
def test_fraction_bits_set_the_precision(bits):
    layers = network(30, 20, 5)
    inputs = inputs_of(layers, 200)
    error = np.abs(
        predict(layers, inputs, reveal="logits", fraction_bits=bits) - logits(layers, inputs)
    ).max()
    assert error <= error_bound(layers, bits)
    assert error > error_bound(layers, bits) / 1000  # fewer bits do cost precision


def test_deep_networks_lose_precision_before_they_overflow():
    layers = network(50, *[200] * 9, 4)
    inputs = inputs_of(layers, 20)
    found = scales(layers, 16, 0, 1)
    assert {scale.input_bits for scale in found[1:]} != {16}
    assert all(scale.ring_bits <= 64 and scale.ring_bits % 8 == 0 for scale in found)
    clear = logits(layers, inputs)
    revealed = predict(layers, inputs, reveal="logits")
    assert (revealed == fixed_point(layers, found, inputs)).all()
    assert np.abs(revealed - clear).max() < 0.02 * np.abs(clear).max()


@pytest.mark.parametrize(("lowest", "highest"), [(0, math.inf), (math.nan, 1), (-math.inf, 0), (1, 0)])
def test_a_range_that_is_none_is_refused(lowest, highest):
    with pytest.raises(ValueError, match="inputs must lie in a range"):
        scales(network(3, 2), 16, lowest, highest)


def test_numbers_that_cannot_fit_are_refused():
    with pytest.raises(ValueError, match=r"layer 2 can give numbers of .*, too large"):
        rehearse([Layer(np.full((3, 3), 3e7, np.float32), np.zeros(3, np.float32))] * 2, np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (np.full((2, 5), 1.01), "inputs lie between 1.01 and 1.01, but the server takes them from 0 to 1"),
        (np.full((2, 5), -0.01), "inputs lie between"),
        (np.full((2, 5), np.nan), "inputs lie between nan"),
        (np.zeros((2, 6)), "the network takes 5 inputs, and an image has 6 pixels"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs, said):
    with pytest.raises(ValueError, match=said):
        predict(network(5, 4, 3), inputs)


def test_the_server_decides_what_is_revealed():
    layers, order = network(5, 4, 3), roles.Order("tables", "logits")
    offered = roles.terms(layers, 16, 0.0, 1.0, "label")

    def session(ask):
        parties.run_threads(
            {
                CLIENT: ask,
                SERVER: lambda network: roles.answer(network, layers, offered),
                PROVIDER: lambda network: roles.provide(network),
            }
        )

    with pytest.raises(ValueError, match="the server reveals labels only"):
        session(lambda network: roles.ask(network, np.zeros((1, 5)), 1, order))

    def insists(network):  # a client that does not ask itself whether it may
        network.receive(SERVER)
        network.send(dict.fromkeys((SERVER, PROVIDER), order.message()))
        network.receive(SERVER)

    with pytest.raises(ValueError, match="this server reveals labels only"):
        session(insists)


# ---- what everybody sees


def views(layers, inputs, sessions, **options):
    """Of many sessions, by role and place: all that was received there, one after the other."""
    collected: dict[tuple[str, int, str], list[bytes]] = {}
    for _ in range(sessions):
        rehearsal = rehearse(layers, inputs, **options)
        for role in PARTIES:
            for place, (sender, message) in enumerate(rehearsal.received[role]):
                collected.setdefault((role, place, sender), []).append(message)
    return collected


SECRETS = {
    "zeros": (np.zeros((64, 8), np.float32), 0.0),
    "ones": (np.ones((64, 8), np.float32), 1.0),
}


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("reveal", ["label", "logits"])
@pytest.mark.parametrize("secret", SECRETS)
def test_every_message_of_a_session_is_uniform_whatever_the_secrets(secret, reveal, comparison):
    """Image and weights all zero, or all one: the bytes that either party receives tell nothing of it."""
    inputs, weight = SECRETS[secret]
    layers = [
        Layer(np.full(shape, weight, np.float32), np.full(shape[0], weight, np.float32))
        for shape in ((8, 8), (3, 8))
    ]
    seen = views(layers, inputs, 40, reveal=reveal, comparison=comparison)
    tested = 0
    for (role, place, sender), messages in seen.items():
        if (place == 0 and sender == SERVER) or len(set(map(len, messages))) > 1:
            continue  # the announcement
        if len(messages[0]) < 8 or b"{" in messages[0][:1]:
            continue  # numbers of images, orders
        content = np.frombuffer(b"".join(messages), np.uint8)
        assert uniform(content) > CHANCE, (role, place, sender, len(messages[0]))
        tested += 1
    assert tested >= (20 if reveal == "label" else 14) - 8 * (comparison == "fss")


@pytest.mark.parametrize("comparison", COMPARISONS)
def test_what_is_opened_is_uniform(comparison):
    """What both parties sent in a round, put together, is what both know then."""
    layers = [Layer(np.ones(shape, np.float32), np.ones(shape[0], np.float32)) for shape in ((8, 8), (3, 8))]
    opened: dict[int, list[np.ndarray]] = {}
    for _ in range(60):
        rehearsal = rehearse(layers, np.ones((64, 8), np.float32), comparison=comparison)
        from_server, from_client = (
            [m for sender, m in rehearsal.received[role] if sender == other]
            for role, other in ((CLIENT, SERVER), (SERVER, CLIENT))
        )
        first, second = (scale.ring_bits for scale in rehearsal.terms.scales)
        bits_between = {"tables": [0, 0, 0], "fss": [0]}[comparison]  # of pieces, groups, signs
        rounds = [first, *bits_between, second, second, *bits_between, 8]
        mine, other = from_client[3:], from_server[4:]  # after order, number, input; terms, weights, ready
        for number, (bits, one, two) in enumerate(zip(rounds, mine, other, strict=False)):
            assert len(one) == len(two)
            both = (np.frombuffer(message, np.uint8) for message in (one, two))
            if bits == 0:
                known = np.bitwise_xor(*both)
            elif bits == 8:
                known = np.add(*both) % 4  # ranks are masked modulo 4
            else:
                size = (len(one) * 8 // bits,)
                words = sum(ring.from_bytes(message, bits, size) for message in (one, two))
                known = np.frombuffer(ring.to_bytes(words, bits), np.uint8)
            opened.setdefault(number, []).append(known)
    assert len(opened) == (10 if comparison == "tables" else 6)
    for number, parts in opened.items():
        values = np.concatenate(parts)
        classes = 4 if number == len(opened) - 1 else 256
        assert stats.chisquare(np.bincount(values, minlength=classes)).pvalue > CHANCE, number


def test_a_networks_answers_do_not_depend_on_the_shares():
    """Who asks for the same again and again gets the same, and learns nothing more."""
    layers = network(6, 30, 3)
    inputs = np.repeat(inputs_of(layers, 1), 500, axis=0)
    assert len(np.unique(predict(layers, inputs, reveal="logits"), axis=0)) == 1


def test_the_client_learns_the_label_and_nothing_else_from_the_last_message():
    """The server's share of the label is uniform by itself; with the client's it is the label."""
    layers = [Layer(np.eye(3, dtype=np.float32), np.zeros(3, np.float32))]
    last = []
    for _ in range(60):
        rehearsal = rehearse(layers, np.eye(3, dtype=np.float32)[[2] * 64])
        assert (rehearsal.answers.revealed == 2).all()
        last.append(rehearsal.received[CLIENT][-1][1])
    assert uniform(np.frombuffer(b"".join(last), np.uint8)) > CHANCE


def test_masks_that_are_used_twice_are_found_out():
    layers = network(8, 8, 3)

    def masked(inputs, draw):
        received = rehearse(layers, inputs, draw=draw).received[SERVER]
        message = next(m for sender, m in received if sender == CLIENT and len(m) == 64 * 8 * 5)
        return ring.from_bytes(message, 40, (64, 8))

    def difference(draw):
        inputs = inputs_of(layers, 64)
        return np.frombuffer(ring.to_bytes(masked(inputs, draw) - masked(inputs / 2, draw), 40), np.uint8)

    assert uniform(difference(os.urandom)) > CHANCE
    assert uniform(difference(lambda count: b"7" * count)) < CHANCE


def test_nothing_is_sent_to_the_provider_but_sizes():
    layers, inputs = network(8, 6, 3), inputs_of(network(8, 6, 3), 10)
    received = rehearse(layers, inputs, batch=4).received[PROVIDER]
    assert [sender for sender, _ in received] == [SERVER, CLIENT] + [CLIENT] * 4
    offered = json.loads(received[0][1])
    assert set(offered) == {"version", "scales", "lowest", "highest", "reveal"}
    assert [int.from_bytes(message, "little") for _, message in received[2:]] == [4, 4, 2, 0]


def test_a_provider_that_takes_sides_gives_everything_away():
    layers, inputs = network(30, 20, 5), inputs_of(network(30, 20, 5), 6)
    rehearsal = rehearse(layers, inputs, batch=4)
    assert np.abs(images_seen_by(rehearsal, provider_helps=True) - inputs[:4]).max() <= 2**-17
    for found, layer in zip(weights_seen_by(rehearsal, provider_helps=True), layers, strict=True):
        assert np.abs(found.weight - layer.weight).max() <= 2**-17
        assert np.abs(found.bias - layer.bias).max() <= 2**-17
    alone = images_seen_by(rehearsal, provider_helps=False)
    assert abs(stats.spearmanr(alone.ravel(), inputs[:4].ravel()).correlation) < 0.45  # 120 pixels: p < 1e-6
    alone = weights_seen_by(rehearsal, provider_helps=False)[0].weight
    assert (
        abs(stats.spearmanr(alone.ravel(), layers[0].weight.ravel()).correlation) < 0.2
    )  # 600 weights: p < 1e-6


@pytest.mark.parametrize("value", [1 << 50, 1 << 57, -(1 << 58), 3 << 59, 1 << 62])
def test_cut_shares_fail_as_often_as_they_should(value):
    trials = 200_000
    seen = cut_shares(value, 16, trials, np.random.default_rng(4))
    assert seen.expected == abs(value) / 2**64
    assert stats.binomtest(round(seen.failures * trials), trials, seen.expected).pvalue > CHANCE


def test_cut_shares_tell_what_they_should_not():
    """The result depends on one's own share; how, depends on the bits that were cut."""
    for low in (1 << 14, 1 << 15, 3 << 14):
        seen = cut_shares((5 << 16) + low, 16, 100_000, np.random.default_rng(4))
        share = low / (1 << 16)  # the correlation of a uniform number with its being below or above that
        assert abs(seen.correlation) == pytest.approx(math.sqrt(3 * share * (1 - share)), abs=0.02)


# ---- what it costs


@pytest.mark.parametrize("comparison", COMPARISONS)
@pytest.mark.parametrize("reveal", ["label", "logits"])
@pytest.mark.parametrize("sizes", [(784, 50, 10), (6, 5), (20, 30, 7, 3), (9, 40, 300), (12, 11, 10, 9, 8)])
@pytest.mark.parametrize("batch", [1, 7])
def test_costs_are_those_of_the_formulas(sizes, comparison, reveal, batch):
    layers = network(*sizes)
    seen = rehearse(layers, inputs_of(layers, 10), comparison=comparison, reveal=reveal, batch=batch)
    batches = [batch] * (10 // batch) + [10 % batch] * (10 % batch > 0)
    expected = costs.session(seen.terms.scales, batches, comparison, reveal)
    assert list(expected) == list(seen.answers.report["steps"])
    client, server, provider = (seen.reports[role]["steps"] for role in roles.ROLES)
    for step, cost in expected.items():
        dealt = provider.get("seeds" if step == "weights" else step, [0, 0])
        assert (client[step][1], server[step][1], dealt[1]) == (cost.client, cost.server, cost.offline)
        assert client[step][0] == server[step][0] == cost.rounds


def test_rounds_and_bytes_of_the_mnist_network():
    found = scales(mlp.read(mlp.SHIPPED), 16, 0, 1)
    for comparison, rounds, each in (("tables", 12, 19_500), ("fss", 8, 16_600)):
        steps = costs.query(found, 64, comparison, "label")
        assert sum(step.rounds for step in steps.values()) == rounds
        assert sum(step.online for step in steps.values()) <= 64 * each


def test_time_is_projected_from_rounds_and_the_longer_of_two_messages():
    steps = {"a": costs.Cost(3, 1000, 4000, 9), "b": costs.Cost(2, 500, 0, 9)}
    assert costs.projected(steps, 0.5, 0.1, 1000.0) == pytest.approx(0.5 + 5 * 0.05 + 4.5)


# ---- weights from elsewhere


def in_the_clear(modules, x):
    """What PyTorch makes of modules with ReLU between them."""
    first, *others = modules
    x = first(x)
    for module in others:
        x = module(x.relu())
    return x.detach().numpy()


def test_a_state_dict_is_read_in_its_own_order(tmp_path):
    import torch

    modules = {name: torch.nn.Linear(8, 8) for name in ("stem", "block", "alpha", "head")}
    torch.save(torch.nn.Sequential(OrderedDict(modules)).state_dict(), tmp_path / "net.pt")
    x = torch.rand(5, 8)
    assert np.allclose(
        logits(read(tmp_path / "net.pt"), x.numpy()), in_the_clear(modules.values(), x), atol=1e-5
    )


def test_layers_that_fit_together_in_one_way_only_need_no_numbers(tmp_path):
    layers = network(7, 5, 3, 4)
    tensors = dict(
        zip(("out.weight", "mid.weight", "in.weight"), [layer.weight for layer in layers], strict=True)
    )
    save_file(tensors, tmp_path / "net.safetensors")
    assert [layer.weight.shape for layer in read(tmp_path / "net.safetensors")] == [(5, 7), (3, 5), (4, 3)]


def test_many_layers_without_numbers_are_refused_at_once(tmp_path):
    widths = range(30, 10, -1)
    layers = {f"{chr(97 + a)}.weight": np.ones((a, a + 1), np.float32) for a in widths if a < 26}
    save_file(layers, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="do not tell their order"):
        read(tmp_path / "net.safetensors")


def test_a_safetensors_file_is_read_in_the_order_of_its_names(tmp_path, empty_models):
    import torch

    modules = [torch.nn.Linear(8, 8) for _ in range(12)]
    tensors = {
        f"fc{n}.{kind}": one for n, module in enumerate(modules) for kind, one in module.state_dict().items()
    }
    save_file({name: one.numpy() for name, one in tensors.items()}, tmp_path / "net.safetensors")
    x = torch.rand(5, 8)
    layers = read(tmp_path / "net.safetensors")
    assert np.allclose(logits(layers, x.numpy()), in_the_clear(modules, x), atol=1e-5)
    mlp.write(layers, {})
    assert (empty_models / "mnist_mlp.safetensors").exists()
    for one, other in zip(layers, read(mlp.SHIPPED), strict=True):
        assert (one.weight == other.weight).all()
        assert (one.bias == other.bias).all()


@pytest.mark.parametrize("kind", ["float16", "float64", "bfloat16"])
def test_weights_of_other_types_are_read(kind, tmp_path):
    import torch

    torch.save({"0.weight": torch.ones(2, 3, dtype=getattr(torch, kind))}, tmp_path / "net.pth")
    (layer,) = read(tmp_path / "net.pth")
    assert layer.weight.dtype == np.float32
    assert layer.weight.tolist() == [[1, 1, 1]] * 2
    assert layer.bias.tolist() == [0, 0]


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_nothing_in_a_file_is_executed(tmp_path):
    import torch

    victim = tmp_path / "executed"
    for name, save in (("a.pt", torch.save), ("b.pt", lambda x, path: path.write_bytes(pickle.dumps(x)))):
        save({"fc1.weight": Evil(str(victim))}, tmp_path / name)
        with pytest.raises(ValueError, match="must hold tensors and nothing else"):
            read(tmp_path / name)
    assert not victim.exists()


def bad_files(folder):
    """Files that are no network, and what is said of them."""
    import torch

    one = torch.ones(4, 3)
    tensors = {
        "conv": ({"conv.weight": torch.ones(2, 1, 3, 3)}, "conv has a weight of shape"),
        "bias": ({"fc1.weight": one, "fc1.bias": torch.ones(5)}, "a bias of shape"),
        "chain": ({"fc1.weight": one, "fc2.weight": one}, "fc2 takes 3 inputs where"),
        "nan": ({"fc1.weight": one * float("nan")}, "not finite"),
        "norm": ({"fc1.weight": one, "bn.running_mean": torch.ones(4)}, "bn.running_mean is neither"),
        "none": ({}, "there is none"),
        "empty": ({"fc1.weight": torch.ones(0, 3)}, "shape"),
        "nested": ({"state_dict": {"fc1.weight": one}}, "is no state dict"),
        "list": ([one], "is no state dict"),
        "complex": ({"fc1.weight": one + 0j}, "no array of real numbers"),
        "number": ({1: one}, "no array of real numbers"),
        "sparse": ({"fc1.weight": one.to_sparse()}, "no array of real numbers"),
        "part": ({"fc1.weight": torch.zeros(1).expand(2000, 2000)}, "only a part"),
    }
    for name, (content, said) in tensors.items():
        torch.save(content, folder / f"{name}.pt")
        yield folder / f"{name}.pt", said
    for name, content, said in (
        ("text.pt", b"hello", "cannot be read as a PyTorch state dict"),
        ("zero.pt", b"", "cannot be read as a PyTorch state dict"),
        ("text.safetensors", b"hello", "is no safetensors file"),
        ("zero.safetensors", b"", "is no safetensors file"),
    ):
        (folder / name).write_bytes(content)
        yield folder / name, said
    save_file(
        {"stem.weight": np.ones((3, 3), np.float32), "head.weight": np.ones((3, 3), np.float32)},
        folder / "names.safetensors",
    )
    yield folder / "names.safetensors", "do not tell their order"
    whole = (data_path := folder / "cut.safetensors")
    save_file({"fc1.weight": np.ones((9, 9), np.float32)}, whole)
    data_path.write_bytes(data_path.read_bytes()[:-40])
    yield data_path, "is no safetensors file"


def test_files_that_are_no_network_are_refused(tmp_path):
    for path, said in bad_files(tmp_path):
        with pytest.raises(ValueError, match=said) as error:
            read(path)
        assert path.name in str(error.value)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read(tmp_path / "absent.pt")


def test_the_shipped_network_is_as_good_as_it_says(real_mnist):
    images = data.scale(real_mnist.test.images).reshape(-1, 784)
    layers = read(mlp.SHIPPED)
    assert [layer.weight.shape for layer in layers] == [(500, 784), (10, 500)]
    right = int(np.sum(logits(layers, images).argmax(axis=1) == real_mnist.test.labels))
    assert right >= 9800


def test_training_learns_and_can_be_repeated():
    layers, accuracy = mlp.train("embedded", epochs=1)
    again, _ = mlp.train("embedded", epochs=1)
    assert accuracy > 0.7
    assert all((a.weight == b.weight).all() for a, b in zip(layers, again, strict=True))


# ---- real data, real processes


def test_all_test_images(real_mnist, monkeypatch):
    result = run(Config(data="real", images=10_000))
    assert result.images == 10_000
    assert result.agreement == 10_000
    assert result.disagreements == ()
    assert result.accuracy == result.plaintext_accuracy >= 0.98
    assert result.max_logit_error < 0.001
    offered = prediction.server_terms(read(mlp.SHIPPED), Config())
    expected = costs.session(offered.scales, [1000] * 10, "tables", "label")
    assert result.bytes_weights == expected["weights"].server
    assert result.bytes_online + result.bytes_weights == sum(step.online for step in expected.values())
    assert result.bytes_offline == sum(step.offline for step in expected.values())
    assert result.rounds_online == 12


def test_stand_ins_over_a_slow_line(tmp_path):
    """Messages that are held up take the time that they should, and change nothing else."""
    import torch

    torch.save({"a.weight": torch.randn(10, 784) / 10}, tmp_path / "net.pt")
    config = Config(
        data="embedded", model=str(tmp_path / "net.pt"), images=20, batch=10, comparison="fss",
        reveal="logits", imitate=True, round_trip=400, bandwidth=1,
    )  # fmt: skip
    result = run(config)
    assert result.agreement == 20
    assert result.rounds_online == 2  # the masked input, and the logits
    bits = result.steps["input"]["client_bytes"] / 2 * 8
    assert result.seconds_imitated >= 2 * 0.2 + bits / 1e6
    assert result.seconds_imitated > result.seconds_online / 2 + 0.3


@pytest.fixture
def started(root):
    """Start `python -m recipes.private_prediction …`; whatever still runs is killed in the end."""
    processes = []

    def start(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "recipes.private_prediction", "--data", "embedded", *arguments]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=root))
        return processes[-1]

    yield start
    for process in processes:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(process.pid).children():
                child.kill()
        process.kill()
        process.communicate()


def child(process: subprocess.Popen, role: str) -> psutil.Process:
    """The process of a role, once it has begun."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for one in psutil.Process(process.pid).children():
            with contextlib.suppress(psutil.Error):
                if one.cmdline()[-1:] == [role]:
                    return one
        time.sleep(0.02)
    raise AssertionError(f"no {role} was seen")


@pytest.mark.parametrize(("moment", "victim"), [*((0.1, role) for role in roles.ROLES), (4.0, SERVER)])
def test_a_role_that_is_killed_ends_all_in_five_seconds_with_one_line(started, victim, moment):
    process = started("--images", "2000", "--batch", "1")
    killed = child(process, victim)
    time.sleep(moment)
    assert process.poll() is None
    start = time.monotonic()
    killed.kill()
    output, errors = process.communicate(timeout=30)
    assert time.monotonic() - start < 5
    assert (process.returncode, output) == (1, "")
    said = f"recipes.private_prediction: {victim} was killed (SIGKILL); the others have been stopped"
    assert errors.splitlines() == [said]


# ---- one role at a time


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture
def places(tmp_path):
    """Flags that all three roles share."""
    (tmp_path / "secret").write_text("a secret of many bytes\n")
    ports = free_ports(3)
    flags = [f"--{role}=127.0.0.1:{port}" for role, port in zip(roles.ROLES, ports, strict=True)]
    return [*flags, "--secret-file", str(tmp_path / "secret")], dict(zip(roles.ROLES, ports, strict=True))


def ended(process: subprocess.Popen) -> tuple[int, str, list[str]]:
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, [line for line in errors.splitlines() if "waiting for" not in line]


def test_three_roles_by_themselves(started, places):
    flags, _ = places
    asked = {CLIENT: ["--images", "30", "--batch", "20"], SERVER: [], PROVIDER: []}
    running = {role: started("--role", role, *flags, *asked[role]) for role in roles.ROLES}
    for role, process in running.items():
        status, output, errors = ended(process)
        assert (status, errors) == (0, [])
        assert output.startswith(f"{role}: 30 images")
    assert "right" in output or role != CLIENT


def speak(port: int, message: bytes) -> bytes:
    """Connect as soon as somebody listens, say something, and hear the answer."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(message)
                return connection.recv(1000)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_garbage_and_strangers_are_refused_and_the_run_goes_on(started, places):
    flags, ports = places
    running = {CLIENT: started("--role", CLIENT, *flags, "--images", "5")}
    hello = {"protocol": "secure-private-ai-cookbook parties 0", "from": SERVER, "to": CLIENT, "nonce": "00"}
    body = json.dumps(hello).encode()
    for message in (b"GET / HTTP/1.1\r\n\r\n", len(body).to_bytes(4, "little") + body):
        assert speak(ports[CLIENT], message) == b""
    running |= {role: started("--role", role, *flags) for role in (SERVER, PROVIDER)}
    said = {role: ended(process) for role, process in running.items()}
    assert {role: status for role, (status, _, _) in said.items()} == dict.fromkeys(roles.ROLES, 0)
    strangers = said[CLIENT][2]
    assert len(strangers) == 2
    stranger = r"client: a stranger at 127\.0\.0\.1:\d+ was turned away: it (speaks another version|does not)"
    assert all(re.match(stranger, line) for line in strangers)


def test_a_wrong_secret_is_found_and_the_others_go_on_waiting(started, places, tmp_path):
    flags, _ = places
    (tmp_path / "other").write_text("another secret of many bytes")
    client = started("--role", CLIENT, *flags, "--images", "5")
    wrong = started("--role", SERVER, *flags[:3], "--secret-file", str(tmp_path / "other"))
    said = "recipes.private_prediction: server and client have not been given the same secret"
    assert ended(wrong) == (1, "", [said])
    assert client.poll() is None
    right = [started("--role", role, *flags) for role in (SERVER, PROVIDER)]
    assert [ended(process)[0] for process in (client, *right)] == [0, 0, 0]


@pytest.mark.parametrize("victim", roles.ROLES)
def test_a_role_by_itself_that_is_killed_is_named_by_the_others(started, places, victim):
    flags, _ = places
    asked = ["--images", "2000", "--batch", "1"]
    running = {
        role: started("--role", role, *flags, *(asked if role == CLIENT else [])) for role in roles.ROLES
    }
    for process in running.values():
        wait_for_cpu(process)
    running[victim].kill()
    start = time.monotonic()
    for role in set(roles.ROLES) - {victim}:
        status, output, errors = ended(running[role])
        assert (status, output) == (1, "")
        assert len(errors) == 1
        assert errors[0].endswith((f"{role} lost {victim}", f"that {victim} is lost"))
    assert time.monotonic() - start < 5


def wait_for_cpu(process: subprocess.Popen) -> None:
    """Until the session is under way: the role waits no more, and computes."""
    line = process.stderr.readline()
    assert "waiting for the other two" in line
    spent = sum(psutil.Process(process.pid).cpu_times()[:2])
    deadline = time.monotonic() + 60
    while sum(psutil.Process(process.pid).cpu_times()[:2]) < spent + 0.3:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--images", "0"], "images must be at least 1, not 0"),
        (["--images", "999999"], "images must be at most"),
        (["--batch", "-1"], "batch must be at least 1"),
        (["--fraction-bits", "40"], "fraction_bits must be from 4 to 20, not 40"),
        (["--std", "0"], "std must be from 1e-06"),
        (["--std", "1e-40"], "std must be from 1e-06"),
        (["--mean", "1e300"], "mean must be a number"),
        (["--bandwidth", "1e-320"], "bandwidth must be from 0.001"),
        (["--role", "client", "--secret-file", "README.md", "--client", "127.0.0.1:7842"], "three addresses"),
        (["--mean", "nan"], "mean must be a number"),
        (["--round-trip", "-1"], "round_trip must be"),
        (["--reveal", "everything"], "reveal"),
        (["--comparison", "guess"], "comparison"),
        (["--dataset", "cifar-100"], "takes 784 inputs, and an image of cifar-100 has 3072 numbers"),
        (["--role", "server"], "--role server needs --secret-file"),
        (["--role", "client", "--secret-file", "/dev/null"], "/dev/null has 0 bytes"),
        (["--role", "client", "--secret-file", "README.md", "--server", "here"], "server must be host:port"),
        (["--role", "client", "--secret-file", "README.md", "--key", "README.md"], "go together"),
        (["--train", "--model", "x.pt"], "train writes"),
        (["--train"], "train needs the real MNIST"),
    ],
)
def test_bad_input_is_one_line(refused, arguments, said):
    assert said in refused("private_prediction", "--data", "embedded", *arguments)


def test_a_role_by_itself_says_in_json_what_it_did(started, places, tmp_path):
    flags, _ = places
    out = tmp_path / "out.json"
    asked = {
        CLIENT: ["--images", "3", "--json", str(out), "--reveal", "logits"],
        SERVER: ["--reveal", "logits"],
    }
    running = [started("--role", role, *flags, *asked.get(role, [])) for role in roles.ROLES]
    assert [ended(process)[0] for process in running] == [0, 0, 0]
    written = json.loads(out.read_text())
    assert written["result"]["images"] == 3
    assert written["config"]["secret_file"] == flags[-1]


def test_a_missing_network_is_the_environments_fault(python):
    done = python("-m", "recipes.private_prediction", "--data", "embedded", "--model", "absent.pt")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "recipes.private_prediction: absent.pt: there is no such file\n"


# ---- PySyft


def test_a_datasite_predicts_under_approval_and_its_owner_sees_the_images():
    from recipes.private_prediction import datasite

    layers = network(20, 15, 4)
    inputs = inputs_of(layers, 60)
    report = datasite.predict([(layer.weight, layer.bias) for layer in layers], inputs)
    assert (report.labels == logits(layers, inputs).argmax(axis=1)).all()
    assert report.refused_before_approval
    assert report.owner_read_the_images
    assert report.answered_again
    assert report.answered_other_images
    assert report.mock_agreement < 60


def test_a_datasite_refuses_shapes_that_do_not_fit():
    from recipes.private_prediction import datasite

    with pytest.raises(ValueError, match="do not fit"):
        datasite.predict([(np.ones((3, 4)), np.ones(3))], np.ones((2, 5)))


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_the_client_may_have_inputs_of_its_own(kind, tmp_path):
    import torch

    layers, scale = network(12, 9, 4), 255 if kind == np.uint8 else 1
    torch.save(
        {f"{n}.{k}": torch.from_numpy(v) for n, layer in enumerate(layers) for k, v in vars(layer).items()},
        tmp_path / "net.pt",
    )
    inputs = (inputs_of(layers, 30) * scale).astype(kind).reshape(30, 3, 4)
    np.save(tmp_path / "inputs.npy", inputs)
    files = {"inputs": tmp_path / "inputs.npy", "output": tmp_path / "labels.npy"}
    result = run(Config(model=str(tmp_path / "net.pt"), batch=20, **files))
    clear = logits(layers, inputs.reshape(30, 12).astype(np.float32) / np.float32(scale)).argmax(axis=1)
    assert np.load(tmp_path / "labels.npy").tolist() == clear.tolist()
    assert (result.images, result.agreement, result.accuracy, result.data) == (30, 30, None, "file")


def test_inputs_that_are_none_are_refused(tmp_path):
    for name, content, said in (
        ("text", b"hello", "is no .npy file"),
        ("empty", b"", "is no .npy file"),
        ("pickle", np.array([{}], object), "is no .npy file"),
        ("flat", np.zeros(5), "must hold one array"),
        ("words", np.array([["a"]]), "must hold one array"),
        ("large", np.full((2, 784), 255.0), "from 255 to 255: scale them"),
        ("nan", np.full((2, 784), np.nan), "scale them"),
        ("narrow", np.zeros((2, 5)), "takes 784 inputs, and an image of"),
    ):
        path = tmp_path / f"{name}.npy"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.save(path, content)
        with pytest.raises(ValueError, match=said):
            run(Config(inputs=path))
    with pytest.raises(FileNotFoundError):
        run(Config(inputs=tmp_path / "absent.npy"))
    with pytest.raises(ValueError, match="cannot be written"):
        run(Config(output=tmp_path / "absent" / "labels.npy"))


def test_a_config_is_checked_where_it_is_made():
    with pytest.raises(ValueError, match="train writes"):
        dataclasses.replace(Config(train=True), role="server")
    with pytest.raises(ValueError, match="bandwidth"):
        Config(bandwidth=math.inf)


def test_interrupting_leaves_nothing_behind(started):
    process = started("--images", "2000", "--batch", "1")
    children = [child(process, role) for role in roles.ROLES]
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "", ["recipes.private_prediction: interrupted"])
    _, alive = psutil.wait_procs(children, timeout=5)
    assert all(one.status() == psutil.STATUS_ZOMBIE for one in alive)  # if nobody collects orphans
