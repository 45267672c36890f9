"""Can the clients be processes, or machines, of their own?

Recipe 1 on Flower: a SuperLink, through which everything passes, a SuperNode for each client, and the same
rounds: a client's work is `take_part`, the choice of clients `sample`, the server's step `server_update`. The
launcher starts all of them on this machine, and afterwards sets the weights beside those of the simulation in
one process. `README.md` says who starts what when they are several machines.

Who sees what: what the recipe says. The SuperLink and the server's app see every client's change of the model
        in plaintext, and no image. Whoever may start a run executes code on every client. On this machine
        the parties talk unencrypted over the loopback, where any user may start one; between machines over
        TLS, with keys for the SuperNodes.
Paper:  Beutel et al., "Flower: A Friendly Federated Learning Research Framework", 2020, arXiv:2007.14390.
Status: reference, for softmax regression and the plain mean; without secure aggregation and noise, for which
        clients would need to talk to each other.
Expect: Alice and Bob, three rounds: the weights of the simulation, at a distance of at most 1e-6. Half a
        minute, nearly all of which Flower takes to start its processes, one for each client in each round. A
        client whose SuperNode dies is left out from then on; the first round without it waits `--patience`
        seconds.
Command: make recipe-1-flower
         python -m recipes.federated_averaging.flower --rounds 3 --kill 1 --patience 10
"""
