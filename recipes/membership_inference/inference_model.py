"""The article's attack: train a network to tell members from non-members (Nasr, Shokri and Houmansadr, 2019).

    "Comprehensive privacy analysis of deep learning", arXiv:1812.00910, as ML Privacy Meter had it until 2022

The attacker knows some members and some non-members, and what the target makes of each: outputs of layers and
gradients of their weights (white-box), or the last outputs alone (black-box), with the loss and the
label. Each of these goes through a component of its own; an encoder puts the components together.

Who sees what: a stronger attacker than those of `attacks`: it knows members by name. In return it trains no
network of the target's size. What it knows is never what it is judged on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from recipes import progress
from recipes.membership_inference.config import Optimiser


@dataclass(frozen=True)
class Exploit:
    """What the attack sees of the target."""

    layers_to_exploit: tuple[int, ...] = (-1,)
    """Layers whose outputs it sees, counted among all; -1 is the last."""
    gradients_to_exploit: tuple[int, ...] = ()
    """Layers the gradients of whose weights it sees, counted among those that have weights."""
    exploit_loss: bool = True
    exploit_label: bool = True

    def __post_init__(self) -> None:
        if not (self.layers_to_exploit or self.gradients_to_exploit or self.exploit_loss):
            raise ValueError(
                "the attack sees nothing of the target: give layers_to_exploit, gradients_to_exploit "
                "or exploit_loss"
            )


ARTICLE = {
    "gradient": Exploit((-1,), (-1,)),
    "layers": Exploit((-2, -1)),
    "output": Exploit((-1,), exploit_loss=False),
}
"""The article's three: white-box with the last layer's gradient; white-box with the outputs of the last two
layers; black-box."""


@dataclass(frozen=True)
class Settings:
    """How the attack is trained."""

    optimiser: Optimiser = "adam"
    learning_rate: float = 1e-3
    epochs: int = 15
    """At most: the one is kept that does best on a tenth of what the attacker knows."""
    batch: int = 64
    seed: int = 0


def layers(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """All layers of a network that hold no others, in the order of their definition, by name."""
    return [(name, module) for name, module in network.named_modules() if not list(module.children())]


def chosen_layers(network: nn.Module, places: Sequence[int], with_weights: bool) -> list[nn.Module]:
    """The layers that are meant.

    Raises:
        ValueError: there is no such layer.
    """
    found = [
        (n, m)
        for n, m in layers(network)
        if not with_weights or isinstance(getattr(m, "weight", None), Tensor)
    ]
    for place in places:
        if not -len(found) <= place < len(found):
            listed = ", ".join(f"{i} {type(m).__name__}" for i, (_, m) in enumerate(found))
            field = "gradients_to_exploit" if with_weights else "layers_to_exploit"
            raise ValueError(f"{field} {place} is none of the {len(found)} layers: {listed}")
    return [found[place][1] for place in places]


# --- what the attack sees: components, of which a batch is taken by `component[indices]` --------------


@dataclass(frozen=True)
class Outer:
    """Gradients of a fully connected layer's weights, each the outer product of two vectors that are kept."""

    upstream: Tensor
    """`[N, O]`, the gradient of the loss at what leaves the layer."""
    inputs: Tensor
    """`[N, D]`, what comes in."""

    def __getitem__(self, which: Tensor) -> Tensor:
        return self.upstream[which][:, :, None] * self.inputs[which][:, None, :]


@dataclass(frozen=True)
class Recomputed:
    """Gradients of any other layer's weights, which are too large to keep."""

    network: nn.Module
    weight: nn.Parameter
    inputs: Tensor
    labels: Tensor

    def __getitem__(self, which: Tensor) -> Tensor:
        from recipes.dp_sgd.gradients import per_example_gradients

        before = [(p, p.requires_grad) for p in self.network.parameters()]
        try:
            for p, _ in before:
                p.requires_grad_(p is self.weight)
            gradients, _ = per_example_gradients(self.network, self.inputs[which], self.labels[which])
        finally:
            for p, required in before:
                p.requires_grad_(required)
        return gradients[0].detach().flatten(2) if self.weight.dim() > 2 else gradients[0].detach()


Component = Tensor | Outer | Recomputed


