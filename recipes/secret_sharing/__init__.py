"""Can three parties compute with numbers that none of them knows?

A number is split into shares that say nothing each; sums of shares are shares of sums, and with
random triples dealt beforehand products, comparisons, decimals and divisions follow. What a party
changes on the way is caught by redundancy (Shamir) or by message authentication codes (SPDZ).

Who sees what: the user knows the numbers. A party sees its shares, masked numbers, the result, and
        the expression without its numbers (with exponents, and which numbers are decimals); parties
        - 1 parties together (with Shamir's scheme t) learn no more than the result tells. The
        dealer sees the expression, and nothing of numbers or masked numbers; it must not join a
        party, for together they know what enters any product or comparison, and with MACs every
        input. With additive shares every party must follow the protocol. With n of Shamir's up to
        (n - t - 1) / 2 wrong ones are corrected; more may go unnoticed, or put the blame on others.
        With authenticated ones no wrong result is accepted, but who cheats in the last step alone
        still learns the right one, and may keep it from the others.
Paper:  Shamir, "How to share a secret", 1979; Beaver, "Efficient multiparty protocols using circuit
        randomization", 1991; Nishide and Ohta, "Multiparty computation for interval, equality, and
        comparison without bit-decomposition protocol", 2007; Damgård et al., "Multiparty computation
        from somewhat homomorphic encryption", 2012, eprint 2011/535 (SPDZ).
Source: Tsukerman, "Machine Learning for Cybersecurity Cookbook", Packt 2019, chapter 8, which adds
        shares modulo 67280421310721 among three parties, and stops there.
Status: simplified (a trusted dealer in place of the preprocessing between parties; channels on one
        machine are authenticated when they open, and not encrypted).
Expect: `(17 + 5) * 3.5 < 80` is True after 12 rounds and 26,976 bytes between three parties, with 276
        triples; 22 / 7 is 3.142822 after 425 rounds. Shares come from `secrets`: nothing has a
        seed, and the counts are always the same. Well under 1 s, or 2 s with `--processes`.
Command: python -m recipes.secret_sharing "(17 + 5) * 3.5 < 80" --scheme authenticated --processes
"""

from recipes.secret_sharing.arithmetic import (
    Shared,
    divide,
    dot,
    is_negative,
    is_zero,
    less_than,
    maximum,
    minimum,
    power,
    select,
    square,
    truncate_exact,
    truncate_probabilistic,
)
from recipes.secret_sharing.calculator import Config, Result, main, run
from recipes.secret_sharing.field import CHAPTER_PRIME, Field
from recipes.secret_sharing.links import Traffic
from recipes.secret_sharing.report import cost_table, describe, plot
from recipes.secret_sharing.schemes import Additive, Authenticated, CheaterDetected, Shamir
from recipes.secret_sharing.session import Session, decrypt, encrypt

__all__ = [
    "CHAPTER_PRIME",
    "Additive",
    "Authenticated",
    "CheaterDetected",
    "Config",
    "Field",
    "Result",
    "Session",
    "Shamir",
    "Shared",
    "Traffic",
    "cost_table",
    "decrypt",
    "describe",
    "divide",
    "dot",
    "encrypt",
    "is_negative",
    "is_zero",
    "less_than",
    "main",
    "maximum",
    "minimum",
    "plot",
    "power",
    "run",
    "select",
    "square",
    "truncate_exact",
    "truncate_probabilistic",
]
