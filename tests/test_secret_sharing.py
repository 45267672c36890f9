"""Recipe 2: every identity on every scheme, secrecy by enumeration and by chi-square, cheaters caught."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import itertools
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction

import galois
import hypothesis.extra.numpy as hnp
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recipes import secret_sharing as ss
from recipes.secret_sharing import costs
from recipes.secret_sharing.expression import parse
from recipes.secret_sharing.links import PARTIES, Local
from recipes.secret_sharing.rehearsal import rehearse

P = ss.CHAPTER_PRIME
PRIMES = [3, 5, 101, 10007, 2**31 - 1, 2**32 - 5, 2**32 + 15, P, 281474976710597]  # the last: below 2^48
CHANCE = 1e-6  # of a statistical test to fail although all is well

quickly = settings(max_examples=25, deadline=None)

each_prime = pytest.mark.parametrize("prime", PRIMES)
SCHEMES = [
    ss.Additive(2),
    ss.Additive(3),
    ss.Additive(5, ss.Field(2**32 + 15)),
    ss.Shamir(2),
    ss.Shamir(5, threshold=2),
    ss.Shamir(4, ss.Field(281474976710597), 3),
    ss.Authenticated(2),
    ss.Authenticated(4, ss.Field(2**31 - 1)),
]
each_scheme = pytest.mark.parametrize(
    "scheme", SCHEMES, ids=lambda s: f"{s.name}-{s.parties}-{s.field.prime}"
)
schemes = st.sampled_from(SCHEMES)


def centred(value: int, prime: int) -> int:
    """An integer modulo a prime, between -(prime - 1) / 2 and (prime - 1) / 2."""
    return (value + prime // 2) % prime - prime // 2


def edges(field: ss.Field) -> np.ndarray:
    """The integers at which something might go wrong."""
    h = field.largest
    return np.array([0, 1, -1, 2, -2, h // 2, -(h // 2), h // 2 + 1, h - 1, 1 - h, h, -h])


def pairs_of_edges(field: ss.Field) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.array(list(itertools.product(edges(field), repeat=2))).T)


@st.composite
def session_and_arrays(draw, count=2):
    """A session, and arrays of one shape of signed integers from the whole of its field."""
    scheme = draw(schemes)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=3))
    h = scheme.field.largest
    elements = st.one_of(st.integers(-h, h), st.sampled_from(list(map(int, edges(scheme.field)))))
    arrays = [draw(hnp.arrays(np.int64, shape, elements=elements)) for _ in range(count)]
    return ss.Session(scheme), *arrays


def fixed(*residues: np.ndarray):
    """A source of randomness for fields below 2^32 that gives just these residues, in turn."""
    stream = iter(residues)

    def draw(count: int) -> bytes:
        values = np.asarray(next(stream), np.uint32).ravel()
        assert count == 6 * values.size
        return values.tobytes() + bytes(2 * values.size)

    return draw


# ---- the field


@each_prime
def test_field_arithmetic_is_pythons(prime):
    field = ss.Field(prime)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, prime, (2, 3000), dtype=np.uint64)
    x[:4], y[:4] = [0, 1, prime - 1, prime - 1], [0, prime - 1, prime - 1, 1]
    operations = {"add": int.__add__, "subtract": int.__sub__, "multiply": int.__mul__}
    for name, operation in operations.items():
        result = getattr(field, name)(x, y)
        assert result.dtype == np.uint64
        assert result.tolist() == [operation(int(a), int(b)) % prime for a, b in zip(x, y, strict=True)], name
    inverses = field.inverse(x[1:])
    assert (field.multiply(inverses, x[1:]) == (x[1:] != 0)).all()
    assert field.power(x, 5).tolist() == [pow(int(a), 5, prime) for a in x]


@pytest.mark.parametrize("prime", [101, 10007])
def test_field_arithmetic_is_that_of_galois(prime):
    oracle, field = galois.GF(prime), ss.Field(prime)
    x, y = np.random.default_rng(1).integers(1, prime, (2, 500), dtype=np.uint64)
    a, b = oracle(x.astype(np.int64)), oracle(y.astype(np.int64))
    assert (field.add(x, y) == np.array(a + b)).all()
    assert (field.subtract(x, y) == np.array(a - b)).all()
    assert (field.multiply(x, y) == np.array(a * b)).all()
    assert (field.inverse(x) == np.array(a**-1)).all()


def test_the_largest_products_are_exact():
    prime = PRIMES[-1]
    field = ss.Field(prime)
    x = np.arange(prime - 1, prime - 200_001, -1, dtype=np.int64).astype(np.uint64)
    y = field.random((200_000,))
    products = field.multiply(x, y).tolist()
    assert products == [int(a) * int(b) % prime for a, b in zip(x, y, strict=True)]


def test_large_arrays_go_in_pieces_and_broadcast_alike():
    field = ss.Field()
    x, y = field.random((300, 400)), field.random((400,))
    pieces = np.stack([field.multiply(row, y) for row in x])
    assert (field.multiply(x, y) == pieces).all()
    assert (field.add(x.T, y[:, None]) == field.add(x, y).T).all()
    signed = field.decode(x)
    assert signed.min() < 0 < signed.max()
    assert (field.encode(signed) == x).all()
    many = np.full((100_000, 2), np.uint64(P - 1))
    assert field.total(many).tolist() == [P - 100_000] * 2
    assert (field.total(x) == np.array([sum(map(int, column)) % P for column in x.T], np.uint64)).all()


def is_field(prime: int) -> bool:
    try:
        ss.Field(prime)
    except ValueError:
        return False
    return True


def test_only_odd_primes_below_2_48_are_fields():
    sieve = [n for n in range(3, 3000) if all(n % d for d in range(2, int(n**0.5) + 1))]
    assert [n for n in range(3000) if is_field(n)] == sieve
    for composite in (-3, 0, 1, 2, 561, 3215031751, 2**48 - 1, P * 3, (2**24 - 3) ** 2, 2**61 - 1):
        with pytest.raises(ValueError, match="odd prime below 2"):
            ss.Field(composite)


@each_prime
def test_integers_beyond_the_field_are_refused(prime):
    field = ss.Field(prime)
    h = field.largest
    assert field.decode(field.encode([-h, 0, h])).tolist() == [-h, 0, h]
    for beyond in (h + 1, -h - 1, 10**30, -(10**30), np.uint64(2**64 - 1), np.array([0, h + 1])):
        with pytest.raises(ValueError, match=f"from -{h} to {h}"):
            field.encode(beyond)


@pytest.mark.parametrize("bad", ["five", None, [1, "a"], 1 + 2j, {}, [None], float("nan"), [[1, 2], [3]]])
def test_what_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match=r"integer|number|shape"):
        ss.encrypt(bad)
    with pytest.raises(ValueError, match=r"integer|shape"):
        ss.Field().encode(bad)


def test_decimals_beyond_the_field_are_refused():
    limit = P // 2 / 4096
    assert ss.decrypt(ss.encrypt(limit - 1)) == limit - 1
    for beyond in (limit + 1, -limit - 1, 1e300, [0.0, 1e10]):
        with pytest.raises(ValueError, match="decimals reach from"):
            ss.encrypt(beyond)
    for nonsense in (float("nan"), float("inf"), np.array([1.0, -np.inf])):
        with pytest.raises(ValueError, match="not a finite number"):
            ss.encrypt(nonsense)


# ---- chance


def test_random_residues_are_uniform():
    # chi-square; fails by chance once in a million
    for prime in (5, 101):
        counts = np.bincount(ss.Field(prime).random((200_000,)).astype(int), minlength=prime)
        assert len(counts) == prime
        assert stats.chisquare(counts).pvalue > CHANCE


def test_random_residues_fill_the_chapters_field():
    drawn = ss.Field().random((200_000,))
    assert drawn.max() < P
    counts, _ = np.histogram(drawn.astype(float), 100, (0, P))
    assert stats.chisquare(counts).pvalue > CHANCE
    low_bits = np.bincount((drawn & np.uint64(255)).astype(int), minlength=256)
    assert stats.chisquare(low_bits).pvalue > CHANCE


def test_the_chapters_way_to_draw_is_not_uniform():
    # The same test does find what it is there to find: randint includes both ends, and 0 = P.
    randint = random.Random(0).randint  # noqa: S311 - that is the point
    counts = Counter(randint(0, 5) % 5 for _ in range(20_000))
    assert stats.chisquare([counts[residue] for residue in range(5)]).pvalue < CHANCE
    assert counts[0] / 20_000 == pytest.approx(1 / 3, abs=0.02)


def test_draws_beyond_the_prime_are_drawn_again():
    field = ss.Field(5)
    draws = [np.array([7, 4, 5, 0]), np.array([6, 1]), np.array([3])]
    assert field.random((4,), fixed(*draws)).tolist() == [4, 0, 1, 3]


def test_randomness_comes_from_the_operating_system():
    before = random.getstate()
    first, second = (ss.Field().random((4,)).tolist() for _ in range(2))
    np.random.default_rng()
    assert first != second
    assert random.getstate() == before


# ---- sharing


@each_scheme
def test_shares_reconstruct(scheme):
    secrets = np.concatenate([edges(scheme.field), np.arange(-5, 5)]).reshape(2, -1)
    residues = scheme.field.encode(secrets)
    shares = scheme.share(residues, key=np.uint64(17))
    assert shares.shape == (scheme.parties, scheme.words, *secrets.shape)
    assert shares.dtype == np.uint64
    opened, wrong = scheme.reconstruct(shares[:, 0])
    assert (scheme.field.decode(opened) == secrets).all()
    assert not wrong


def test_additive_shares_are_exactly_uniform_whatever_the_secret():
    # All that could be drawn is, once each: any two of three parties see each pair once.
    scheme = ss.Additive(3, ss.Field(5))
    drawn = np.array(list(itertools.product(range(5), repeat=2)), np.uint64).T
    for secret in range(5):
        shares = scheme.share(np.full(25, secret, np.uint64), fixed(*drawn))[:, 0]
        for two in itertools.combinations(range(3), 2):
            assert len({tuple(pair) for pair in shares[list(two)].T}) == 25


@pytest.mark.parametrize("threshold", [1, 2])
def test_shamirs_shares_are_exactly_uniform_up_to_the_threshold(threshold):
    scheme = ss.Shamir(4, ss.Field(7), threshold)
    coefficients = np.array(list(itertools.product(range(7), repeat=threshold)), np.uint64).T
    count = 7**threshold
    for secret in range(7):
        shares = scheme.share(np.full(count, secret, np.uint64), fixed(coefficients))[:, 0]
        for some in itertools.combinations(range(4), threshold):
            assert len({tuple(seen) for seen in shares[list(some)].T}) == count


def test_any_threshold_and_one_shares_reconstruct_and_fewer_are_refused():
    session = ss.Session(ss.Shamir(6, threshold=2))
    secrets = edges(session.field)
    x = session.encrypt(secrets)
    for some in itertools.combinations(range(6), 3):
        assert (session.decrypt(x, parties=some) == secrets).all()
    assert (session.decrypt(x, parties=(5, 0, 3, 1)) == secrets).all()
    for few in ((), (1,), (0, 5)):
        with pytest.raises(ValueError, match="too few: 3 are needed"):
            session.decrypt(x, parties=few)
    for wrong in ((0, 1, 6), (0, 0, 1), (-1, 0, 1)):
        with pytest.raises(ValueError, match="each must be named once"):
            session.decrypt(x, parties=wrong)
    for scheme in (ss.Shamir(5), ss.Additive(5)):
        with pytest.raises(ValueError, match="4 shares of 5 parties"):
            scheme.reconstruct(scheme.share(np.uint64(5))[:4, 0])
    additive = ss.encrypt(5)
    with pytest.raises(ValueError, match="too few: 3 are needed"):
        additive.session.decrypt(additive, parties=(0, 1))


def test_galois_finds_shamirs_polynomial():
    field = galois.GF(101)
    scheme = ss.Shamir(7, ss.Field(101), 3)
    for secret in (0, 1, 50, 100):
        shares = scheme.share(np.uint64(secret))[:, 0]
        polynomial = galois.lagrange_poly(field(list(range(1, 8))), field(shares.astype(int)))
        assert polynomial.degree <= 3
        assert int(polynomial(0)) == secret


@st.composite
def wrong_shares(draw, too_many=False):
    """A scheme, secrets, and for each element a set of parties that will be wrong."""
    parties = draw(st.integers(4, 10))
    threshold = draw(st.integers(1, parties - 3))
    correctable = (parties - threshold - 1) // 2
    size = st.just(correctable + 1) if too_many else st.integers(0, correctable)
    prime = P if too_many else draw(st.sampled_from([101, P]))
    sets = [
        draw(size.flatmap(lambda n: st.sets(st.integers(0, parties - 1), min_size=n, max_size=n)))
        for _ in range(4)
    ]
    return ss.Shamir(parties, ss.Field(prime), threshold), sets


def with_errors(scheme: ss.Shamir, sets: list[set[int]]) -> tuple[np.ndarray, np.ndarray]:
    secrets = scheme.field.random((len(sets),))
    shares = scheme.share(secrets)[:, 0]
    for element, wrong in enumerate(sets):
        for party in wrong:
            error = scheme.field.random(()) % np.uint64(scheme.field.prime - 1) + np.uint64(1)
            shares[party, element] = scheme.field.add(shares[party, element], error)
    return secrets, shares


@given(wrong_shares())
@quickly
def test_wrong_shares_are_corrected_and_named(case):
    scheme, sets = case
    secrets, shares = with_errors(scheme, sets)
    opened, blamed = scheme.reconstruct(shares)
    assert (opened == secrets).all()
    assert blamed == set().union(*sets)


@given(wrong_shares(too_many=True))
@quickly
def test_more_wrong_shares_than_can_be_corrected_are_reported(case):
    # By chance they fit another polynomial; over the chapter's field once in 10^10 runs
    scheme, sets = case
    _, shares = with_errors(scheme, sets)
    with pytest.raises(ss.CheaterDetected, match="wrong"):
        scheme.reconstruct(shares)


def test_missing_and_wrong_shares_together():
    scheme = ss.Shamir(9, threshold=2)
    secrets, shares = with_errors(scheme, [{0, 4}] * 50)
    present = [0, 1, 3, 4, 6, 7, 8]  # seven shares, three needed, two wrong
    opened, blamed = scheme.reconstruct(shares[present], present)
    assert (opened == secrets).all()
    assert blamed == {0, 4}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ss.Additive(1), "from 2 to 100"),
        (lambda: ss.Additive(101), "from 2 to 100"),
        (lambda: ss.Additive(2.0), "parties is 2.0: it must be a whole number"),
        (lambda: ss.Additive(3, 7), r"as Field\(7\)"),
        (lambda: ss.Shamir(3, threshold=3), "from 1 to 2"),
        (lambda: ss.Shamir(3, threshold=0), "from 1 to 2"),
        (lambda: ss.Shamir(3, threshold=1.5), "from 1 to 2"),
        (lambda: ss.Shamir(5, ss.Field(5)), "more elements"),
        (lambda: ss.Session(fraction_bits=23), "from 0 to 22"),
        (lambda: ss.Session(fraction_bits="a"), "from 0 to 22"),
        (lambda: ss.Session(truncation="excat"), "must be exact or probabilistic"),
        (lambda: ss.Session(truncation="probabilistic", integer_bits=21), "from 0 to 20"),
        (lambda: ss.Session(cheater=3), "cheater is 3: it must be a whole number from 0 to 2"),
        (lambda: ss.Session(cheater=1.5), "cheater is 1.5"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- what shares say, and what they do not


@pytest.mark.parametrize(
    "scheme",
    [ss.Additive(3, ss.Field(101)), ss.Shamir(5, ss.Field(101), 2), ss.Authenticated(2, ss.Field(11))],
)
def test_every_secret_explains_what_was_seen(scheme):
    shares = scheme.share(np.uint64(7), key=np.uint64(3))[:, 0]
    for some in itertools.combinations(range(scheme.parties), scheme.needed - 1):
        seen = {party: int(shares[party]) for party in some}
        explained = scheme.explain(seen)
        missing = min(set(range(scheme.parties)) - set(some))
        assert explained[7] == shares[missing]
        assert sorted(explained) == sorted(explained.values()) == list(range(scheme.field.prime))
        for secret, share in explained.items():
            whole = {**seen, missing: share}
            if scheme.name != "shamir":
                assert sum(whole.values()) % scheme.field.prime == secret
            else:
                opened, _ = scheme.reconstruct(np.array([*whole.values()], np.uint64), [*whole])
                assert opened == secret


def test_explain_wants_a_small_field_and_one_share_too_few():
    with pytest.raises(ValueError, match="goes through 10000"):
        ss.Additive().explain({0: 1, 1: 2})
    scheme = ss.Additive(3, ss.Field(11))
    for seen in ({}, {0: 1}, {0: 1, 1: 2, 2: 3}, {0: 1, 7: 2}):
        with pytest.raises(ValueError, match="it must be 2 of the parties 0 to 2"):
            scheme.explain(seen)


COPIES = 20_000


def operations() -> dict:
    return {
        "product": lambda x, y: x * y,
        "square": lambda x, y: ss.square(x),
        "sign": lambda x, y: ss.is_negative(x),
        "equality": lambda x, y: x == y,
        "rounding": lambda x, y: ss.truncate_exact(x, 2),
        "rounding by chance": lambda x, y: ss.truncate_probabilistic(x, 2),
    }


@pytest.mark.parametrize("name", operations())
@pytest.mark.parametrize("scheme", [ss.Additive, ss.Shamir, ss.Authenticated])
def test_what_a_party_sees_is_uniform(scheme, name):
    """Chi-square of every number that any party receives, over many runs on one and the same secret.

    The tests of one case fail together once in a million times by chance (Bonferroni).
    """
    session = ss.Session(
        scheme(3, ss.Field(101)), fraction_bits=1, truncation="probabilistic", integer_bits=2
    )
    session.record = []
    x, y = (session.encrypt(np.full(COPIES, secret)) for secret in (7, -3))
    operations()[name](x, y)
    tables = [
        np.bincount(copies.astype(int), minlength=101)
        for _, rows in session.record
        for copies in np.moveaxis(rows.reshape(-1, *rows.shape[1:]), -1, 0).reshape(COPIES, -1).T
    ]
    assert len(tables) > 10
    assert min(stats.chisquare(table).pvalue for table in tables) > CHANCE / len(tables)


@pytest.mark.parametrize("secrets", [(0, 0), (5, -5), (1, 4)])
def test_two_of_three_parties_see_the_same_whatever_the_secrets(secrets):
    """Jointly: the shares of two parties and what is opened in a product, over a field of 11."""
    session = ss.Session(ss.Additive(3, ss.Field(11)), fraction_bits=0)
    session.record = []
    copies = 300_000
    x, y = (session.encrypt(np.full(copies, secret)) for secret in secrets)
    _ = x * y
    (_, x_rows), (_, y_rows), (_, triple), (_, opened) = session.record
    # their shares of x, y, a, b and c, and the third party's shares of d and e
    seen = [*x_rows[:2, 0], *y_rows[:2, 0], *triple[0, 0], *triple[1, 0], *opened[0, 2]]
    assert len(seen) == 12
    for three in itertools.combinations(seen, 3):
        one, two, other = (numbers.astype(int) for numbers in three)
        table = np.bincount(one * 121 + two * 11 + other, minlength=11**3)
        assert stats.chisquare(table).pvalue > CHANCE / 220


def test_the_dealers_mask_is_used_once():
    session = ss.Session()
    session.record = []
    x = session.encrypt(np.full(3, 5))
    _ = x * x * x
    shares = [rows[0] for source, rows in session.record if source == PARTIES]
    opened = [session.field.total(rows).ravel() for rows in shares]
    assert len(np.unique(np.concatenate(opened))) == 12


# ---- arithmetic


@given(session_and_arrays())
@quickly
def test_sums_and_products(case):
    session, x, y = case
    prime = session.field.prime
    X, Y = session.encrypt(x), session.encrypt(y)
    wrap = np.vectorize(lambda a, b, operation: centred(operation(int(a), int(b)), prime), otypes=[np.int64])
    for operation in (
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: a * b,
        lambda a, b: -a,
        lambda a, b: 3 * a - b * 2 + 1 - a,
        lambda a, b: a * a,
        lambda a, b: a**7,
        lambda a, b: a**1 + b**0,
    ):
        assert np.array_equal(session.decrypt(operation(X, Y)), wrap(x, y, operation))
    assert np.array_equal(session.decrypt(ss.square(X)), wrap(x, x, lambda a, b: a * b))
    products = sum(int(a) * int(b) for a, b in zip(x.ravel(), y.ravel(), strict=True))
    assert session.decrypt(ss.dot(X, Y)) == centred(products, prime)
    assert session.decrypt(X.sum()) == centred(int(sum(map(int, x.ravel()))), prime)


@given(session_and_arrays())
@quickly
def test_comparisons(case):
    session, x, y = case
    X, Y = session.encrypt(x), session.encrypt(y)
    for name in ("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__"):
        bits = session.decrypt(getattr(X, name)(Y))
        assert np.array_equal(bits, getattr(np.asarray(x), name)(y).astype(int)), name
    assert np.array_equal(session.decrypt(ss.minimum(X, Y)), np.minimum(x, y))
    assert np.array_equal(session.decrypt(ss.maximum(X, Y)), np.maximum(x, y))
    assert np.array_equal(session.decrypt(ss.select(X < Y, X, Y)), np.minimum(x, y))


@each_scheme
def test_comparisons_at_every_pair_of_edges(scheme):
    session = ss.Session(scheme)
    x, y = pairs_of_edges(scheme.field)
    X, Y = session.encrypt(x), session.encrypt(y)
    assert np.array_equal(session.decrypt(X < Y), x < y)
    assert np.array_equal(session.decrypt(X == Y), x == y)
    assert np.array_equal(session.decrypt(ss.is_negative(X)), x < 0)


@pytest.mark.parametrize("scheme", [ss.Additive, ss.Shamir, ss.Authenticated])
def test_a_small_field_is_right_everywhere(scheme):
    session = ss.Session(scheme(3, ss.Field(31)), fraction_bits=0)
    numbers = np.arange(-15, 16)
    x, y = map(np.ravel, np.meshgrid(numbers, numbers))
    X, Y = session.encrypt(x), session.encrypt(y)
    assert np.array_equal(session.decrypt(X < Y), x < y)
    assert np.array_equal(session.decrypt(X == Y), x == y)
    assert np.array_equal(
        session.decrypt(X * Y), [centred(int(a) * int(b), 31) for a, b in zip(x, y, strict=True)]
    )
    nonzero = y != 0
    quotients = session.decrypt(X[nonzero] / Y[nonzero])
    assert np.array_equal(
        quotients, [int(Fraction(int(a), int(b))) for a, b in zip(x[nonzero], y[nonzero], strict=True)]
    )


@pytest.mark.parametrize("bits", [1, 2, 3, 6])
def test_rounding_is_right_everywhere(bits):
    session = ss.Session(ss.Additive(2, ss.Field(1009)), fraction_bits=0)
    reach = session.field.largest - 2 ** (bits + 1) - 1
    x = np.arange(-reach, reach + 1)
    assert np.array_equal(
        session.decrypt(ss.truncate_exact(session.encrypt(x), bits)), (x + 2 ** (bits - 1)) >> bits
    )


@given(
    schemes.filter(lambda s: s.field.bits > 40),
    hnp.arrays(np.int64, 4, elements=st.integers(-(2**21), 2**21)),
    hnp.arrays(np.int64, 4, elements=st.integers(-(2**21), 2**21)),
)
@quickly
def test_decimals(scheme, x, y):
    session = ss.Session(scheme)
    step = 2.0**-12
    x, y = x * step, y * step
    X, Y = session.encrypt(x), session.encrypt(y)
    assert np.array_equal(session.decrypt(X + Y), x + y)
    assert np.array_equal(session.decrypt(X - 1), x - 1)
    assert np.array_equal(session.decrypt(2 * X), 2 * x)
    assert np.array_equal(session.decrypt(X < Y), x < y)
    assert np.array_equal(session.decrypt(X == Y), x == y)
    assert np.abs(session.decrypt(X * Y) - x * y).max() <= step / 2
    assert np.abs(session.decrypt(X * y) - x * y).max() <= step / 2
    assert np.abs(session.decrypt(ss.square(X)) - x * x).max() <= step / 2
    assert abs(session.decrypt(ss.dot(X, Y)) - x @ y) <= step / 2


@given(
    schemes.filter(lambda s: s.field.bits > 40),
    hnp.arrays(np.int64, 5, elements=st.integers(-(2**22), 2**22)),
    hnp.arrays(np.int64, 5, elements=st.integers(-(2**22), 2**22)),
)
@settings(max_examples=8, deadline=None)
def test_quotients_of_decimals(scheme, x, y):
    session = ss.Session(scheme)
    step = 2.0**-12
    x, y = x * step, y * step
    X = session.encrypt(x)
    divisor = np.where(np.abs(y) < 1, 1.5, y)
    quotient = session.decrypt(X / session.encrypt(divisor))
    assert (np.abs(quotient) <= np.abs(x / divisor)).all()  # cut off towards zero
    assert np.abs(quotient - x / divisor).max() < step
    assert np.abs(session.decrypt(10 / session.encrypt(divisor)) - 10 / divisor).max() < step


def test_division_of_integers_reaches_over_the_range():
    session = ss.Session()
    h = session.field.largest >> 12
    x = np.array([h, -h, h, 1, 0, 7, h - 1, -22])
    y = np.array([1, 1, -h, h, 5, session.field.largest, 2, 7])
    quotient = session.decrypt(session.encrypt(x) / session.encrypt(y))
    exact = [Fraction(int(a), int(b)) for a, b in zip(x, y, strict=True)]
    assert quotient.tolist() == [int(q * 4096) / 4096 for q in exact]  # int() cuts towards zero


def test_probabilistic_truncation_fails_as_often_as_computed():
    # x' of the field's values of r make the sum wrap; binomial, fails by chance once in a million
    session = ss.Session(
        ss.Additive(2, ss.Field(1_000_003)), fraction_bits=4, truncation="probabilistic", integer_bits=6
    )
    number, count = 37.25 * 16 * 16, 100_000
    x = session.encrypt(np.full(count, int(number)))
    result = session.decrypt(ss.truncate_probabilistic(x, 4))
    failed = np.abs(result - number / 16) >= 1
    exact = (2**session.product_bits + number) / session.field.prime
    assert stats.binomtest(int(failed.sum()), count, exact).pvalue > CHANCE
    assert exact < session.failure_probability
    # and where it does not fail it rounds up as often as the part cut off says
    up = session.decrypt(ss.truncate_probabilistic(session.encrypt(np.full(count, 5)), 4))
    good = np.isin(up, [0, 1])
    assert stats.binomtest(int((up[good] == 1).sum()), int(good.sum()), 5 / 16).pvalue > CHANCE


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        ...,
        slice(1, None),
        [0, 2],
        None,
        (0, slice(None), [0, 1, 2]),
        ([0, 1], slice(None), [0, 2]),
        (slice(None), [2, 0]),
        (..., 1),
        (0, ..., None),
        np.arange(27).reshape(3, 3, 3) % 2 == 0,
    ],
    ids=str,
)
def test_any_index_picks_what_it_picks_from_an_array(index):
    session = ss.Session()
    numbers = np.arange(27).reshape(3, 3, 3)
    assert np.array_equal(session.decrypt(session.encrypt(numbers)[index]), numbers[index])


@each_scheme
def test_empty_arrays(scheme):
    session = ss.Session(scheme)
    x = session.encrypt(np.zeros((0, 3), np.int64))
    for result in (x + x, x * x, x < x, x == 1, x / x, -x, ss.square(x), x[:, 0]):
        assert session.decrypt(result).size == 0
    assert session.decrypt(x.sum()) == session.decrypt(ss.dot(x, x)) == 0
    assert session.decrypt(x + session.encrypt(np.zeros((1, 3), np.int64))).shape == (0, 3)


def test_what_counts_as_a_number():
    session = ss.Session()
    for one in (np.int8(-5), np.uint64(7), True, [1, 2], np.array([1, 2], object), np.array([], object)):
        assert np.array_equal(session.decrypt(session.encrypt(one)), np.asarray(one).astype(np.int64))
    for one in (np.float16(0.5), np.float32(-2.25), np.longdouble(3), [0.5, 1]):
        assert np.array_equal(session.decrypt(session.encrypt(one)), np.asarray(one).astype(float))
    with pytest.raises(TypeError, match="no length"):
        list(session.encrypt(4))
    assert session.encrypt(np.arange(6)).reshape((3, 2)).shape == (3, 2)
    assert ss.Field(np.int64(101)) == ss.Field(101)
    with pytest.raises(ValueError, match="odd prime"):
        ss.Field(101.0)


def test_decimals_can_be_truncated_too():
    session = ss.Session(truncation="probabilistic", integer_bits=12)
    numbers = np.arange(-2000, 2000) / 16
    x = session.encrypt(numbers)
    for bits in (0, 1, 5):
        assert np.abs(session.decrypt(ss.truncate_exact(x, bits)) - numbers / 2**bits).max() <= 2**-13
    result = session.decrypt(ss.truncate_probabilistic(x, 3))
    assert np.mean(np.abs(result - numbers / 8) > 2**-12) < 0.01  # 1 in 490 fails
    for bits in (-1, 45):
        with pytest.raises(ValueError, match="bits is"):
            ss.truncate_exact(x, bits)
        with pytest.raises(ValueError, match="bits is"):
            ss.truncate_probabilistic(x, bits)
    narrow = ss.Session(fraction_bits=22)
    with pytest.raises(ValueError, match="product_bits is 56"):
        ss.truncate_probabilistic(narrow.encrypt(5), 1)


def test_functions_take_what_operators_take():
    session = ss.Session()
    three, half = session.encrypt(3), session.encrypt(0.5)
    assert [session.decrypt(bit) for bit in (ss.less_than(three, half), ss.less_than(half, three))] == [0, 1]
    assert (
        session.decrypt(ss.less_than(half, 1)) == session.decrypt(half < 1) == session.decrypt(half <= 1) == 1
    )
    assert session.decrypt(ss.divide(three, half)) == session.decrypt(ss.divide(three, 0.5)) == 6
    assert session.decrypt(ss.dot(session.encrypt([1, 2]), [3, 4])) == 11
    assert session.decrypt(ss.minimum(three, 0.5)) == 0.5
    assert session.decrypt(ss.maximum(half, three)) == 3
    assert session.decrypt(ss.select(half < three, 7, half)) == 7
    assert session.decrypt(ss.less_than(3, half)) == 0
    assert session.decrypt(ss.divide(3, half)) == 6
    assert session.decrypt(ss.dot([3, 4], session.encrypt([1, 2]))) == 11
    assert session.decrypt(ss.minimum(3, half)) == 0.5
    assert session.decrypt(ss.select([1, 0], three, half)).tolist() == [3, 0.5]
    for operation in (ss.less_than, ss.divide, ss.dot, ss.minimum):
        with pytest.raises(TypeError, match="must be shared"):
            operation(3, 4)
    with pytest.raises(TypeError, match="5 is not shared"):
        ss.decrypt(5)
    with pytest.raises(IndexError, match=r"shape \(\) has nothing"):
        three[0]
    with pytest.raises(ValueError, match="different sessions"):
        ss.divide(three, ss.Session().encrypt(1))


def test_numbers_of_another_session_are_refused():
    with pytest.raises(ValueError, match="of another session"):
        ss.Session().decrypt(ss.Session(ss.Shamir(3)).encrypt(5))


def test_shapes_broadcast_and_mismatches_are_refused():
    session = ss.Session()
    x, y = np.arange(6).reshape(2, 3), np.arange(3)
    X, Y = session.encrypt(x), session.encrypt(y)
    assert np.array_equal(session.decrypt(X * Y), x * y)
    assert np.array_equal(session.decrypt(Y < X), y < x)
    assert np.array_equal(session.decrypt(X[:, 1:] - Y[0]), x[:, 1:] - y[0])
    assert np.array_equal(session.decrypt(np.array([1, 2, 3]) * X), x * [1, 2, 3])
    assert session.decrypt(X.reshape(6)[4]) == 4
    assert [session.decrypt(one) for one in Y] == [0, 1, 2]
    for operation in (lambda a, b: a + b, lambda a, b: a * b, lambda a, b: a < b, lambda a, b: a / b):
        with pytest.raises(ValueError, match="shape"):
            operation(X, session.encrypt([1, 2]))
        with pytest.raises(ValueError, match="different sessions"):
            operation(X, ss.Session(ss.Additive(3, ss.Field(101)), fraction_bits=0).encrypt(1))


def test_a_shared_truth_is_no_truth():
    with pytest.raises(TypeError, match="secret"):
        bool(ss.encrypt(1) < ss.encrypt(2))
    for exponent in (-1, 0.5, True, "2"):
        with pytest.raises(ValueError, match="whole number from 0"):
            ss.encrypt(3) ** exponent


def test_the_readmes_three_lines():
    assert ss.decrypt(ss.encrypt(5) + ss.encrypt(9)) == 14
    assert isinstance(ss.decrypt(ss.encrypt(5)), int)
    assert isinstance(ss.decrypt(ss.encrypt(5.0)), float)


# ---- cheaters


def tampered(session: ss.Session, x: ss.Shared, party: int, amount: int, mac: int = 0) -> ss.Shared:
    """The same number after one party has changed its share, and its MAC share."""
    shares = x.shares.copy()
    change = np.array([amount, mac], np.uint64).reshape(-1, *[1] * len(x.shape))
    shares[party] = session.field.add(shares[party], change)
    return dataclasses.replace(x, shares=shares)


@pytest.mark.parametrize("party", [0, 2])
@pytest.mark.parametrize("amount", [1, P - 1, P // 2])
def test_changed_shares_are_caught_by_macs(party, amount):
    def changed(x, *change):
        return tampered(x.session, x, party, *change)

    makers = [
        lambda x, y: changed(x, amount) + y,  # an input
        lambda x, y: changed(x, amount) * y,  # an input to a product
        lambda x, y: changed(x * y, amount),  # a product
        lambda x, y: changed(x, amount) < y,  # an input to a comparison
        lambda x, y: changed(x, amount, 12345),  # the share, and the MAC by a guess
        lambda x, y: changed(x, 0, amount),  # the MAC alone
    ]
    for make in makers:
        session = ss.Session(ss.Authenticated(3))
        x, y = session.encrypt(17), session.encrypt(np.arange(5))
        with pytest.raises(ss.CheaterDetected, match="MACs do not fit"):
            session.decrypt(make(x, y))


def test_a_session_in_which_somebody_cheated_is_over():
    # The failed check tells the cheater the key, and what it spoiled would pass a second one
    session = ss.Session(ss.Authenticated(3), cheater=1)
    x, y = session.encrypt(6), session.encrypt(7)
    product = x * y
    with pytest.raises(ss.CheaterDetected, match="MACs do not fit"):
        session.decrypt(product)
    session.cheater = None
    for value in (product, x):
        with pytest.raises(ss.CheaterDetected, match="this session is over: the MACs do not fit"):
            session.decrypt(value)
    with pytest.raises(ss.CheaterDetected, match="this session is over"):
        _ = x * y


def test_a_wrong_opening_is_caught_before_the_result_is_told():
    for parties, cheater in ((2, 0), (3, 1), (5, 4)):
        session = ss.Session(ss.Authenticated(parties), cheater=cheater)
        product = session.encrypt(5) * session.encrypt(9)
        session.record = []
        with pytest.raises(ss.CheaterDetected):
            session.decrypt(product)
        assert session.record == []  # nothing was opened any more


@pytest.mark.parametrize("guesses", [False, True])
def test_a_cheater_escapes_once_in_the_size_of_the_field(guesses):
    # Binomial at 1 / 101; fails by chance once in a million
    trials, field = 4000, ss.Field(101)
    rng = np.random.default_rng(0)
    escaped = 0
    for _ in range(trials):
        session = ss.Session(ss.Authenticated(2, field), fraction_bits=0)
        amount = int(rng.integers(1, 101))
        mac = amount * int(rng.integers(101)) % 101 if guesses else 0
        try:
            session.decrypt(tampered(session, session.encrypt(5), 1, amount, mac))
        except ss.CheaterDetected:
            continue
        escaped += 1
    assert stats.binomtest(escaped, trials, 1 / 101).pvalue > CHANCE


class Liar(Local):
    """A link over which party 1 opens something else than it has committed to."""

    def exchange(self, rows):
        everybodys = super().exchange(rows)
        if rows.dtype == np.uint8 and self.traffic.rounds % 2 == self.lies_in:
            everybodys = everybodys.copy()
            everybodys[1, 0] ^= 1
        return everybodys


@pytest.mark.parametrize("scheme", [ss.Additive, ss.Shamir, ss.Authenticated])
@pytest.mark.parametrize("amount", [P, 2**64 - 1])
def test_what_is_no_residue_is_not_taken(scheme, amount):
    session = ss.Session(scheme(3))
    x = session.encrypt([4, 5])
    x.shares[1, 0, 1] = amount
    with pytest.raises(ss.CheaterDetected, match="party 1 sent what is no number") as caught:
        session.decrypt(x)
    assert caught.value.parties == (1,)


@pytest.mark.parametrize("lies_in", [0, 1])
def test_what_was_committed_to_cannot_be_changed(lies_in):
    link = Liar(3)
    link.lies_in = lies_in
    session = ss.Session(ss.Authenticated(3), link=link)
    with pytest.raises(ss.CheaterDetected, match="party 1 opened something else") as caught:
        session.decrypt(session.encrypt(5))
    assert caught.value.parties == (1,)


def test_coefficients_of_the_check_are_uniform_and_never_zero():
    session = ss.Session(ss.Authenticated(2, ss.Field(101)), fraction_bits=0)
    counts = np.bincount(session._coefficients(b"seed", 100_000).astype(int), minlength=101)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > CHANCE
    assert (session._coefficients(b"seed", 10) != session._coefficients(b"other", 10)).any()


def test_shamirs_scheme_corrects_a_cheater_and_goes_on():
    session = ss.Session(ss.Shamir(5), cheater=3)
    x = session.encrypt(np.arange(-3, 4))
    assert session.decrypt((x * x + 1) * x).tolist() == [-30, -10, -2, 0, 2, 10, 30]
    assert session.decrypt(x < 0).tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert session.liars == {3}
    three = ss.Session(ss.Shamir(3), cheater=0)
    with pytest.raises(ss.CheaterDetected, match="4 shares are needed and there are 3"):
        three.decrypt(three.encrypt(5))


def test_additive_shares_show_no_cheater():
    session = ss.Session(cheater=2)
    assert session.decrypt(session.encrypt(5)) == 6


# ---- costs


def expected_costs(field: ss.Field) -> dict:
    f = 12
    multiply = costs.MULTIPLY
    return {
        "sum": (lambda x, y: 3 * x + y - 1, costs.LOCAL),
        "product": (lambda x, y: x * y, multiply.times(6)),
        "public product": (lambda x, y: x * 7, costs.LOCAL),
        "square": (lambda x, y: ss.square(x), costs.SQUARE.times(6)),
        "dot": (lambda x, y: ss.dot(x, y), multiply.times(6)),
        "power": (lambda x, y: x**13, costs.power(13).times(6)),
        "power 0": (lambda x, y: x**0, costs.power(0)),
        "select": (lambda x, y: ss.select(x, y, x), multiply.times(6)),
        "sign": (lambda x, y: ss.is_negative(x), costs.is_negative(field).times(6)),
        "less": (lambda x, y: x < y, costs.less_than(field).times(6)),
        "equal": (lambda x, y: x == y, costs.is_zero(field).times(6)),
        "minimum": (lambda x, y: ss.minimum(x, y), (costs.less_than(field) + multiply).times(6)),
        "rounding": (lambda x, y: ss.truncate_exact(x, f), costs.truncate_exact(field, f).times(6)),
        "rounding of nothing": (lambda x, y: ss.truncate_exact(x, 0), costs.truncate_exact(field, 0)),
        "rounding of one bit": (
            lambda x, y: ss.truncate_exact(x, 1),
            costs.truncate_exact(field, 1).times(6),
        ),
        "by chance": (lambda x, y: ss.truncate_probabilistic(x, f), costs.TRUNCATE_PROBABILISTIC.times(6)),
        "division": (lambda x, y: x / y, costs.divide(field).times(6)),
    }


@pytest.mark.parametrize("prime", [P, 2**31 - 1, 2**32 + 15])
@pytest.mark.parametrize("scheme", [ss.Additive, ss.Shamir, ss.Authenticated])
@pytest.mark.parametrize("parties", [2, 5])
def test_what_is_sent_is_what_the_formulas_say(scheme, parties, prime):
    field = ss.Field(prime)
    for name, (operation, cost) in expected_costs(field).items():
        session = ss.Session(scheme(parties, field), integer_bits=1)
        x, y = (session.encrypt(np.ones((2, 3), np.int64)) for _ in range(2))
        before, triples = dataclasses.replace(session.link.traffic), session.triples_used
        operation(x, y)
        after = session.link.traffic
        assert after.rounds - before.rounds == cost.rounds, name
        assert after.online - before.online == cost.online_bytes(session.scheme), name
        assert after.offline - before.offline == cost.offline_bytes(session.scheme), name
        assert session.triples_used - triples == cost.triples, name


@each_prime
def test_the_docstrings_formulas_are_those_computed(prime):
    if prime < 2**13:
        return
    field, f = ss.Field(prime), 12
    length = field.bits
    depth = costs.levels(length)

    def numbers(cost):
        return cost.rounds, cost.opened, cost.triples

    assert numbers(costs.is_negative(field)) == (2 + depth, 4 * length - 1, 2 * length - 1)
    assert numbers(costs.less_than(field)) == (4 + depth, 12 * length + 1, 6 * length - 1)
    assert numbers(costs.is_zero(field)) == (1 + depth, 2 * length - 1, length - 1)
    assert numbers(costs.truncate_exact(field, f)) == (
        2 + depth,
        4 * length + 8 * f - 9,
        2 * length + 4 * f - 5,
    )
    assert numbers(costs.divide(field)) == (
        (length + 1) * (2 + depth) + length + 2,
        8 * length**2 + 3,
        4 * length**2 - length + 2,
    )


def test_a_check_of_macs_costs_what_is_said():
    session = ss.Session(ss.Authenticated(4))
    x = session.encrypt(np.arange(100))
    before = dataclasses.replace(session.link.traffic)
    session.decrypt(x)  # nothing to check before, one opening, one check
    traffic = session.link.traffic
    assert traffic.rounds - before.rounds == 5
    opening = dataclasses.replace(costs.OPEN, opened=100).online_bytes(session.scheme)
    assert traffic.online - before.online == opening + costs.check(session.scheme)


# ---- the calculator


@st.composite
def expressions(draw, depth=3):
    """An expression of small numbers, and what Python makes of it with exact fractions."""
    if depth == 0 or draw(st.booleans()):
        number = draw(st.one_of(st.integers(0, 40), st.sampled_from(["0.5", "2.25", "0.1", "3.7"])))
        return str(number)
    kind = draw(st.sampled_from(["+", "-", "*", "/", "**", "neg", "<", "==", "if"]))
    left, right = draw(expressions(depth - 1)), draw(expressions(depth - 1))
    if kind == "**":
        return f"({left}) ** {draw(st.integers(0, 3))}"
    if kind == "neg":
        return f"-({left})"
    if kind == "if":
        return f"(({left}) if ({right}) <= 7 else ({right}))"
    return f"({left}) {kind} ({right})"


def in_python(expression: str):
    """Python's arithmetic on the numbers as typed."""
    program, numbers = parse(expression)

    def select(condition, x, y):
        return x if condition else y

    return program.evaluate(lambda i: Fraction(repr(numbers[i])), select)


