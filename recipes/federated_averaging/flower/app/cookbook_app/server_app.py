"""The server on Flower: recipe 1's rounds, with whichever clients answer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from safetensors.numpy import save_file

from recipes import cards, data
from recipes.federated_averaging.config import Config
from recipes.federated_averaging.flower.settings import config_of
from recipes.federated_averaging.networks import NETWORKS, Examples
from recipes.federated_averaging.simulation import Update, chosen, flatten, new_algorithm, server_update
from recipes.files import check_writable, written_whole

ARRIVAL = 600.0  # seconds that the run waits for clients when too few are there to go on
_PAUSE = 0.2  # seconds between two questions to the SuperLink

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds; after each the history goes into its file, after the last the model into another."""
    settings = context.run_config
    config, model_file, history_file = config_of(settings), Path(settings["model"]), Path(settings["history"])
    check_writable(model_file)
    check_writable(history_file)
    images = data.load(config.dataset, config.data)
    test = Examples(flatten(images.test.images), images.test.labels)
    network, algorithm = NETWORKS[config.network], new_algorithm(config)
    nodes, model = Nodes(grid, config, float(settings["patience"])), network.initial(config.seed)
    history = []
    nodes.wait_for_all()
    for number in range(1, config.rounds + 1):
        updates = nodes.round(number, chosen(config, number), model)
        model = server_update(model, list(updates.values()), algorithm)
        history.append(_row(config, updates, *network.evaluate(model, test)))
        cards.write_json(
            history_file, {"settings": dict(settings), "data_source": images.source, "rounds": history}
        )
        clients = " ".join(map(str, updates))
        print(
            f"round {number}: clients {clients}, test accuracy {history[-1]['test_accuracy']:.4f}", flush=True
        )
    with written_whole(model_file) as temporary:
        save_file({"model": model}, temporary)


def _row(config: Config, updates: dict[int, Update], test_accuracy: float, test_loss: float) -> dict:
    """What the history says of a round."""
    seen = config.local_epochs * sum(update.examples for update in updates.values())
    return {
        "clients": list(updates),
        "train_accuracy": sum(update.correct for update in updates.values()) / seen,
        "train_loss": sum(update.loss for update in updates.values()) / seen,
        "test_accuracy": test_accuracy,
        "test_loss": test_loss,
    }


@dataclass
class Nodes:
    """The SuperNodes: which are there, which client each of them is, and which still owe an answer.

    A node that does not answer in time is left out of the round, and not asked again until it has answered or
    the message has expired; a node that is new to the server is asked whoever was chosen, and says who it is.
    """

    grid: Grid
    config: Config
    patience: float
    """Seconds that a round goes on after its first update, for those who have not answered."""
    client: dict[int, int] = field(default_factory=dict)
    """Node to client."""
    owing: dict[str, int] = field(default_factory=dict)
    """Message to the node that has not answered it yet."""

    def wait_for_all(self) -> None:
        """Until as many nodes are there as clients; after `ARRIVAL` those that are there have to do."""
        deadline = time.monotonic() + ARRIVAL
        while len(set(self.grid.get_node_ids())) < self.config.clients and time.monotonic() < deadline:
            time.sleep(_PAUSE)

    def round(self, number: int, chosen: Sequence[int], model: np.ndarray) -> dict[int, Update]:
        """Updates by client, in their order, from at least one of the chosen.

        Raises:
            TimeoutError: none of them came.
        """
        deadline, asked, updates = time.monotonic() + ARRIVAL, set(), {}
        while time.monotonic() < deadline:
            for client, update in self._answers(number, len(model)):
                if update and client in chosen:
                    if not updates:
                        deadline = time.monotonic() + self.patience
                    updates.setdefault(client, update)
            asked |= self._ask(number, chosen, model, asked)
            if updates and not asked & set(self.owing.values()):
                break
            time.sleep(_PAUSE)
        if updates:
            return dict(sorted(updates.items()))
        raise TimeoutError(f"round {number}: none of the clients {chosen} answered within {ARRIVAL:.0f} s")

    def _ask(self, number: int, chosen: Sequence[int], model: np.ndarray, asked: set[int]) -> set[int]:
        """Send the model to the nodes that are chosen or unknown, free, and not asked yet; which they are."""
        free = set(self.grid.get_node_ids()) - asked - set(self.owing.values())
        nodes = [node for node in sorted(free) if self.client.get(node, chosen[0]) in chosen]
        parameters = ArrayRecord({"parameters": Array(model)})
        task = ConfigRecord({"round": number, "chosen": list(chosen)})
        content = {"model": parameters, "task": task}
        way = {"group_id": str(number), "ttl": ARRIVAL + self.patience}
        messages = [Message(RecordDict(content), node, "train", **way) for node in nodes]
        names = self.grid.push_messages(messages)
        self.owing |= {name: node for name, node in zip(names, nodes, strict=True) if name}
        return set(nodes)

    def _answers(self, number: int, size: int) -> Iterator[tuple[int, Update | None]]:
        """Clients that have answered in round `number`, and what they trained; any answer frees its node."""
        for reply in self.grid.pull_messages(list(self.owing)):
            node = self.owing.pop(reply.metadata.reply_to_message_id)
            if reply.has_error():
                print(f"round {number}: no answer from a node: {reply.error.reason}", flush=True)
                continue
            try:
                self.client[node], update = _unpacked(reply.content, size)
            except (KeyError, TypeError, ValueError) as error:
                print(f"round {number}: an answer that is none: {error}", flush=True)
                continue
            if reply.metadata.group_id == str(number):
                yield self.client[node], update


def _unpacked(answer: RecordDict, size: int) -> tuple[int, Update | None]:
    """Who answers, and the update if there is one.

    Raises:
        KeyError, TypeError, ValueError: it cannot be averaged with others.
    """
    client = int(answer["client"]["number"])
    if "change" not in answer:
        return client, None
    update = Update(answer["change"]["change"].numpy(), **answer["numbers"])
    if update.change.shape != (size,) or update.change.dtype != np.float32 or update.examples < 1:
        raise ValueError(f"client {client} sends no {size} float32 from at least one example")
    return client, update
