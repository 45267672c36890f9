"""A client on Flower: recipe 1's work of a round, on the images that are its own."""

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from recipes import data
from recipes.federated_averaging.config import Config
from recipes.federated_averaging.flower.settings import config_of
from recipes.federated_averaging.networks import Examples
from recipes.federated_averaging.simulation import Update, clients_of, new_algorithm, take_part

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """A round: the global model comes; the change goes back, if this client was chosen, and who it is."""
    config, client = config_of(context.run_config), int(context.node_config["partition-id"])
    if not 0 <= client < config.clients:
        raise ValueError(f"partition-id is {client}: there are {config.clients} clients, from 0")
    task = message.content["task"]
    answer = RecordDict({"client": MetricRecord({"number": client})})
    if client in task["chosen"]:
        model = message.content["model"]["parameters"].numpy().copy()
        pull = new_algorithm(config).pull(client, model)
        answer.update(
            _packed(take_part(task["round"], client, model, examples(config, client), config, pull))
        )
    return Message(answer, reply_to=message)


def examples(config: Config, client: int) -> Examples:
    """This client's images; whoever has some of their own returns them here."""
    return clients_of(data.load(config.dataset, config.data), config)[client]


def _packed(update: Update) -> dict[str, ArrayRecord | MetricRecord]:
    numbers = update._asdict()
    change = ArrayRecord({"change": Array(numbers.pop("change"))})
    return {"change": change, "numbers": MetricRecord(numbers)}