def intermediate_values(expression: str) -> list[Fraction]:
    """All that comes up on the way, including what a division by zero would have been."""
    values = []
    for node in ast.walk(ast.parse(expression)):
        if isinstance(node, ast.expr):
            with contextlib.suppress(ZeroDivisionError):
                values.append(Fraction(in_python(ast.unparse(node))))
    return values


def outcome(config: ss.Config) -> tuple[ss.Result | None, str]:
    """The result, or why there is none."""
    try:
        return ss.run(config), ""
    except ValueError as error:
        return None, str(error)


@given(expressions(), st.sampled_from(["additive", "shamir", "authenticated"]), st.integers(2, 5))
@settings(max_examples=60, deadline=None)
def test_the_calculator_computes_what_python_does(expression, scheme, parties):
    result, refusal = outcome(ss.Config(expression, scheme=scheme, parties=parties))
    if refusal:
        # the narrowest range is ±2,005,112; a divisor near 0 makes errors large, or may be 0 itself
        sizes = [abs(value) for value in intermediate_values(expression)]
        assert max(sizes) > 1_900_000 or min(sizes) < 0.01, refusal
        assert re.search("out of range|division by", refusal)
        return
    assert result.expected == pytest.approx(float(in_python(expression)))
    assert result.agrees
    assert not result.cheater_detected
    if not any(character in expression for character in "./"):
        assert result.value == in_python(expression)
        assert result.error_bound == 0


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("(17 + 5) * 3.5 < 80", True),
        ("17 - 5 * -2", 27),
        ("2 ** 10 - 1", 1023),
        ("1 < 2 < 3", True),
        ("1 < 3 < 2", False),
        ("3 >= 3 != 4", True),
        ("17 if 17 < 5 else 5", 5),
        ("(1 < 2) + (3 == 3)", 2),
        ("-7 / 2", -3.5),
        ("7 ** 0", 1),
        (" 5\n", 5),
    ],
)
def test_expressions(expression, value):
    result = ss.run(ss.Config(expression))
    assert (result.value, result.expected) == (value, value)
    assert type(result.value) is type(result.expected)


