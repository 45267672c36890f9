"""Can clients train one model while their images stay at home?

Federated averaging: a server sends a model to its clients, each trains it on its own data, and the server
averages what comes back. Then the claim is put to the test: images are got back from a client's update, the
updates are sealed, what they tell together is bounded, and hostile clients turn the model around.

Who sees what: a client sees its own data and every global model; with two clients that is enough to get the
        other's model, by subtraction. The server sees every client's change of the model in plaintext, and
        no image. That says where the images are, not what a change tells of them: every run gets images back
        from changes. With secure aggregation (`secure`) the server sees the sum of the changes and who took
        part; of few clients the sum still gives images away. With `noise` besides, whoever sees the global
        models cannot tell whether any one client took part, up to epsilon; against the server, which knows
        who did, epsilon is larger, and is stated, too. It does not cover the training accuracies that are
        printed beside, nor another client, which knows its own part of sealed noise. With `noise` alone the
        server still sees the changes.
Paper:  McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017,
        arXiv:1602.05629, Algorithm 1. The papers behind algorithms, partitions, attacks, secure aggregation,
        privacy and robust means are named in `algorithms`, `partition`, `leakage`, `secure_aggregation`,
        `privacy` and `robust`.
Source: Tsukerman, "Machine Learning for Cybersecurity Cookbook", Packt 2019, chapter 8, which printed
        training accuracy 0.74365 and loss 0.82071316 for one round.
Status: simplified (all parties in one process, where they run one after the other or in threads; on Flower
        in processes or on machines, without secure aggregation and noise. Noise is drawn from the seed, in
        floating point, and rounded with what is sealed: whoever has the seed takes it away again).
Expect: Alice and Bob, one round on Fashion-MNIST, softmax regression from zeros, SGD 0.02, batches of 32:
        training accuracy 0.743367 and loss 0.820889 in file order, 0.743650 and 0.820713 in the order in
        which the chapter's loader served the images; 0.7872 and 0.7888 on the test images. The table: rounds
        to 80 % with 100 clients, seed 0, equal parts and two shards each: FedSGD 239 and 225, E = 5 with
        B = 10 3 and 58. Half a minute; another half with TFF. The paper's CNN reaches 99 % of MNIST after
        24, 20 and 20 rounds (seeds 0 to 2, 700 CPU seconds each); with two shards a client not
        within 250 (98.98 % at best), where the paper reports 229. A processor that rounds otherwise may
        need a few more or fewer.
Command: python -m recipes.federated_averaging --rounds 10 --plot federated.png
         python -m recipes.federated_averaging --clients 100 --clients-per-round 10 --partition iid --secure
"""

from recipes.federated_averaging.aggregation import Aggregator
from recipes.federated_averaging.algorithms import ALGORITHMS
from recipes.federated_averaging.config import Config
from recipes.federated_averaging.experiment import Result, main, run
from recipes.federated_averaging.leakage import (
    image_from_change,
    images_from_change,
    images_from_sum,
    one_by_one,
    reconstruction_mse,
)
from recipes.federated_averaging.networks import NETWORKS, Examples
from recipes.federated_averaging.partition import partition
from recipes.federated_averaging.report import describe, plot
from recipes.federated_averaging.simulation import (
    Round,
    Update,
    client_update,
    clients_of,
    federated_rounds,
    flatten,
    mean,
    server_update,
    take_part,
)
from recipes.federated_averaging.tff_engine import tff_rounds

__all__ = [
    "ALGORITHMS",
    "NETWORKS",
    "Aggregator",
    "Config",
    "Examples",
    "Result",
    "Round",
    "Update",
    "client_update",
    "clients_of",
    "describe",
    "federated_rounds",
    "flatten",
    "image_from_change",
    "images_from_change",
    "images_from_sum",
    "main",
    "mean",
    "one_by_one",
    "partition",
    "plot",
    "reconstruction_mse",
    "run",
    "server_update",
    "take_part",
    "tff_rounds",
]
