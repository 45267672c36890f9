"""Processes that talk: who is let in, what is counted, and what happens when one dies."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import hmac
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from recipes import parties
from recipes.parties import HEADER_BYTES, Line, Network, PartyLost, Tls, run_processes, run_threads, wire

SECRET = b"what all roles know"


def together(protocol, roles=("a", "b", "c"), secrets=None, tls=None, line=None):
    """Run `protocol(network)` for every role, each in a thread; results or exceptions by role."""
    listeners = {role: socket.create_server(("127.0.0.1", 0)) for role in roles}
    addresses = {role: listener.getsockname() for role, listener in listeners.items()}

    def play(role):
        secret, shown = (secrets or {}).get(role, SECRET), (tls or {}).get(role)
        try:
            with Network(role, addresses, secret, listeners[role], tls=shown, line=line) as network:
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
        return [network.receive("a") for _ in range(3)]

    assert together(protocol, roles="ab")["b"] == [b"one", b"", b"three"]


def test_who_does_not_know_the_secret_stays_out(monkeypatch, capfd):
    monkeypatch.setattr(wire, "PATIENCE", 1.0)
    result = together(lambda network: "in", secrets={"c": b"another"})
    assert isinstance(result["c"], PartyLost)
    assert result["c"].role in ("a", "b")  # whichever answered first
    assert "have not been given the same secret" in str(result["c"])
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


@contextlib.contextmanager
def waiting(listeners, addresses, tls=None):
    """Meanwhile a waits for b, who comes at last."""

    def play(role):
        with Network(role, addresses, SECRET, listeners[role], tls=tls and tls(role)):
            pass

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(play, "a")
        yield
        assert not first.done()
        play("b")
        first.result(10)


@pytest.mark.parametrize(
    "changes", [{"protocol": "another 2"}, {"from": "z"}, {"from": "a"}, {"to": "b"}, {"from": ["b"]}]
)
def test_other_protocols_and_roles_are_turned_away(changes, capfd):
    listeners = {role: socket.create_server(("127.0.0.1", 0)) for role in "ab"}
    addresses = {role: listener.getsockname() for role, listener in listeners.items()}
    with waiting(listeners, addresses), hello(addresses["a"], **changes) as connection:
        assert connection.recv(100) == b""
    assert capfd.readouterr().err.count("turned away") == 1


def test_a_proof_cannot_be_sent_back(capfd):
    listeners = {role: socket.create_server(("127.0.0.1", 0)) for role in "ab"}
    addresses = {role: listener.getsockname() for role, listener in listeners.items()}
    with waiting(listeners, addresses), hello(addresses["a"]) as connection:
        answer = connection.recv(1000)
        assert b"proof" in answer
        connection.sendall(answer)  # what it has just proved, returned as our own proof
        assert connection.recv(100) == b""
    assert capfd.readouterr().err.count("turned away") == 1


def test_who_waits_in_vain_says_so_in_one_line(python):
    code = """
import socket
from recipes import shell
from recipes.parties import Network
with shell.one_line_errors("test"):
    addresses = {role: ("127.0.0.1", 1) for role in "abc"}
    Network("b", addresses, b"secret", socket.create_server(("127.0.0.1", 0)), patience=0.5)