@dataclass(frozen=True)
class View:
    """What a network makes of each record: one pass serves all attacks."""

    network: nn.Module
    inputs: Tensor
    labels: Tensor
    came_in: dict[nn.Module, Tensor]
    went_out: dict[nn.Module, Tensor]
    logits: Tensor
    """`[N, C]` float32."""

    def components(self, exploit: Exploit) -> list[Component]:
        """What an attack sees: outputs, gradients, the loss, the label."""
        watched = chosen_layers(self.network, exploit.layers_to_exploit, with_weights=False)
        differentiated = chosen_layers(self.network, exploit.gradients_to_exploit, with_weights=True)
        log_p = torch.log_softmax(self.logits, 1)
        one_hot = functional.one_hot(self.labels, self.logits.shape[1]).float()
        loss = functional.cross_entropy(self.logits.double(), self.labels, reduction="none")
        return [
            *(log_p if self._is_last(layer) else self.went_out[layer].flatten(1) for layer in watched),
            *(
                Outer(log_p.exp() - one_hot, self.came_in[layer])
                if isinstance(layer, nn.Linear) and self._is_last(layer)
                else Recomputed(self.network, layer.weight, self.inputs, self.labels)
                for layer in differentiated
            ),
            *(
                [torch.log(loss + 1e-12).float()[:, None]] if exploit.exploit_loss else []
            ),  # over powers of ten
            # the label marks its own entry of the output, where that is seen; else it is one-hot
            *(
                [one_hot * log_p if any(map(self._is_last, watched)) else one_hot]
                if exploit.exploit_label
                else []
            ),
        ]

    def _is_last(self, layer: nn.Module) -> bool:
        return self.went_out.get(layer) is self.logits


def view(network: nn.Module, exploits: Iterable[Exploit], inputs: np.ndarray, labels: np.ndarray) -> View:
    """Show a network every record once, and keep what attacks will look at.

    Args:
        network: the target, in evaluation mode; inputs -> logits.
        exploits: what attacks will look at.
        inputs, labels: `[N, ...]` float32 and `[N]`.

    Raises:
        ValueError: a layer does not exist, or is not used once for each input.
    """
    exploits = list(exploits)
    outputs = [m for e in exploits for m in chosen_layers(network, e.layers_to_exploit, with_weights=False)]
    weighted = [
        m for e in exploits for m in chosen_layers(network, e.gradients_to_exploit, with_weights=True)
    ]
    came_in: dict[nn.Module, list[Tensor]] = {m: [] for m in weighted if isinstance(m, nn.Linear)}
    went_out: dict[nn.Module, list[Tensor]] = {m: [] for m in outputs}
    latest: dict[nn.Module, Tensor] = {}

    def note(layer: nn.Module, came: tuple[Tensor, ...], went: Tensor) -> None:
        if not isinstance(went, Tensor):
            raise ValueError(f"a {type(layer).__name__} gives no tensor: name other layers to exploit")
        latest[layer] = went
        for kept, seen in ((came_in, came[0]), (went_out, went)):
            if layer in kept:
                kept[layer].append(seen.clone())  # layers that work in place would change it

    hooks = [layer.register_forward_hook(note) for layer in {*outputs, *weighted}]
    x, logits = torch.from_numpy(inputs), []
    last: set[nn.Module] = set()
    try:
        with torch.no_grad():
            for batch in x.split(1000):
                logits.append(network(batch))
                last = {layer for layer, went in latest.items() if went is logits[-1]}
    finally:
        for hook in hooks:
            hook.remove()
    if any(len(seen) != len(logits) for seen in (*came_in.values(), *went_out.values())):
        raise ValueError("a layer that is exploited must be used once for each input: name others")
    whole = torch.cat(logits)
    return View(
        network,
        x,
        torch.from_numpy(labels.astype(np.int64)),
        {layer: torch.cat(seen) for layer, seen in came_in.items() if layer in last},
        {layer: whole if layer in last else torch.cat(seen) for layer, seen in went_out.items()}
        | dict.fromkeys(last, whole),
        whole,
    )


# --- the attack's own network -------------------------------------------------------------------------


class InferenceModel(nn.Module):
    """A part for each component, and an encoder: what the target makes of a record -> the logit of
    "member"."""

    def __init__(self, example: Sequence[Tensor]) -> None:
        super().__init__()
        self.scales = [_scale(part) for part in example]
        self.parts = nn.ModuleList(
            _for_gradient(part) if part.dim() == 3 else _for_vector(part.shape[1]) for part in example
        )
        self.encoder = nn.Sequential(
            *(nn.Linear(64 * len(example), 256), nn.ReLU(), nn.Dropout(0.2)),
            *(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 1)),
        )

    def forward(self, seen: Sequence[Tensor]) -> Tensor:
        """Components `[B, ...]` -> logits `[B]`."""
        scaled = [scale(part) for scale, part in zip(self.scales, seen, strict=True)]
        coded = [part(x) for part, x in zip(self.parts, scaled, strict=True)]
        return self.encoder(torch.cat(coded, 1))[:, 0]