@given(st.floats(0, 8.2e9), st.booleans(), st.sampled_from([12, 3, 0]))
@settings(max_examples=100, deadline=None)
def test_every_decimal_is_what_it_is_said_to_be(number, is_tie, bits):
    # also those that lie half-way between two multiples of 2^-bits, where rounding could go either way
    if is_tie:
        number = int(number * 2**bits) / 2**bits + 2.0 ** -(bits + 1)
    result = ss.run(ss.Config(repr(number), fraction_bits=bits))
    assert result.agrees
    assert result.expected == number
    assert abs(Fraction(result.value) - Fraction(repr(number))) <= Fraction(result.error_bound)


def test_long_powers_are_quick():
    for expression in ("(0.9 ** 1000) ** 1000", "((0.5 ** 1000) ** 1000) ** 1000"):
        start = time.monotonic()
        assert ss.run(ss.Config(expression)).agrees
        assert time.monotonic() - start < 20  # it took for ever with exact fractions
    with pytest.raises(ValueError, match="too few here"):
        ss.run(ss.Config("(1.0001 ** 1000) ** 1000 * 0.0"))


def test_numbers_come_in_the_order_in_which_they_stand():
    _, numbers = parse("10 if 20 < 30 else 40 ** 2")
    assert numbers == [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "not an expression"),
        ("3 +", "not an expression"),
        ("3 4", "not an expression"),
        ("nan", "an expression has numbers"),
        ("x + 1", "an expression has numbers"),
        ("abs(3)", r"abs\(3\): an expression has numbers"),
        ("__import__('os').system('true')", "an expression has numbers"),
        ("(3).real", "an expression has numbers"),
        ("'3' * 2", "an expression has numbers"),
        ("True + 1", "an expression has numbers"),
        ("3j", "an expression has numbers"),
        ("[1][0]", "an expression has numbers"),
        ("5 % 2", "5 % 2: an expression has numbers"),
        ("not 3", "an expression has numbers"),
        ("1 < 2 in 3", "an expression has numbers"),
        ("1 if 2 else 3", "an expression has numbers"),
        ("(lambda: 3)()", "an expression has numbers"),
        ("(y := 3)", "an expression has numbers"),
        ("f'{3}'", "an expression has numbers"),
        ("2 ** 0.5", "a whole number from 0"),
        ("2 ** -1", "a whole number from 0"),
        ("2 ** (1 + 1)", "a whole number from 0"),
        ("2 ** 1001", "exponents go up to 1000"),
        ("\udcff", "not an expression: it is no text"),
        ("1e999", "too large"),
        ("1" + "0" * 400, "too large"),
        ("10 ** 20", "out of range"),
        ("1e10", "is too large: with 12 fraction bits"),
        ("10 ** 9 * 10 ** 9", "out of range"),
        ("9999.5 * 9999.5", "out of range"),
        ("1 / 0", "division by zero"),
        ("1 / (2 - 2)", "division by zero"),
        ("1 / 0.0001", "may be zero with 12 fraction bits"),
        ("+".join(["1"] * 999), "nested too deeply"),
        ("(" * 300 + "1" + ")" * 300, "not an expression"),
        ("1+" * 2000 + "1", "2000 are the most"),
    ],
)
def test_what_is_no_expression_is_refused(expression, message):
    with pytest.raises(ValueError, match=message):
        ss.run(ss.Config(expression))


