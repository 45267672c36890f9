"""The attacks that a network is measured with: each gives, for every image, the nearest adversarial it finds.

Ours are FGSM, PGD and DeepFool (`attacks`), gradients estimated from answers alone, pixels put back one by
one, and the attack on ABS that walks towards what another class would draw. Foolbox gives Carlini and
Wagner's, the boundary attack and salt-and-pepper noise; torchattacks gives AutoAttack.

Papers: Carlini and Wagner, 2017, arXiv:1608.04644; Brendel et al., 2018, arXiv:1712.04248 (boundary);
    Schott et al., 2019, arXiv:1805.09190 (pointwise, latent); Croce and Hein, 2020, arXiv:2003.01690
    (AutoAttack).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from recipes.adversarial_robustness import attacks
from recipes.adversarial_robustness.attacks import NORMS, Norm, fooled, frozen
from recipes.analysis_by_synthesis import AnalysisBySynthesis

Search = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]
"""Network, images `[N, C, H, W]` in [0, 1], labels `[N]`, randomness -> images of the same shape, of which
those that are misclassified count."""


@dataclass(frozen=True)
class Attack:
    """One attack of the set."""

    name: str
    norm: Norm
    """In which it looks for a small perturbation; what it finds counts in every norm."""
    search: Search


# --- from balls to distances: the least epsilon at which an attack succeeds ---------------------------


def bisect(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    attempt: Callable[[Tensor, Tensor], Tensor],
    highest: float,
    rounds: int = 12,
) -> Tensor:
    """The adversarial of each image at the least strength at which an attempt succeeds, by bisection.

    Args:
        attempt: places `[n]` of images, strengths `[n]` -> what is tried for these, `[n, C, H, W]`.
        highest: the strength to begin with; where it does not succeed, nothing is found.
    """
    low, high = torch.zeros(len(images)), torch.full((len(images),), float(highest))
    best, left = images.clone(), torch.arange(len(images))
    for number in range(rounds + 1):
        strength = high if number == 0 else (low + high) / 2
        tried = attempt(left, strength[left])
        success = fooled(network, tried, labels[left])
        best[left[success]] = tried[success]
        high[left[success]] = strength[left[success]]
        if number == 0:
            left = left[success]
        else:
            low[left[~success]] = strength[left[~success]]
        if not len(left):
            break
    return best


def one_step(norm: Norm) -> Search:
    """FGSM (`linf`), or the same along the gradient itself (`l2`), with the least epsilon that does."""

    def search(network: nn.Module, images: Tensor, labels: Tensor, _: torch.Generator) -> Tensor:
        with frozen(network):
            slope, _logits = attacks.gradient(network, images, labels)
        direction = slope.sign() if norm == "linf" else slope / attacks.lengths(slope).clamp(min=1e-12)

        def attempt(places: Tensor, epsilon: Tensor) -> Tensor:
            return (images[places] + epsilon.view(-1, 1, 1, 1) * direction[places]).clamp(0, 1)

        return bisect(network, images, labels, attempt, 1 if norm == "linf" else 15)

    return search


def least_pgd(norm: Norm, steps: int = 40, rounds: int = 7, highest: float | None = None) -> Search:
    """PGD with the least epsilon that does."""

    def search(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        def attempt(places: Tensor, epsilon: Tensor) -> Tensor:
            return attacks.pgd(
                network, images[places], labels[places], epsilon, norm=norm, steps=steps, generator=generator
            )

        return bisect(network, images, labels, attempt, highest or {"linf": 0.5, "l2": 6}[norm], rounds)

    return search


def deepfool(norm: Norm) -> Search:
    """DeepFool, and then the least part of its way that does."""

    def search(network: nn.Module, images: Tensor, labels: Tensor, _: torch.Generator) -> Tensor:
        return nearer(network, images, labels, attacks.deepfool(network, images, labels, norm=norm))

    return search


def nearer(network: nn.Module, images: Tensor, labels: Tensor, found: Tensor) -> Tensor:
    """The point nearest to the image, on the straight line to an adversarial, that is one, too."""

    def attempt(places: Tensor, share: Tensor) -> Tensor:
        return images[places].lerp(found[places], share.view(-1, 1, 1, 1))

    return bisect(network, images, labels, attempt, 1)


# --- answers instead of gradients ---------------------------------------------------------------------


class EstimatedGradients(nn.Module):
    """The same network, whose gradient is estimated from its answers: two questions for every pixel.

    Central differences, `(f(x + h e_i) − f(x − h e_i)) / 2h`, for all logits at once; `backward` multiplies
    with what they gave, so that every attack that wants gradients runs unchanged.
    """

    def __init__(self, network: nn.Module, width: float = 0.1, batch: int = 2000) -> None:
        """Args: width: h, how far a pixel is moved; batch: questions asked at once."""
        super().__init__()
        self.network, self.width, self.batch = network, width, batch
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        if not images.requires_grad:
            return self.network(images)
        return _Estimate.apply(images, self)

    @torch.no_grad()
    def jacobian(self, image: Tensor) -> Tensor:
        """Of one image `[C, H, W]`: `[classes, pixels]`."""
        moves = self.width * torch.eye(image.numel()).view(-1, *image.shape)
        answers = [self.network(image + sign * part) for sign in (1, -1) for part in moves.split(self.batch)]
        above, below = torch.cat(answers).chunk(2)
        return (above - below).T / (2 * self.width)


class _Estimate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images: Tensor, estimated: EstimatedGradients) -> Tensor:
        ctx.jacobians = torch.stack([estimated.jacobian(image) for image in images])
        ctx.shape = images.shape
        with torch.no_grad():
            return estimated.network(images)

    @staticmethod
    def backward(ctx, upstream: Tensor):
        return torch.einsum("nk,nkp->np", upstream, ctx.jacobians).view(ctx.shape), None


def estimated(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """DeepFool on estimated gradients, as the chapter wants it."""
    guess = EstimatedGradients(network)
    return nearer(network, images, labels, attacks.deepfool(guess, images, labels, steps=10))


# --- few pixels ---------------------------------------------------------------------------------------


@torch.no_grad()
def put_back(
    network: nn.Module, images: Tensor, labels: Tensor, found: Tensor, generator: torch.Generator
) -> Tensor:
    """Put back one changed pixel after the other, wherever the image stays adversarial (pointwise attack).

    In rounds, in random order, until a whole round puts nothing back; all images at once.
    """
    flat, original = found.flatten(1).clone(), images.flatten(1)
    left = torch.nonzero(fooled(network, found, labels))[:, 0]
    while len(left):
        changed = flat[left] != original[left]
        order = (
            torch.rand(changed.shape, generator=generator)
            .masked_fill(~changed, -1)
            .argsort(1, descending=True)
        )
        counts, progress = changed.sum(1), torch.zeros(len(left), dtype=torch.bool)
        for turn in range(int(counts.max())):
            rows = torch.nonzero(turn < counts)[:, 0]
            pixels = order[rows, turn]
            trial = flat[left[rows]]
            trial[torch.arange(len(rows)), pixels] = original[left[rows], pixels]
            stays = fooled(network, trial.view(-1, *images.shape[1:]), labels[left[rows]])
            flat[left[rows[stays]]] = trial[stays]
            progress[rows[stays]] = True
        left = left[progress]
    return flat.view_as(images)


def pointwise(restarts: int = 3) -> Search:
    """Salt and pepper until the image is misclassified, then as many pixels put back as can be."""

    def search(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        best, fewest = images.clone(), torch.full((len(images),), torch.inf)
        for _ in range(restarts):
            found = put_back(
                network, images, labels, salt_and_pepper(network, images, labels, generator), generator
            )
            count = distances(images, found, "l0").masked_fill(~fooled(network, found, labels), torch.inf)
            best[count < fewest] = found[count < fewest]
            fewest = fewest.minimum(count)
        return best

    return search


def sparse(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Pixel after pixel, the one whose way to black or white the gradient says to help most; then put
    back."""
    moved, active = images.clone(), torch.arange(len(images))
    with frozen(network):
        for _ in range(60):
            slope, logits = attacks.gradient(network, moved[active], labels[active])
            going = logits.argmax(1) == labels[active]
            active, slope = active[going], slope[going]
            if not len(active):
                break
            now = moved[active]
            gain = torch.where(slope > 0, slope * (1 - now), -slope * now).flatten(1)
            pixels = gain.masked_fill((now != images[active]).flatten(1), -1).argmax(1)
            rows, flat = torch.arange(len(active)), now.flatten(1)
            flat[rows, pixels] = (slope.flatten(1)[rows, pixels] > 0).to(now)
            moved[active] = flat.view_as(now)
    return put_back(network, images, labels, moved, generator)


