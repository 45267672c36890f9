"""Which points of a polynomial are wrong: the decoder of Berlekamp and Welch.

Shamir's shares are a Reed-Solomon code, so that wrong ones can be found among enough of them.
"""

from __future__ import annotations

from collections.abc import Sequence


def wrong_points(points: Sequence[int], values: Sequence[int], degree: int, prime: int) -> set[int] | None:
    """The points whose values do not lie on the polynomial that most of them share.

    Let E be a polynomial that is zero at the e wrong points and f the one sought. Then Q = f * E
    satisfies Q(x) = y * E(x) at every point: where y is right, because y = f(x), and where it is
    wrong, because E(x) = 0. The coefficients of Q and E are a linear system's unknowns, and
    f = Q / E. (Welch and Berlekamp, US patent 4,633,470, 1986.)

    Args:
        points: m different integers from 1 to prime - 1.
        values: the residues at these points.
        degree: of f, at most; m > degree.
        prime: the modulus.

    Returns:
        At most (m - degree - 1) / 2 points. If more values are wrong than that, None, or points that
        are wrong for another polynomial.
    """
    errors = (len(points) - degree - 1) // 2
    width = degree + errors + 1  # coefficients of Q, beside the e lower ones of E, whose highest is 1
    system = []
    for x, y in zip(points, values, strict=True):
        powers = [pow(x, power, prime) for power in range(width)]
        of_e = [-y * power % prime for power in powers[:errors]]
        system.append([*powers[:width], *of_e, y * powers[errors] % prime])
    solution = _solve(system, prime)
    if solution is None:
        return None
    f = _divide(solution[:width], [*solution[width:], 1], prime)
    if f is None:
        return None
    wrong = {x for x, y in zip(points, values, strict=True) if _value(f, x, prime) != y}
    return wrong if len(wrong) <= errors else None


def _solve(system: list[list[int]], prime: int) -> list[int] | None:
    """One solution of linear equations (each row: coefficients, right side), None if there is none."""
    unknowns, pivots = len(system[0]) - 1, []
    for column in range(unknowns):
        below = range(len(pivots), len(system))
        pivot = next((row for row in below if system[row][column]), None)
        if pivot is None:
            continue  # a free unknown, taken as 0
        rank = len(pivots)
        system[rank], system[pivot] = system[pivot], system[rank]
        scale = pow(system[rank][column], -1, prime)
        system[rank] = [entry * scale % prime for entry in system[rank]]
        for row, entries in enumerate(system):
            if row != rank and entries[column]:
                pairs = zip(entries, system[rank], strict=True)
                system[row] = [(entry - entries[column] * one) % prime for entry, one in pairs]
        pivots.append(column)
    if any(row[-1] for row in system[len(pivots) :]):
        return None
    solution = [0] * unknowns
    for row, column in enumerate(pivots):
        solution[column] = system[row][-1]
    return solution


def _divide(dividend: Sequence[int], divisor: Sequence[int], prime: int) -> list[int] | None:
    """The quotient of polynomials (lowest coefficient first, divisor monic), None if one is left over."""
    rest, quotient = list(dividend), []
    while len(rest) >= len(divisor):
        factor = rest[-1]
        quotient.insert(0, factor)
        offset = len(rest) - len(divisor)
        for index, coefficient in enumerate(divisor):
            rest[offset + index] = (rest[offset + index] - factor * coefficient) % prime
        rest.pop()
    return None if any(rest) else quotient


def _value(polynomial: Sequence[int], x: int, prime: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * x + coefficient) % prime
    return value