def _scale(part: Tensor) -> Callable[[Tensor], Tensor]:
    """How to bring a component to a common size, from examples that the attacker knows."""
    if part.dim() == 3:  # gradients, which differ by powers of ten
        unit = part.abs().mean().clamp_min(1e-12)
        return lambda x: torch.asinh(x / unit)
    mean, deviation = part.mean(0), part.std(0).clamp_min(1e-6)
    return lambda x: (x - mean) / deviation


def _for_vector(size: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(size, 128), nn.ReLU(), nn.Dropout(0.2)), *(nn.Linear(128, 64), nn.ReLU())
    )


def _for_gradient(part: Tensor) -> nn.Module:
    """Kernels as long as a row, which is what goes into one output (Nasr et al., figure 3)."""
    _, rows, columns = part.shape
    return nn.Sequential(
        *(nn.Unflatten(1, (1, rows)), nn.Conv2d(1, 32, (1, columns)), nn.ReLU(), nn.Dropout(0.2)),
        *(nn.Flatten(), nn.Linear(32 * rows, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()),
    )


def train(seen: Sequence[Component], member: np.ndarray, known: np.ndarray, settings: Settings) -> np.ndarray:
    """Train the attack on the records that the attacker knows, and score all others.

    Args:
        seen: `View.components`, of all N records.
        member: `[N]` bool; it is looked up for known records only.
        known: `[N]` bool.
        settings: how to train.

    Returns:
        `[N]` float32 scores, nan for the records that were known.
    """
    from recipes.membership_inference import metrics

    held, used = (torch.from_numpy(part) for part in _split(member, known, settings.seed))
    truth = torch.zeros(len(member))
    truth[used], truth[held] = (torch.from_numpy(member[part.numpy()]).float() for part in (used, held))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        some = used[torch.randperm(len(used))[: 128 if _large(seen) else 2000]]
        model = InferenceModel([part[some] for part in seen])
        optimiser = _optimiser(model, settings)
        best, weights = -1.0, model.state_dict()
        for _ in progress.bar(range(settings.epochs), "inference model", unit="epoch"):
            model.train()
            for batch in used[torch.randperm(len(used))].split(settings.batch):
                optimiser.zero_grad()
                logits = model([part[batch] for part in seen])
                functional.binary_cross_entropy_with_logits(logits, truth[batch]).backward()
                optimiser.step()
            auc = metrics.auc(_scores(model, seen, held), truth[held].bool().numpy())[0]
            if auc > best:
                best, weights = auc, {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(weights)
    others = torch.from_numpy(np.flatnonzero(~known))
    scores = np.full(len(member), np.nan, np.float32)
    scores[others.numpy()] = _scores(model, seen, others)
    return scores


def _split(member: np.ndarray, known: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A tenth of the known records, of both kinds, to choose the epoch by; and the others, to learn from."""
    random = np.random.default_rng((seed, 3))
    held, used = [], []
    for of_kind in (known & member, known & ~member):
        places = random.permutation(np.flatnonzero(of_kind))
        apart = max(2, len(places) // 10)
        held, used = [*held, *places[:apart]], [*used, *places[apart:]]
    return np.array(held), np.array(used)


def _scores(model: InferenceModel, seen: Sequence[Component], which: Tensor) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        batches = which.split(64 if _large(seen) else 500)
        return torch.cat([model([part[batch] for part in seen]) for batch in batches]).numpy()


def _large(seen: Sequence[Component]) -> bool:
    """Whether a component is of millions of numbers a record."""
    return any(isinstance(part, Recomputed) for part in seen)


def _optimiser(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """ML Privacy Meter's names: `momentum` is SGD with a momentum of 0.9."""
    rate, parameters = settings.learning_rate, model.parameters()
    if settings.optimiser == "momentum":
        return torch.optim.SGD(parameters, rate, momentum=0.9)
    kinds = {
        "adam": torch.optim.Adam,
        "sgd": torch.optim.SGD,
        "adadelta": torch.optim.Adadelta,
        "adagrad": torch.optim.Adagrad,
        "rmsprop": torch.optim.RMSprop,
    }
    return kinds[settings.optimiser](parameters, rate)