def test_the_error_bound_holds_and_is_not_idle():
    session = ss.Session()
    for expression in ("0.1 * 0.3", "1 / 3", "(0.1 + 0.2) ** 5 / 7.3", "1000000 / 0.1"):
        program, numbers = parse(expression)
        bound = rehearse(program, numbers, session).error
        result = ss.run(ss.Config(expression))
        assert 0 < abs(result.value - result.expected) <= bound <= result.error_bound
    close = ss.run(ss.Config("0.1 * 3 == 0.3"))
    assert (close.expected, close.error_bound) == (True, 1)  # too close to call, and it says so
    assert "might as well be the opposite" in ss.describe(close)


def test_shares_that_are_shown_add_up_to_the_numbers():
    for scheme in ("additive", "authenticated"):
        result = ss.run(ss.Config("17 + 5 - 3.5", scheme=scheme, parties=4, show_shares=True))
        sums = [sum(shares) % P for shares in zip(*result.shares, strict=True)]
        assert sums == [17, 5, 3.5 * 4096]
        assert all(str(share) in ss.describe(result) for shares in result.shares for share in shares)
    hidden = ss.describe(ss.run(ss.Config("1 + 2")))
    assert "party 2 saw 2 shares" in hidden


@pytest.mark.parametrize(
    ("flags", "value", "named", "said"),
    [
        ({}, None, (), "MACs do not fit"),
        ({"scheme": "authenticated", "parties": 5}, None, (), "MACs do not fit"),
        ({"scheme": "shamir"}, None, (), "a share is wrong"),
        ({"scheme": "shamir", "parties": 5}, 14, (1,), "caught: party 1 opened wrong shares"),
    ],
)
def test_a_cheater_ends_detected(flags, value, named, said):
    result = ss.run(ss.Config("5 + 9", cheat=1, **flags))
    assert result.cheater_detected
    assert (result.value, result.cheaters) == (value, named)
    assert said in ss.describe(result)


