"""The calculator: a Python expression, of which every number is shared and only the result opened."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from recipes.parties import Network, PartyLost, run_processes
from recipes.secret_sharing import arithmetic, links
from recipes.secret_sharing.expression import Program, parse
from recipes.secret_sharing.field import CHAPTER_PRIME, Field
from recipes.secret_sharing.rehearsal import rehearse
from recipes.secret_sharing.schemes import Additive, Authenticated, CheaterDetected, Shamir
from recipes.secret_sharing.session import Session

Scheme = Literal["additive", "shamir", "authenticated"]


@dataclass(frozen=True)
class Config:
    """What is computed, on which shares, and who cheats."""

    expression: str = field(default="(17 + 5) * 3.5 < 80", metadata={"positional": True})
    """Numbers with + - * / ** < <= > >= == !=, parentheses, and `x if y < z else w`."""
    parties: int = 3
    """Parties that hold shares, 2 to 100."""
    scheme: Scheme | None = None
    """How numbers are shared; if not given additive, or authenticated if somebody cheats."""
    threshold: int | None = None
    """With Shamir's scheme: so many shares tell nothing, one more reconstructs; if not given
    (parties - 1) / 2 rounded down, but at least 1."""
    prime: int = CHAPTER_PRIME
    """The modulus, an odd prime below 2^48."""
    fraction_bits: int = 12
    """Binary places of decimals, which are multiples of 2^-fraction_bits."""
    truncation: Literal["exact", "probabilistic"] = "exact"
    """How products of decimals are rounded: exact, or in one round, with a small chance of nonsense."""
    integer_bits: int = 12
    """With probabilistic truncation, products of decimals are smaller than 2^integer_bits."""
    processes: bool = False
    """Run the user, the dealer and each party as a process of its own, over TCP on this machine."""
    cheat: int | None = None
    """A party, counted from 0, that adds 1 to whatever it opens."""
    show_shares: bool = False
    """Print every party's share of every number."""
    data: Literal["auto", "real", "embedded"] = "auto"
    """Where the picture comes from that --plot shows shared."""

    def __post_init__(self) -> None:
        if self.threshold is not None and self.scheme != "shamir":
            raise ValueError("threshold belongs to Shamir's scheme: say --scheme shamir, or leave it out")
        self.session()

    def sharing(self) -> Additive:
        """The scheme."""
        over = Field(self.prime)
        if self.scheme == "shamir":
            return Shamir(self.parties, over, self.threshold)
        if self.scheme == "authenticated" or (self.scheme is None and self.cheat is not None):
            return Authenticated(self.parties, over)
        return Additive(self.parties, over)

    def session(self, **options: Any) -> Session:
        """A computation with these settings."""
        return Session(
            self.sharing(),
            fraction_bits=self.fraction_bits,
            truncation=self.truncation,
            integer_bits=self.integer_bits,
            cheater=self.cheat,
            **options,
        )


@dataclass(frozen=True)
class Result:
    """What came out, what the parties saw, and what it cost."""

    expression: str
    value: bool | int | float | None
    """What was opened; None if a cheater was caught."""
    expected: bool | int | float
    """The same expression in exact arithmetic."""
    error_bound: float
    """What the rounding of decimals can make value and expected differ at most; for a comparison 0, or
    1 if its sides are closer than that."""
    agrees: bool
    """Whether the value is the expected one, to the error bound."""
    failure_probability: float
    """A bound on the probability that probabilistic truncation made the value nonsense."""
    scheme: str
    parties: int
    threshold: int
    """So many shares say nothing."""
    processes: bool
    rounds: int
    """Rounds between the parties, for the checks and the opening of the result, too."""
    bytes_sent: int
    """Between the parties, headers included."""
    bytes_offline: int
    """From the dealer, which needs to know the expression, but not its numbers."""
    bytes_inputs: int
    """From the user to the parties, and from the dealer to the user."""
    triples: int
    """Beaver triples used up."""
    numbers_dealt: int
    """Numbers that each party got from the dealer: shares of masks, their bits, triples and MACs."""
    numbers_opened: int
    """Numbers that all parties saw opened: masked ones, and the result."""
    cheater_detected: bool
    cheaters: tuple[int, ...]
    """Which parties cheated, where the scheme can tell."""
    verdict: str
    """How the cheating ended, in words."""
    shares: tuple[tuple[int, ...], ...]
    """For each party its shares of the numbers, as these stand in the expression."""
    config: Config = field(repr=False)


# ---- on shares


def compute(program: Program, session: Session, numbers: list[int | float] | None) -> dict[str, Any]:
    """Play all roles that live in this process, and report what they saw.

    Args:
        program: the public expression.
        session: the shares' scheme, and the link to the other roles.
        numbers: what the user knows; None in other roles.

    Returns:
        value, verdict, cheaters, shares (`[k][numbers]`), numbers_dealt, numbers_opened, triples and
        the link's traffic; for a `recipes.parties` message.
    """
    held: dict[int, arithmetic.Shared] = {}

    def shared(index: int) -> arithmetic.Shared:
        bits = session.fraction_bits if program.decimals[index] else 0
        residues = session.encode(numbers[index])[0] if numbers else None
        held[index] = session.input((), bits, residues)
        return held[index]

    value, verdict, cheaters = None, "", ()
    try:
        value = session.decrypt(program.evaluate(shared, arithmetic.select))
        cheaters = sorted(session.liars)
        if cheaters:
            verdict = f"party {cheaters[0]} opened wrong shares, which were corrected"
    except CheaterDetected as error:
        verdict, cheaters = str(error), error.parties
    except PartyLost:
        if session.link.here:
            raise
        verdict = "the parties have stopped"  # which the dealer and the user cannot know beforehand
    here = max(len(session.link.here), 1)
    return {
        "value": value,
        "verdict": verdict,
        "cheaters": list(cheaters),
        "shares": [[int(held[i].shares[k, 0]) for i in sorted(held)] for k in range(len(session.link.here))],
        "numbers_dealt": session.received[links.DEALER] // here,
        "numbers_opened": session.received[links.PARTIES] // here,
        "triples": session.triples_used,
        "truncations": session.truncations,
        "traffic": vars(session.link.traffic),
    }