def salt_and_pepper(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Foolbox's: pixels made black or white at random, more and more of them."""
    return _foolbox("SaltAndPepperNoiseAttack", network, images, labels, generator, steps=100)


# --- other libraries' ---------------------------------------------------------------------------------


def carlini_wagner(steps: int = 200, rounds: int = 6) -> Search:
    """Carlini and Wagner's L2 attack, by Foolbox."""

    def search(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        return _foolbox(
            "L2CarliniWagnerAttack",
            *(network, images, labels, generator),
            steps=steps,
            binary_search_steps=rounds,
            initial_const=0.1,
            stepsize=0.02,
        )

    return search


def boundary(steps: int = 2000) -> Search:
    """The boundary attack by Foolbox: along the boundary, from noise, by answers alone."""

    def search(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        start = salt_and_pepper(network, images, labels, generator)
        ready = fooled(network, start, labels) & ~fooled(network, images, labels)
        found = images.clone()
        if ready.any():
            found[ready] = _foolbox(
                "BoundaryAttack",
                *(network, images[ready], labels[ready], generator),
                starting_points=nearer(network, images[ready], labels[ready], start[ready]),
                steps=steps,
                spherical_step=0.05,
                source_step=0.05,
            )
        return found

    return search


def _foolbox(
    name: str,
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    starting_points: Tensor | None = None,
    **settings: object,
) -> Tensor:
    """Run an attack of Foolbox; it draws from PyTorch's and NumPy's global generators, which are put back."""
    import foolbox

    attack = getattr(foolbox.attacks, name)(**settings)
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    begin = {} if starting_points is None else {"starting_points": starting_points}
    with frozen(network), seeded(generator):
        _, found, _ = attack(model, images, labels, epsilons=None, **begin)
    return found.detach().clamp(0, 1)


def fixed_pgd(epsilon: float, steps: int, restarts: int) -> Search:
    """PGD in one Linf ball; steps of a thirtieth of it, so that a hundred go far enough to come back."""

    def search(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        return attacks.pgd(
            network,
            images,
            labels,
            epsilon,
            steps=steps,
            step_size=epsilon / 30,
            restarts=restarts,
            generator=generator,
        )

    return search


def auto_attack(epsilon: float) -> Search:
    """AutoAttack by torchattacks: two kinds of PGD with steps of their own, FAB and Square, Linf
    `epsilon`."""

    def search(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        import torchattacks

        seed = int(torch.randint(2**31, (), generator=generator))
        attack = torchattacks.AutoAttack(network, norm="Linf", eps=epsilon, seed=seed)
        found, right = images.clone(), ~fooled(network, images, labels)
        if right.any():
            with frozen(network), seeded(generator):
                found[right] = attack(images[right], labels[right]).detach()
        return found

    return search


def square(epsilon: float, queries: int = 1000) -> Search:
    """The Square attack by torchattacks: random squares, kept if they help; answers alone."""

    def search(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        import torchattacks

        seed = int(torch.randint(2**31, (), generator=generator))
        attack = torchattacks.Square(network, norm="Linf", eps=epsilon, n_queries=queries, seed=seed)
        with frozen(network), seeded(generator):
            return attack(images, labels).detach()

    return search


@contextlib.contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """PyTorch's and NumPy's global generators, which libraries draw from, seeded for a while and put back."""
    seed = int(torch.randint(2**31, (), generator=generator))
    state = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002


# --- networks that draw -------------------------------------------------------------------------------


class Tracked(nn.Module):
    """ABS for images that move a little at a time: each search goes on from the latents of the last one.

    An attack's steps change an image so little that a few steps of descent are enough, where a new search
    takes thousands of samples and 25. To which of the kept images a new one belongs is told by which is
    nearest. After so few steps the energies are a little too high; so that this does not make the image's
    class lose too early, its logit is raised by `slack`. What is found must be tried on the network itself.
    """

    def __init__(
        self, network: AnalysisBySynthesis, images: Tensor, steps: int = 5, slack: float = 0.7
    ) -> None:
        super().__init__()
        self.network, self.images, self.steps = network, images, steps
        self.latents = network.search(images)
        logits = network.logits_at(images, self.latents)
        self.raised = slack * nn.functional.one_hot(logits.argmax(1), logits.shape[1])
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        now = images.detach()
        places = self._places(now)
        latents = self.network.search(now, self.latents[places], self.steps)
        self.latents[places] = latents
        return self.network.logits_at(images, latents) + self.raised[places]

    def prototypes(self, images: Tensor) -> Tensor:
        """What each class draws, `[N, classes, H, W]`."""
        return self.network.draw(self.latents[self._places(images)])

    def _places(self, images: Tensor) -> Tensor:
        return torch.cdist(images.flatten(1), self.images.flatten(1)).argmin(1)


def tracked(search: Search, steps: int = 5) -> Search:
    """An attack on ABS that sees the real gradient at the best latents, which it keeps from step to step."""

    def on_tracked(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        return search(Tracked(network, images, steps), images, labels, generator)

    return on_tracked


def towards(norm: Norm, others: int = 1, rounds: int = 9) -> Search:
    """From what the image's class would draw towards what the nearest others would, as far as it takes.

    The difference of the two drawings is the gradient of the difference of the logits, for ABS at the best
    latents (its latent descent attack) as for the nearest neighbour. In L2 along it, in Linf along its
    sign, in L0 the pixels where it is largest, after which what is not needed is put back. For networks
    with `prototypes`: images -> `[N, classes, H, W]`.
    """

    def search(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            ranks = network(images).scatter(1, labels[:, None], -torch.inf).topk(others, 1).indices
            drawn = network.prototypes(images)
        best, least = images.clone(), torch.full((len(images),), torch.inf)
        rows = torch.arange(len(images))
        for other in ranks.T:
            way = (drawn[rows, other] - drawn[rows, labels])[:, None]
            found = bisect(network, images, labels, _along(images, way, norm), 1, rounds)
            if norm == "l0":
                found = put_back(network, images, labels, found, generator)
            size = distances(images, found, norm).masked_fill(~fooled(network, found, labels), torch.inf)
            best[size < least] = found[size < least]
            least = least.minimum(size)
        return best

    return search


def _along(images: Tensor, way: Tensor, norm: Norm) -> Callable[[Tensor, Tensor], Tensor]:
    ranks = way.abs().flatten(1).argsort(1, descending=True).argsort(1).view_as(images)

    def attempt(places: Tensor, share: Tensor) -> Tensor:
        direction, share = way[places], share.view(-1, 1, 1, 1)
        if norm == "l2":
            step = share * direction
        elif norm == "linf":  # where drawings hardly differ, a sign would be noise
            step = share * (direction / 0.05).clamp(-1, 1)
        else:
            step = torch.where(ranks[places] < share * images[0].numel(), direction.sign(), 0)
        return (images[places] + step).clamp(0, 1)

    return attempt


def distances(images: Tensor, others: Tensor, norm: Norm) -> Tensor:
    """How far each image is from the other, `[N]`: Euclidean, largest change, or number of changed pixels."""
    difference = (others - images).flatten(1)
    match norm:
        case "l2":
            return difference.norm(dim=1)
        case "linf":
            return difference.abs().amax(1)
        case "l0":
            return (difference != 0).sum(1).to(images.dtype)


# --- which of them for whom ---------------------------------------------------------------------------


def attacks_on(network: nn.Module, strong: bool = False) -> list[Attack]:
    """The attacks for a network: all for any; towards prototypes where there are some; tracked ones for
    ABS."""
    if isinstance(network, AnalysisBySynthesis):
        return _on_abs(strong)
    chosen = [
        Attack("FGM", "l2", one_step("l2")),
        Attack("FGSM", "linf", one_step("linf")),
        Attack("DeepFool L2", "l2", deepfool("l2")),
        Attack("DeepFool Linf", "linf", deepfool("linf")),
    ]
    if hasattr(network, "prototypes"):
        chosen += [Attack(f"prototypes {norm}", norm, towards(norm, 3 if strong else 1)) for norm in NORMS]
    if not strong:
        return [
            *chosen,
            Attack("PGD Linf", "linf", least_pgd("linf", 20, 6)),
            Attack("pointwise", "l0", pointwise(1)),
            Attack("sparse", "l0", sparse),
        ]
    chosen += [
        Attack("PGD L2", "l2", least_pgd("l2", 100, 8)),
        Attack("PGD Linf", "linf", least_pgd("linf", 100, 8)),
        Attack("Carlini-Wagner", "l2", carlini_wagner()),
        Attack("sparse", "l0", sparse),
    ]
    if hasattr(network, "prototypes"):  # whose every answer takes a search among 60,000 images
        return [*chosen, Attack("boundary", "l2", boundary(500)), Attack("pointwise", "l0", pointwise(2))]
    return [
        *chosen,
        Attack("boundary", "l2", boundary(2000)),
        Attack("pointwise", "l0", pointwise(10)),
        Attack("estimated gradients", "l2", estimated),
    ]


def _on_abs(strong: bool) -> list[Attack]:
    others = 3 if strong else 1
    chosen = [Attack(f"latent {norm}", norm, tracked(towards(norm, others))) for norm in ("l2", "linf")]
    chosen.append(Attack("latent l0", "l0", tracked(towards("l0", others), steps=1)))
    if strong:
        chosen += [
            Attack("DeepFool L2", "l2", tracked(deepfool("l2"))),
            Attack("DeepFool Linf", "linf", tracked(deepfool("linf"))),
            Attack("PGD L2", "l2", tracked(least_pgd("l2", 30, 6))),
            Attack("PGD Linf", "linf", tracked(least_pgd("linf", 30, 6))),
            Attack("pointwise", "l0", tracked(pointwise(1))),
            Attack("boundary", "l2", tracked(boundary(300))),
        ]
    return chosen