@pytest.mark.parametrize("flags", [{"scheme": "additive"}, {"scheme": "shamir", "parties": 2}])
def test_where_nobody_can_tell_the_calculator_says_so(flags):
    result = ss.run(ss.Config("5 + 9", cheat=1, **flags))
    assert not result.cheater_detected
    assert result.value != 14
    assert "party 1 cheated" in ss.describe(result)
    assert "WRONG" in ss.describe(result)


def test_probabilistic_truncation_states_its_chance():
    result = ss.run(ss.Config("1.5 * 2.5 * 3.0", truncation="probabilistic"))
    assert result.failure_probability == pytest.approx(2 * 2**37 / P)
    assert "nonsense" in ss.describe(result)
    with pytest.raises(ValueError, match="out of range"):
        ss.run(ss.Config("100.5 * 100.5", truncation="probabilistic"))
    assert ss.run(ss.Config("1.5 * 2.5")).failure_probability == 0


def test_the_table_of_costs_is_printed():
    table = ss.describe(ss.run(ss.Config())).split("\n\n")[-1].splitlines()
    assert table[0].startswith("one operation ")
    assert len(table) == 1 + len(costs.operations(ss.Field(), 12))


def test_the_picture():
    figure = ss.plot(ss.run(ss.Config(data="embedded")))
    axes = [axis for part in figure.subfigs for axis in part.axes]
    titles = [axis.get_title() for axis in axes]
    assert titles[:5] == ["secret", *(f"party {i} of 3" for i in range(3)), "put together"]
    secret, *shares, together = [np.asarray(axis.images[0].get_array()) for axis in axes[:5]]
    assert np.array_equal(secret, together)
    assert all(abs(np.corrcoef(secret.ravel(), share.ravel())[0, 1]) < 0.2 for share in shares)


