"""The server learns the sum of the clients' vectors, and nothing else of them.

Every two clients agree on a mask that one adds and the other subtracts; in the sum they cancel. Clients may
be lost on the way: each shares its secret keys among all by Shamir, and enough of those who are left can
give the server what it needs to take the masks of the lost ones out again. As the server could call a client
lost whose vector comes late, each vector has a second mask of its own, and a client gives its share of either
the keys or the second mask of another, never of both.

Who sees what: the server sees masked vectors, each by itself uniform in the field, who takes part and how
        many examples each holds, and the sum. A client sees nothing of the others' vectors, unless
        `needed` of them pool their shares with the server.
Paper:  Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS 2017.
Status: simplified (against parties that follow the protocol: keys are not signed, and no round proves to all
        who is left).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from recipes.federated_averaging.config import FEWEST
from recipes.secret_sharing.field import Draw, Field
from recipes.secret_sharing.schemes import Shamir

FIELD = Field(2**32 - 5)
"""Residues fit into four bytes."""
KEY_BYTES, WORD_BYTES = 32, 3
_WORDS = -(-KEY_BYTES // WORD_BYTES)
_WIRE = np.dtype("<u4")


# ---- numbers as residues


def step_of(largest: float, clients: int) -> float:
    """The smallest quantisation step with which the sum of so many entries, each within ± `largest`, fits
    into the field."""
    return clients * largest / (FIELD.largest - clients)


def quantise(vector: np.ndarray, step: float, clients: int = 1) -> np.ndarray:
    """`[P]` real numbers to residues `[P]` uint64, each to the nearest multiple of `step`.

    Raises:
        ValueError: a number is not finite, or so large that the sum of so many might not fit into the field.
    """
    units = np.rint(np.asarray(vector, np.float64) / step)
    most = FIELD.largest // clients
    if not (np.abs(units) <= most).all():  # nan is not, either
        raise ValueError(
            f"a client's vector reaches {np.abs(vector).max():.3g}, and the field holds {most * step:.3g} of"
            f" each of {clients}: bound the changes (clip), or take a smaller learning_rate"
        )
    return FIELD.encode(units.astype(np.int64))


def restore(residues: np.ndarray, step: float) -> np.ndarray:
    """Residues `[P]` to numbers `[P]` float64."""
    return FIELD.decode(residues) * step


# ---- masks


def stretch(seed: bytes, count: int) -> np.ndarray:
    """A mask `[count]` uint64, uniform residues as far as ChaCha20 cannot be told from chance."""
    cipher = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    residues = np.empty(count, np.uint64)
    FIELD.fill(residues, lambda length: cipher.update(bytes(length)))
    return residues


def agree(own: X25519PrivateKey, other: bytes, purpose: bytes) -> bytes:
    """The 32 bytes that both get from their own private and the other's public key."""
    exchanged = own.exchange(X25519PublicKey.from_public_bytes(other))
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=purpose).derive(exchanged)


def _words(key: bytes) -> np.ndarray:
    padded = key.ljust(_WORDS * WORD_BYTES, b"\0")
    parts = [padded[start : start + WORD_BYTES] for start in range(0, len(padded), WORD_BYTES)]
    return np.array([int.from_bytes(part, "little") for part in parts], np.uint64)


def _key(words: np.ndarray) -> bytes:
    return b"".join(int(word).to_bytes(WORD_BYTES, "little") for word in words)[:KEY_BYTES]


# ---- the parties


