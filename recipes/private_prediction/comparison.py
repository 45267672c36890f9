"""Is a public number less than a secret one that the provider knows? Two protocols for n such questions.

Both begin with x, which both parties know, and a threshold t, of which they know nothing, as it is the
mask of what they have opened. They end with XOR shares of the bits [x < t]. Each is named by what
it is made of: `truth_tables.Tables`, which speak in a round or two, and
`function_secret_sharing.FunctionSecretSharing`, which says nothing and has long keys.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from recipes.private_prediction.function_secret_sharing import FunctionSecretSharing
from recipes.private_prediction.randomness import Source
from recipes.private_prediction.truth_tables import Tables


class Opening(Protocol):
    """What a comparison needs of a party."""

    index: int
    """0 or 1: who of the two this is."""

    def open_planes(self, share: np.ndarray) -> np.ndarray:
        """One round: the XOR of both parties' shares."""


class Comparison(Protocol):
    """n comparisons of numbers of `bits` bits, and, if `low` is not 0, of their `low` lowest bits, too."""

    def rounds(self, bits: int, low: int) -> int:
        """Rounds that `less` takes."""

    def deal(self, source: Source, numbers: int, bits: int, low: int, threshold: np.ndarray | None) -> Any:
        """The material, from a threshold `[n]` uint64 that only the provider has."""

    def less(self, party: Opening, public: np.ndarray, bits: int, low: int, material: Any) -> np.ndarray:
        """Shares of planes `[1 or 2, ceil(n / 8)]` uint8 of [public < threshold], and of the low bits'."""


PROTOCOLS: dict[str, type[Comparison]] = {"tables": Tables, "fss": FunctionSecretSharing}
"""By the name that the command line gives them."""