# ---- the command line


def calculator(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    options = {"capture_output": True, "text": True, "timeout": 100} | options
    return subprocess.run([sys.executable, "-m", "recipes.secret_sharing", *arguments], **options)


def test_json_keys(tmp_path):
    out = tmp_path / "out.json"
    done = calculator("(17 + 5) * 3.5 < 80", "--json", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())["result"]
    assert done.stdout.startswith("(17 + 5) * 3.5 < 80  =  True")
    wanted = {"expression": "(17 + 5) * 3.5 < 80", "value": True, "expected": True, "rounds": 12}
    wanted |= {
        "bytes_sent": 26976,
        "triples": 276,
        "scheme": "additive",
        "parties": 3,
        "cheater_detected": False,
    }
    assert wanted.items() <= result.items()


@pytest.mark.parametrize(
    "arguments",
    [
        ["abs(3)"],
        ["1 / 0"],
        ["1 +"],
        ["nan"],
        ["--parties", "1"],
        ["--parties", "three"],
        ["--scheme", "rsa"],
        ["--scheme", "shamir", "--threshold", "3"],
        ["--threshold", "1"],
        ["--cheat", "3"],
        ["--prime", "91"],
        ["--prime", "101"],
        ["--fraction-bits", "-1"],
        ["1", "2"],
        ["1", "--plot", "shares.gif"],
        ["1", "--json", "nowhere/out.json"],
    ],
)
def test_bad_input_is_one_line_and_exit_2(refused, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("secret_sharing", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_importing_takes_numpy_and_the_standard_library_only(python):
    code = (
        "import sys, numpy; before = set(sys.modules)\n"
        "import recipes.secret_sharing\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - sys.stdlib_module_names))"
    )
    assert python("-c", code).stdout.strip() == "['recipes']"


# ---- a process for every role


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"scheme": "authenticated", "parties": 2},
        {"scheme": "shamir", "parties": 4, "expression": "1.5 / 3 if 2 < 3 else 4"},
        {"cheat": 2},
        {"scheme": "shamir", "parties": 5, "cheat": 0},
    ],
)
def test_processes_do_and_send_what_one_process_does(flags):
    config = ss.Config(**flags)
    here, there = ss.run(config), ss.run(dataclasses.replace(config, processes=True))
    differing = {
        name
        for name, value in vars(here).items()
        if value != getattr(there, name) and name not in ("shares", "config", "processes")
    }
    assert differing == set()
    assert len(there.shares) == config.parties