def compute_in_processes(config: Config) -> dict[str, Any]:
    """`compute` with a process for every role, and their reports put together.

    Raises:
        PartyLost: a process died; all others have been stopped.
    """
    program, numbers = parse(config.expression)
    public = {**vars(config), "expression": program.text, "decimals": program.decimals, "numbers": None}
    settings = dict.fromkeys(links.roles(config.parties), public)
    settings[links.USER] = public | {"numbers": numbers}
    reports = run_processes(play, settings)
    of_parties = [reports[links.party(i)] for i in range(config.parties)]
    first = of_parties[0]
    told = [(one["value"], one["verdict"], one["traffic"]["rounds"]) for one in of_parties]
    if any(one != told[0] for one in told):
        raise PartyLost(f"the parties report different results: {told}")
    traffic = [report["traffic"] for report in reports.values()]
    return first | {
        "shares": [report["shares"][0] for report in of_parties],
        "traffic": {name: sum(one[name] for one in traffic) for name in ("online", "offline", "inputs")}
        | {"rounds": first["traffic"]["rounds"]},
    }


def play(network: Network, settings: dict[str, Any]) -> dict[str, Any]:
    """One role in a process of its own."""
    program = Program(settings.pop("expression"), tuple(settings.pop("decimals")))
    numbers = settings.pop("numbers")
    config = Config(**settings)
    link = links.Remote(network, config.parties)
    return compute(program, config.session(link=link), numbers)


def run(config: Config) -> Result:
    """Compute `config.expression` on shares.

    Raises:
        ValueError: the expression cannot be computed, or leaves the field on the way.
        PartyLost: a process died.
    """
    program, numbers = parse(config.expression)
    session = config.session()
    known = rehearse(program, numbers, session)
    report = compute_in_processes(config) if config.processes else compute(program, session, numbers)
    scheme, traffic = session.scheme, report["traffic"]
    as_bool = program.is_comparison and report["value"] in (0, 1)  # under a cheater it may be anything
    return Result(
        expression=config.expression,
        value=bool(report["value"]) if as_bool else report["value"],
        expected=_plain(known.value, program),
        error_bound=_at_least(min(known.error, 1) if program.is_comparison else known.error),
        agrees=report["value"] is not None and abs(Fraction(report["value"]) - known.value) <= known.error,
        failure_probability=min(1.0, report["truncations"] * session.failure_probability),
        scheme=scheme.name,
        parties=scheme.parties,
        threshold=scheme.needed - 1,
        processes=config.processes,
        rounds=traffic["rounds"],
        bytes_sent=traffic["online"],
        bytes_offline=traffic["offline"],
        bytes_inputs=traffic["inputs"],
        triples=report["triples"],
        numbers_dealt=report["numbers_dealt"],
        numbers_opened=report["numbers_opened"],
        cheater_detected=bool(report["verdict"]),
        cheaters=tuple(report["cheaters"]),
        verdict=report["verdict"],
        shares=tuple(tuple(shares) for shares in report["shares"]),
        config=config,
    )


def _plain(exact: Fraction, program: Program) -> bool | int | float:
    """As Python would give it: a comparison as bool, integers as int unless they were divided."""
    if program.is_comparison:
        return bool(exact)
    return int(exact) if not program.is_decimal else float(exact)


def _at_least(bound: Fraction | int) -> float:
    """The next float that is not below."""
    near = float(bound)
    return near if near >= bound else math.nextafter(near, math.inf)


# ---- the command line

PROFILES = {
    "quick": Config(),
    "full": Config(
        "(22 / 7 - 3) * 100 if 2 ** 10 > 1000 else 0.5", parties=5, scheme="authenticated", processes=True
    ),
}


def main() -> None:
    """The command line."""
    from recipes import cards, command_line  # which import more than this recipe's functions need
    from recipes.secret_sharing.report import describe, plot

    plan = cards.Plan(
        recipe="secret_sharing",
        number=2,
        question="Can three parties compute with numbers that none of them knows?",
        experiments=(
            cards.Experiment("the chapter's sum", Config("5 + 9"), shown=("value",), source="14"),
            cards.Experiment(
                "add, multiply and compare",
                Config(),
                shown=("rounds", "bytes_sent", "triples"),
            ),
            cards.Experiment(
                "the same with MACs, every party a process",
                Config(scheme="authenticated", processes=True),
                shown=("rounds", "bytes_sent", "triples"),
            ),
            cards.Experiment(
                "divide",
                Config("22 / 7"),
                shown=("value", "rounds", "bytes_sent"),
            ),
            cards.Experiment(
                "a cheater among three, caught by MACs",
                Config(cheat=1),
                shown=("cheater_detected",),
            ),
            cards.Experiment(
                "a cheater among five, corrected by Shamir's scheme",
                Config("(17 + 5) * 3.5", scheme="shamir", parties=5, cheat=1),
                shown=("cheater_detected", "value"),
            ),
        ),
    )
    command_line.main("secret_sharing", run, plot, describe, PROFILES, plan)
