"""Processes that talk: who is let in, what is counted, and what happens when one dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from recipes import parties
from recipes.parties import HEADER_BYTES, Network, PartyLost, run_processes

SECRET = b"what all roles know"


def together(protocol, roles=("a", "b", "c"), secrets=None):
    """Run `protocol(network)` for every role, each in a thread; results or exceptions by role."""
    listeners = {role: socket.create_server(("127.0.0.1", 0)) for role in roles}
    addresses = {role: listener.getsockname() for role, listener in listeners.items()}

    def play(role):
        try:
            with Network(role, addresses, (secrets or {}).get(role, SECRET), listeners[role]) as network:
                return protocol(network)
        except PartyLost as error:
            return error

    with ThreadPoolExecutor(len(roles)) as pool:
        return dict(zip(roles, pool.map(play, roles), strict=True))


def test_a_round_brings_everybodys_message_to_everybody():
    def protocol(network):
        received = [
            network.exchange(dict.fromkeys(network.sent, f"{network.role}{turn}".encode()))
            for turn in range(3)
        ]
        return received, network.rounds, network.sent

    for role, (received, rounds, sent) in together(protocol).items():
        others = [other for other in "abc" if other != role]
        assert received == [{other: f"{other}{turn}".encode() for other in others} for turn in range(3)]
        assert rounds == 3
        assert sent == dict.fromkeys(others, 3 * (HEADER_BYTES + 2))


def test_large_messages_in_all_directions_do_not_block():
    size = 20_000_000

    def protocol(network):
        received = network.exchange(dict.fromkeys(network.sent, os.urandom(1) * size))
        return [len(message) for message in received.values()]

    assert together(protocol) == {role: [size, size] for role in "abc"}


def test_messages_keep_their_order_and_may_be_empty():
    def protocol(network):
        if network.role == "a":
            for message in (b"one", b"", b"three"):
                network.send({"b": message})
            return None
        return [network.receive("a") for _ in range(3)] if network.role == "b" else None

    assert together(protocol)["b"] == [b"one", b"", b"three"]


def test_who_does_not_know_the_secret_stays_out(monkeypatch, capfd):
    monkeypatch.setattr(parties, "PATIENCE", 1.0)
    result = together(lambda network: "in", secrets={"c": b"another"})
    assert isinstance(result["c"], PartyLost)
    assert result["c"].role == "a"
    assert isinstance(result["a"], PartyLost)
    assert result["a"].role == "c"
    assert "turned away" not in capfd.readouterr().err  # the other one left first: the proof was wrong


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff",
        b"\x02\0\0\0{}",
        b"\x02\0\0\0[]",
        b"\x04\0\0\0null",
        b"\x05\0\0\0\xff\xfe\xfd\xfc\xfb",
        b"\0\x04\0\0" + b"[" * 1024,
    ],
)
def test_strangers_are_turned_away_and_the_run_goes_on(garbage, capfd):
    listeners = {role: socket.create_server(("127.0.0.1", 0)) for role in "ab"}
    addresses = {role: listener.getsockname() for role, listener in listeners.items()}

    def play(role):
        with Network(role, addresses, SECRET, listeners[role]) as network:
            return network.exchange(dict.fromkeys(network.sent, role.encode()))

    with ThreadPoolExecutor(2) as pool, socket.create_connection(addresses["a"]) as stranger:
        first = pool.submit(play, "a")
        stranger.sendall(garbage)
        stranger.settimeout(10)
        assert stranger.recv(100) == b""  # shown the door
        second = pool.submit(play, "b")
        assert first.result(10) == {"b": b"b"}
        assert second.result(10) == {"a": b"a"}
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "a stranger at 127.0.0.1" in lines[0]


def hello(address, **changes):
    """Say hello as party b, and give back what is answered."""
    message = {"protocol": parties.PROTOCOL, "from": "b", "to": "a", "nonce": "00"} | changes
    body = json.dumps(message).encode()
    connection = socket.create_connection(address, timeout=10)
    connection.sendall(len(body).to_bytes(HEADER_BYTES, "little") + body)
    return connection


def waiting_for(role, addresses, listener) -> threading.Thread:
    """A thread in which a role waits in vain for the others."""

    def wait():
        with contextlib.suppress(PartyLost):
            Network(role, addresses, SECRET, listener)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "changes", [{"protocol": "another 2"}, {"from": "z"}, {"from": "a"}, {"to": "b"}, {"from": ["b"]}]
)
def test_other_protocols_and_roles_are_turned_away(changes, monkeypatch, capfd):
    monkeypatch.setattr(parties, "PATIENCE", 3.0)
    listeners = {role: socket.create_server(("127.0.0.1", 0)) for role in "ab"}
    addresses = {role: listener.getsockname() for role, listener in listeners.items()}
    thread = waiting_for("a", addresses, listeners["a"])
    with hello(addresses["a"], **changes) as connection:
        assert connection.recv(100) == b""
    thread.join()
    listeners["b"].close()
    assert capfd.readouterr().err.count("turned away") == 1


def test_a_proof_cannot_be_sent_back(monkeypatch, capfd):
    monkeypatch.setattr(parties, "PATIENCE", 3.0)
    listeners = {role: socket.create_server(("127.0.0.1", 0)) for role in "ab"}
    addresses = {role: listener.getsockname() for role, listener in listeners.items()}
    thread = waiting_for("a", addresses, listeners["a"])
    with hello(addresses["a"]) as connection:
        answer = connection.recv(1000)
        assert b"proof" in answer
        connection.sendall(answer)  # what it has just proved, returned as our own proof
        assert connection.recv(100) == b""
    thread.join()
    listeners["b"].close()
    assert capfd.readouterr().err.count("turned away") == 1


def test_silence_is_taken_for_loss(monkeypatch):
    joined = threading.Barrier(3)

    def protocol(network):
        joined.wait()
        monkeypatch.setattr(parties, "PATIENCE", 1.0)
        if network.role == "c":
            time.sleep(5)
        else:
            network.exchange(dict.fromkeys(network.sent, b"here"))

    result = together(protocol)
    assert {role: error.role for role, error in result.items() if isinstance(error, PartyLost)} == {
        "a": "c",
        "b": "c",
    }


# ---- processes


def double(network, number):
    received = network.exchange(dict.fromkeys(network.sent, str(number).encode()))
    return sum(int(message) for message in received.values()) + number


def fail(network, number):
    if network.role == "b":
        raise ValueError("a bad day")
    return double(network, number)


def die(network, number):
    if number < 0:
        os.kill(os.getpid(), -number)
    return double(network, number)


def leave(network, number):
    if network.role == "b":
        os._exit(0)
    return double(network, number)


def hang(network, number):
    if network.role == "b":
        time.sleep(60)
    if network.role == "c":
        os._exit(3)
    return double(network, number)


def stop_at_the_end(network, number):
    result = double(network, number)
    if network.role == "b":
        os.kill(os.getpid(), signal.SIGSTOP)
    return result


NUMBERS = {"a": 1, "b": 20, "c": 300}


def test_every_process_gets_its_own_settings_and_all_results_come_back():
    assert run_processes(double, NUMBERS) == {"a": 321, "b": 321, "c": 321}


@pytest.mark.parametrize(
    ("play", "message"),
    [
        (fail, "b failed: ValueError: a bad day; the others"),
        (leave, "b ended without a result; the others"),
        (hang, "c ended with status 3; the others"),
    ],
)
def test_the_cause_is_named_and_nobody_waits(play, message, capfd):
    start = time.monotonic()
    with pytest.raises(PartyLost, match=message):
        run_processes(play, NUMBERS)
    assert time.monotonic() - start < 8
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGSEGV, "SIGSEGV"), (signal.SIGINT, "SIGINT"), (signal.SIGRTMIN + 6, "signal 40")],
)
def test_the_signal_is_named(number, name, capfd):
    with pytest.raises(PartyLost, match=rf"b was killed \({name}\); the others"):
        run_processes(die, NUMBERS | {"b": -int(number)})
    assert capfd.readouterr().err == ""


def test_who_goes_silent_when_all_others_have_ended_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(parties, "PATIENCE", 1.0)
    start = time.monotonic()
    with pytest.raises(PartyLost, match="b has gone silent; the others have ended"):
        run_processes(stop_at_the_end, NUMBERS)
    assert time.monotonic() - start < 8


def test_children_that_never_begin_are_reported(monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(PartyLost, match="ended"):
        run_processes(double, NUMBERS)


def test_a_child_that_is_told_nothing_says_nothing(python):
    done = python("-c", "from recipes.parties import serve; serve()", stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