"""
    done = python("-c", code)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "test: b could not reach a, c\n"


def test_silence_is_taken_for_loss(monkeypatch):
    joined = threading.Barrier(3)

    def protocol(network):
        joined.wait()
        monkeypatch.setattr(wire, "PATIENCE", 1.0)
        if network.role == "c":
            time.sleep(3)
        else:
            network.exchange(dict.fromkeys(network.sent, b"here"))

    result = together(protocol)
    assert {role: error.role for role, error in result.items() if isinstance(error, PartyLost)} == {
        "a": "c",
        "b": "c",
    }


def test_who_is_not_there_yet_is_waited_for():
    listeners = {role: socket.create_server(("127.0.0.1", 0)) for role in "ab"}
    addresses = {role: listener.getsockname() for role, listener in listeners.items()}
    listeners.pop("a").close()

    def late():
        time.sleep(0.5)
        with Network("a", addresses, SECRET, socket.create_server(addresses["a"])) as network:
            return network.receive("b")

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(late)
        with Network("b", addresses, SECRET, listeners["b"]) as network:
            network.send({"a": b"at last"})
            assert first.result(10) == b"at last"


def test_the_role_that_is_lost_is_named_to_those_who_wait_for_others():
    """a waits for b, and b for c, who leaves: a hears of c."""
    joined = threading.Barrier(3)

    def protocol(network):
        joined.wait()
        if network.role == "a":
            network.receive("b")
        if network.role == "b":
            network.receive("c")

    result = together(protocol)
    assert {role: error.role for role, error in result.items() if error} == {"a": "c", "b": "c"}
    assert str(result["a"]) == "a heard from b that c is lost"


@pytest.mark.parametrize("gone", ["b", "c"])
def test_a_role_that_dies_while_others_are_waited_for_is_named(gone):
    """a and one other have met, and wait for the third, which never comes."""
    listeners = {role: socket.create_server(("127.0.0.1", 0)) for role in "abc"}
    addresses = {role: listener.getsockname() for role, listener in listeners.items()}
    thread_ended = []

    def wait():
        with pytest.raises(PartyLost) as error:
            Network("a", addresses, SECRET, listeners["a"])
        thread_ended.append(error.value)

    thread = threading.Thread(target=wait)
    thread.start()
    with hello(addresses["a"], **{"from": gone}) as connection:
        answer = json.loads(connection.recv(1000)[HEADER_BYTES:])
        words = json.dumps(["call", gone, "a", "00", answer["nonce"]]).encode()
        body = json.dumps({"proof": hmac.new(SECRET, words, hashlib.sha256).hexdigest()}).encode()
        connection.sendall(len(body).to_bytes(HEADER_BYTES, "little") + body)
        time.sleep(0.5)
        assert thread.is_alive()
    start = time.monotonic()
    thread.join()
    assert time.monotonic() - start < 5
    assert (thread_ended[0].role, str(thread_ended[0])) == (gone, f"a lost {gone}")


def test_a_role_that_has_done_its_part_may_go_while_others_are_still_awaited():
    """c joins late; b has said what it had to say, and a needs to hear c only."""
    listeners = {role: socket.create_server(("127.0.0.1", 0)) for role in "abc"}
    addresses = {role: listener.getsockname() for role, listener in listeners.items()}

    def handshake():  # as b, which then takes its leave
        with hello(addresses["a"]) as connection:
            answer = json.loads(connection.recv(1000)[HEADER_BYTES:])
            words = json.dumps(["call", "b", "a", "00", answer["nonce"]]).encode()
            body = json.dumps({"proof": hmac.new(SECRET, words, hashlib.sha256).hexdigest()}).encode()
            connection.sendall(len(body).to_bytes(HEADER_BYTES, "little") + body)
            connection.sendall(b"\xff" * 4 + bytes(HEADER_BYTES))

    with ThreadPoolExecutor(1) as pool:
        network = pool.submit(Network, "a", addresses, SECRET, listeners["a"])
        handshake()
        time.sleep(0.5)
        assert not network.done()
        listeners["b"].close()
        others = {"a": addresses["a"], "c": addresses["c"]}
        with Network("c", others, SECRET, listeners["c"]) as c, network.result(10) as a:
            c.send({"a": b"here"})
            assert a.receive("c") == b"here"
            with pytest.raises(PartyLost, match="a lost b"):
                a.receive("b")


def test_strangers_cannot_use_up_all_connections():
    """More strangers than a process may have open files; then the others come."""
    code = """
import resource, socket, sys, threading, time
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
from recipes.parties import Network
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
addresses = {"a": listener.getsockname(), "b": ("127.0.0.1", 1)}
with Network("a", addresses, b"secret", listener) as network:
    print(network.receive("b").decode())
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as one:
        address = ("127.0.0.1", int(one.stdout.readline()))
        strangers = [socket.create_connection(address, timeout=10) for _ in range(60)]
        time.sleep(1)
        for stranger in strangers:
            stranger.close()
        listener = socket.create_server(("127.0.0.1", 0))
        with Network("b", {"a": address, "b": listener.getsockname()}, b"secret", listener) as network:
            network.send({"a": b"here"})
            assert one.stdout.read() == b"here\n"
        one.stderr.read()


@pytest.mark.parametrize("message", [b"\xff" * 4, memoryview(b"view"), b"", memoryview(bytes(3_000_000))])
def test_messages_may_be_any_bytes(message):
    received = together(lambda network: network.exchange(dict.fromkeys(network.sent, message)), roles="ab")
    assert received == {"a": {"b": message}, "b": {"a": message}}


def test_a_slower_line_can_be_imitated():
    line = Line(delay=0.05, bandwidth=100_000)

    def protocol(network):
        start = time.monotonic()
        for _ in range(3):
            network.exchange(dict.fromkeys(network.sent, bytes(10_000)))
        return time.monotonic() - start

    for seconds in together(protocol, roles=("a", "b"), line=line).values():
        assert seconds >= 3 * (0.05 + 0.1)


# ---- certificates


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """For each role a certificate by one authority; and one for a by another."""
    folder = tmp_path_factory.mktemp("certificates")
    write_certificates(folder, "authority", ["a", "b", "c"])
    write_certificates(folder, "impostor", ["z"])
    return lambda role, authority="authority": Tls(
        folder / f"{role}.pem", folder / f"{role}.key", folder / f"{authority}.pem"
    )


def write_certificates(folder: Path, authority: str, roles: list[str]) -> None:
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in (authority, *roles)}
    now = datetime.datetime.now(datetime.UTC)
    for name, key in keys.items():
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, authority)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=name == authority, path_length=None), critical=True)
            .sign(keys[authority], hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )


def test_with_certificates_all_is_encrypted(certificates):
    secret = b"nobody else may read this" * 10

    def protocol(network):
        _, writer = network._streams[next(iter(network.sent))]
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        for size in (1, 100_000, 3_000_000):  # in one direction, many times
            if network.role == "a":
                for _ in range(5):
                    network.send({"b": bytes(size)})
            elif network.role == "b":
                assert [len(network.receive("a")) for _ in range(5)] == [size] * 5
        return network.exchange(dict.fromkeys(network.sent, secret)), network.sent.get("c")

    result = together(protocol, tls={role: certificates(role) for role in "abc"})
    for role, (received, sent) in result.items():
        others = [other for other in "abc" if other != role]
        assert received == dict.fromkeys(others, secret)
        assert sent == (None if role == "c" else HEADER_BYTES + len(secret))


def test_whoever_goes_as_soon_as_it_has_come_is_not_missed(certificates):
    """b takes its leave in the same breath in which it proves that it belongs here."""
    listeners = {role: socket.create_server(("127.0.0.1", 0)) for role in "ab"}
    addresses = {role: listener.getsockname() for role, listener in listeners.items()}
    with waiting(listeners, addresses, certificates):
        pass  # as it ends, it checks that both have met


def test_a_message_has_left_before_its_sender_goes_on(certificates):
    """It computes for longer than the others are patient, and is not taken for lost."""
    size = 6_050_000

    def protocol(network):
        if network.role == "a":
            network.send({"b": bytes(size)})
            time.sleep(3)
            return None
        start = time.monotonic()
        assert len(network.receive("a")) == size
        return time.monotonic() - start

    assert together(protocol, roles="ab", tls={role: certificates(role) for role in "ab"})["b"] < 2


@pytest.mark.parametrize(
    ("who", "authority"), [("b", "authority"), ("z", "authority"), ("z", "impostor"), (None, None)]
)
def test_a_role_without_its_certificate_stays_out(who, authority, certificates, monkeypatch, capfd):
    """c shows another role's certificate, one by a stranger, trusts the stranger, or shows none."""
    monkeypatch.setattr(wire, "PATIENCE", 2.0)
    tls = {"a": certificates("a"), "c": certificates(who, authority) if who else None}
    result = together(lambda network: "in", roles=("a", "c"), tls=tls)
    assert all(isinstance(error, PartyLost) for error in result.values())
    assert result["a"].role == "c"
    assert len(capfd.readouterr().err.splitlines()) <= 1


def test_who_answers_without_the_certificate_is_not_talked_to(certificates, monkeypatch):
    """a answers c with b's certificate."""
    monkeypatch.setattr(wire, "PATIENCE", 2.0)
    tls = {"a": certificates("b"), "c": certificates("c")}
    result = together(lambda network: "in", roles=("a", "c"), tls=tls)
    assert "certificate is not valid for 'a'" in str(result["c"])


def test_garbage_on_an_encrypted_port_is_turned_away(certificates, capfd):
    listeners = {role: socket.create_server(("127.0.0.1", 0)) for role in "ab"}
    addresses = {role: listener.getsockname() for role, listener in listeners.items()}
    with (
        waiting(listeners, addresses, certificates),
        socket.create_connection(addresses["a"], timeout=10) as stranger,
    ):
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            while stranger.recv(100):
                pass
    assert capfd.readouterr().err.count("turned away") == 1


def test_files_that_are_no_certificates_are_named(certificates, tmp_path):
    good = certificates("a")
    (tmp_path / "text").write_text("hello")
    for bad in (
        dataclasses.replace(good, key=certificates("b").key),
        dataclasses.replace(good, certificate=tmp_path / "text"),
        dataclasses.replace(good, authority=tmp_path / "absent"),
    ):
        with pytest.raises(ValueError, match="are no certificate, its key and its authority's"):
            Network("a", {"a": ("127.0.0.1", 1)}, SECRET, socket.create_server(("127.0.0.1", 0)), tls=bad)


# ---- threads


def test_threads_play_the_same_roles_and_keep_what_they_were_told():
    def play(network):
        network.send({other: network.role.encode() for other in network.sent})
        heard = [network.receive(other) for other in sorted(network.sent)]
        return heard, network.received, network.sent

    for role, (heard, received, sent) in run_threads(dict.fromkeys("abc", play)).items():
        others = [other for other in "abc" if other != role]
        assert heard == [other.encode() for other in others]
        assert received == [(other, other.encode()) for other in others]
        assert sent == dict.fromkeys(others, HEADER_BYTES + 1)


def test_of_threads_the_cause_is_raised():
    def fails(network):
        raise ValueError("a bad day")

    with pytest.raises(ValueError, match="a bad day"):
        run_threads({"a": lambda network: network.receive("b"), "b": fails})


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
    monkeypatch.setattr(wire, "PATIENCE", 1.0)
    start = time.monotonic()
    with pytest.raises(PartyLost, match="b has gone silent; the others have ended"):
        run_processes(stop_at_the_end, NUMBERS)
    assert time.monotonic() - start < 8


def test_children_that_never_begin_are_reported(monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(PartyLost, match="ended"):
        run_processes(double, NUMBERS)


def test_a_child_that_is_told_nothing_says_nothing(python):
    done = python("-c", "from recipes.parties.processes import serve; serve()", stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