def test_a_cheater_stops_the_processes_in_the_middle():
    result = ss.run(ss.Config("2 * 3 * 4", scheme="shamir", cheat=1, processes=True))
    assert result.cheater_detected
    assert result.value is None


def children_of(process: subprocess.Popen) -> dict[str, psutil.Process]:
    """The processes of a run, by role."""
    found = {}
    for child in psutil.Process(process.pid).children():
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if "recipes.parties" in " ".join(words):
            found[words[-1]] = child
    return found


@pytest.fixture
def long_run():
    """A calculation in processes that takes many seconds, and its processes once they compute."""
    command = [sys.executable, "-m", "recipes.secret_sharing", "1" + "/3" * 40, "--processes"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        deadline = time.monotonic() + 60
        children: dict[str, psutil.Process] = {}
        while time.monotonic() < deadline and process.poll() is None:
            children = children_of(process)
            connected = [
                len([c for c in child.net_connections("tcp") if c.status == "ESTABLISHED"])
                for child in children.values()
            ]
            if connected == [4] * 5:
                break
            time.sleep(0.05)
        assert len(children) == 5
        yield process, children
        process.kill()
        for child in children.values():
            if child.is_running():
                child.kill()


@pytest.mark.parametrize("victim", ["party 1", "the dealer", "the user"])
def test_a_party_that_is_killed_ends_all_in_five_seconds_with_one_line(long_run, victim):
    process, children = long_run
    start = time.monotonic()
    children[victim].kill()
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - start < 5  # it takes about 2
    assert process.returncode == 1
    assert out == ""
    assert err.splitlines() == [
        f"recipes.secret_sharing: {victim} was killed (SIGKILL); the others have been stopped"
    ]
    assert not any(child.is_running() for child in children.values())


@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_no_process_outlives_the_run(long_run, how):
    process, children = long_run
    process.send_signal(2 if how == "interrupt" else 9)
    _, err = process.communicate(timeout=10)
    _, alive = psutil.wait_procs(children.values(), timeout=5)
    assert all(child.status() == psutil.STATUS_ZOMBIE for child in alive)  # if nobody collects orphans
    if how == "interrupt":
        assert process.returncode == 130
        assert err.splitlines() == ["recipes.secret_sharing: interrupted"]
