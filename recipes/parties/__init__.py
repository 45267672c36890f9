"""Real parties: a process each, which talk over TCP, keep strangers out, and count rounds and bytes.

`run_processes` starts the roles of a protocol on this machine and gives back what each of them
returned. In each process `serve` runs the protocol with a `Network`: authenticated connections to
every other role. If one of them dies, all end within seconds, and one line says which it was; one that
is silent is taken for dead after half a minute. `run_threads` plays the same roles in threads of one
process, for pictures and tests of what each of them sees.

Every two roles prove to each other that they know the run's secret (HMAC-SHA256 over both roles and
two nonces), which `run_processes` gives to the processes on their standard input. That keeps strangers
out; a role of the same run could pose as another, and what follows is neither encrypted nor
authenticated. That is for the loopback interface of one machine. Between machines, give every role a
certificate (`Tls`): connections are then encrypted, and a role is who its certificate says.
"""

from recipes.parties.handshake import PROTOCOL, Tls
from recipes.parties.network import Line, Network
from recipes.parties.processes import run_processes
from recipes.parties.threads import Mailboxes, run_threads
from recipes.parties.wire import HEADER_BYTES, PATIENCE, PartyLost

__all__ = [
    "HEADER_BYTES",
    "PATIENCE",
    "PROTOCOL",
    "Line",
    "Mailboxes",
    "Network",
    "PartyLost",
    "Tls",
    "run_processes",
    "run_threads",
]