@dataclass
class Client:
    """One client's side of a round of aggregation, in the order in which it is asked."""

    number: int
    """Its place among the round's clients, from 0."""
    scheme: Shamir
    draw: Draw = secrets.token_bytes
    """Of everything that is drawn; another only in tests."""
    sent: int = 0
    """Bytes so far, without framing."""
    received: int = 0
    _masks: X25519PrivateKey = field(init=False, repr=False)
    _letters: X25519PrivateKey = field(init=False, repr=False)
    _own_mask: bytes = field(init=False, repr=False)
    _shares: dict[int, tuple[np.ndarray, np.ndarray]] = field(init=False, repr=False, default_factory=dict)

    def public_keys(self) -> tuple[bytes, bytes]:
        """Of the masks and of the letters: 32 bytes each."""
        self._masks, self._letters = (
            X25519PrivateKey.from_private_bytes(self.draw(KEY_BYTES)) for _ in range(2)
        )
        self._own_mask = self.draw(KEY_BYTES)
        self.sent += 2 * KEY_BYTES
        return self._masks.public_key().public_bytes_raw(), self._letters.public_key().public_bytes_raw()

    def letters(self, public: Mapping[int, tuple[bytes, bytes]]) -> dict[int, bytes]:
        """To each other client its shares of this one's key and of its own mask, which the server carries
        and cannot read."""
        self._public = dict(public)
        self.received += 2 * KEY_BYTES * len(public)
        both = np.stack([_words(self._masks.private_bytes_raw()), _words(self._own_mask)])
        shares = self.scheme.share(both, self.draw)[:, 0].astype(_WIRE)  # [n, 2, words]
        letters = {}
        for other, (_, letters_key) in public.items():
            if other == self.number:
                self._shares[other] = tuple(shares[other].astype(np.uint64))
                continue
            key = agree(self._letters, letters_key, b"letter")
            nonce = self.number.to_bytes(12, "little")
            letters[other] = ChaCha20Poly1305(key).encrypt(nonce, shares[other].tobytes(), None)
        self.sent += sum(map(len, letters.values()))
        return letters

    def read(self, letters: Mapping[int, bytes]) -> None:
        """The shares of the others' keys and masks.

        Raises:
            cryptography.exceptions.InvalidTag: a letter was changed on its way.
        """
        for other, letter in letters.items():
            key = agree(self._letters, self._public[other][1], b"letter")
            content = ChaCha20Poly1305(key).decrypt(other.to_bytes(12, "little"), letter, None)
            self._shares[other] = tuple(np.frombuffer(content, _WIRE).reshape(2, -1).astype(np.uint64))
            self.received += len(letter)

    def masked(self, residues: np.ndarray) -> np.ndarray:
        """`[P]` uint64 plus its own mask, plus or minus those shared with every other: `[P]` uint32."""
        total = FIELD.add(residues, stretch(self._own_mask, len(residues)))
        for other in self._shares:
            if other != self.number:
                mask = stretch(agree(self._masks, self._public[other][0], b"mask"), len(residues))
                total = FIELD.add(total, mask) if other > self.number else FIELD.subtract(total, mask)
        self.sent += total.size * _WIRE.itemsize
        return total.astype(_WIRE)

    def reveal(self, here: Sequence[int]) -> dict[int, np.ndarray]:
        """Its share of the own mask of each client that is `here`, and of the key of each that is lost.

        Raises:
            ValueError: it was asked before, or fewer are here than it takes.
        """
        if len(here) < self.scheme.needed:
            raise ValueError(
                f"{len(here)} clients are left, and {self.scheme.needed} are needed: give nothing away"
            )
        if not self._shares:
            raise ValueError("shares are given once a round: a second time could open a single vector")
        shares, self._shares = self._shares, {}
        self.sent += len(shares) * _WORDS * _WIRE.itemsize
        return {other: share[1 if other in here else 0] for other, share in shares.items()}


def open_sum(
    scheme: Shamir,
    masked: Mapping[int, np.ndarray],
    public: Mapping[int, tuple[bytes, bytes]],
    revealed: Mapping[int, Mapping[int, np.ndarray]],
) -> np.ndarray:
    """The server's last step: the sum of the vectors that arrived, `[P]` uint64.

    Args:
        masked: client to masked vector, of those that are here.
        public: client to its public keys, of all that began.
        revealed: client to its shares of all others' keys or masks.
    """
    total = FIELD.total(np.stack([each.astype(np.uint64) for each in masked.values()]))
    givers = list(revealed)
    for other in public:
        shares = np.stack([revealed[giver][other] for giver in givers])
        secret = _key(scheme.reconstruct(shares, givers)[0])
        if other in masked:
            total = FIELD.subtract(total, stretch(secret, len(total)))
            continue
        lost = X25519PrivateKey.from_private_bytes(secret)
        for here in masked:  # the masks that the lost one would have cancelled
            mask = stretch(agree(lost, public[here][0], b"mask"), len(total))
            total = FIELD.subtract(total, mask) if other > here else FIELD.add(total, mask)
    return total


@dataclass(frozen=True)
class Sealed:
    """What came of a round of secure aggregation."""

    total: np.ndarray
    """`[P]` float64, the sum of the vectors of those who were left."""
    here: tuple[int, ...]
    """Who was left."""
    view: dict[int, np.ndarray] = field(repr=False)
    """What the server saw of each, `[P]` uint32."""
    step: float
    """Of the quantisation."""
    bytes_up: int
    """The most that one client sent."""
    bytes_down: int
    """The most that one client received, besides the model."""


def aggregate(
    vectors: Sequence[np.ndarray],
    *,
    step: float,
    lost: Sequence[int] = (),
    draw: Draw = secrets.token_bytes,
) -> Sealed:
    """One round, all parties in this process.

    Args:
        vectors: one of each client, `[P]` of real numbers; their sum must fit into the field.
        step: of the quantisation, see `step_of`.
        lost: places of clients that are lost after the masks were agreed upon.

    Raises:
        ValueError: fewer than three clients, or too few are left.
    """
    count = len(vectors)
    if count < FEWEST:
        raise ValueError(f"{count} clients: with fewer than three, one knows the other's vector from the sum")
    scheme = Shamir(count, FIELD, threshold=count // 2)
    clients = [Client(number, scheme, draw) for number in range(count)]
    public = {client.number: client.public_keys() for client in clients}
    letters = {client.number: client.letters(public) for client in clients}
    for client in clients:
        client.read({other: each[client.number] for other, each in letters.items() if other != client.number})
    here = [client for client in clients if client.number not in set(lost)]
    masked = {client.number: client.masked(quantise(vectors[client.number], step, count)) for client in here}
    revealed = {client.number: client.reveal(list(masked)) for client in here}
    total = open_sum(scheme, masked, public, revealed)
    return Sealed(
        restore(total, step),
        tuple(masked),
        masked,
        step,
        max(client.sent for client in here),
        max(client.received for client in here),
    )
