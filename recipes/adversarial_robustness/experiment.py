"""The recipe's experiment, in the order of its story: break it, measure it, doubt it, defend it, prove it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes import data, progress
from recipes.adversarial_robustness.config import Config
from recipes.adversarial_robustness.results import (
    AUTOATTACKED,
    DEFENCES,
    EPSILONS,
    TABLE,
    Defence,
    Result,
    Stale,
    collect,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from recipes.adversarial_robustness.evaluation import Measured
    from recipes.adversarial_robustness.from_scratch import Walk
    from recipes.adversarial_robustness.search import Search


_WHAT = "attacks and proofs"


def run(config: Config) -> Result:
    """Attack, doubt, defend and prove, on as many processes as there are cores.

    Raises:
        ValueError: there are not so many test images, or `train` finds stand-ins only.
        FileNotFoundError: weights are missing.
        ChildProcessError: a process of the run was killed.
    """
    dataset = data.load("mnist", config.data)
    for name in ("images", "attacked"):
        if getattr(config, name) > len(dataset.test):
            raise ValueError(
                f"{name} must be at most {len(dataset.test)}, which is all of {dataset.source} mnist, "
                f"not {getattr(config, name)}"
            )
    if config.train:
        _train(config, dataset)
    config = replace(config, data=dataset.source)  # the jobs need not look for it, nor warn, each by itself
    # Those that take longest come first, so that all cores have something to do until the end.
    jobs: dict[tuple[str, str], tuple[Callable[..., Any], tuple[Any, ...]]] = {}
    if config.part in ("all", "table"):
        jobs |= {("table", name): (measured, (name, config)) for name in ("cnn", "abs", TABLE[1])}
    if config.part in ("all", "stale", "scratch"):
        jobs["keras", ""] = with_keras, (config,)
    if config.part in ("all", "defences"):
        jobs |= {("defences", name): (defended, (name, config)) for name in reversed(DEFENCES)}
    done = dict(zip(jobs, _in_processes(list(jobs.values())), strict=True))
    parts = {
        part: {name: done[part, name] for name in names if (part, name) in done}
        for part, names in (("table", TABLE), ("defences", DEFENCES))
    }
    walk, stale = done.get(("keras", ""), (None, None))
    return collect(
        config,
        dataset.source,
        walk,
        parts["table"],
        stale,
        parts["defences"],
    )


def _train(config: Config, dataset: data.Dataset) -> None:
    from recipes.adversarial_robustness import zoo

    for name in zoo.ENTRIES if config.train == "all" else (config.train,):
        zoo.train(name, dataset, config.seed)


def _in_processes(jobs: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """Each job in a process of its own, as many at once as there are cores, one thread each.

    Where there is but one core, or one job, it is done here.
    """
    workers = min(len(jobs), len(os.sched_getaffinity(0)))
    if workers == 1:
        return [function(*arguments) for function, arguments in progress.bar(jobs, _WHAT, unit="part")]
    threads = {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    before = {name: os.environ.get(name) for name in threads}
    os.environ.update(threads)  # read when the libraries are imported, in the new processes
    try:
        context = multiprocessing.get_context("spawn")
        others = set(multiprocessing.active_children())
        with (
            _main_left_alone(),
            ProcessPoolExecutor(workers, context, initializer=_die_quietly) as pool,
        ):
            futures = [pool.submit(function, *arguments) for function, arguments in jobs]
            try:
                done = as_completed(futures)
                for future in progress.bar(done, _WHAT, unit="part", total=len(futures)):
                    future.result()
                return [future.result() for future in futures]
            except BrokenProcessPool as error:
                raise ChildProcessError("a process was killed, perhaps for lack of memory") from error
            except BaseException:
                for worker in set(multiprocessing.active_children()) - others:
                    worker.terminate()  # else the end of the block would wait for their jobs
                raise
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _main_left_alone() -> Iterator[None]:
    """New processes would run the script that called us again, to know what it defines; no job needs it."""
    main = sys.modules["__main__"]
    before = {name: vars(main).get(name) for name in ("__spec__", "__file__")}
    vars(main).update(dict.fromkeys(before))
    try:
        yield
    finally:
        vars(main).update(before)


def _die_quietly() -> None:
    """On Ctrl-C, which reaches all processes, the first one says what there is to say."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


# --- the four parts -----------------------------------------------------------------------------------


def with_keras(config: Config) -> tuple[Walk | None, Stale | None]:
    """The two parts that take time to import TensorFlow."""
    return (
        walked(config) if config.part in ("all", "scratch") else None,
        evaluated_as_the_article_does(config) if config.part in ("all", "stale") else None,
    )


def walked(config: Config, digits: int = 100) -> Walk:
    """The attack from scratch: test digits, chosen at random, each to another class at random."""
    from recipes.adversarial_robustness import from_scratch, keras_twins, zoo

    split = data.load("mnist", config.data).test
    random = np.random.default_rng(config.seed)
    places = random.choice(len(split), min(digits, len(split)), replace=False)
    labels = split.labels[places].astype(np.int64)
    targets = (labels + random.integers(1, 10, len(places))) % 10
    model = keras_twins.to_keras(zoo.load("scratch"), from_scratch.network())
    return from_scratch.walk(model, data.scale(split.images[places]), labels, targets)


def measured(name: str, config: Config) -> tuple[Measured, float]:
    """One row of the ABS paper's table, and the clean accuracy: on all test images, but for the two slow
    networks of the quick set on those attacked."""
    from recipes import training
    from recipes.adversarial_robustness import evaluation, zoo
    from recipes.adversarial_robustness.attack_set import attacks_on
    from recipes.adversarial_robustness.nearest import NearestNeighbour

    dataset = data.load("mnist", config.data)
    images, labels = zoo.tensors(dataset.test)
    network = NearestNeighbour(*zoo.tensors(dataset.train)) if name == TABLE[1] else zoo.load(name)
    few = slice(config.images)
    found = evaluation.measure(
        network, images[few], labels[few], attacks_on(network, config.strong), config.seed
    )
    if config.strong or name == "cnn":
        return found, training.accuracy(network, images.numpy(), labels.numpy())
    return found, float(found.right.mean())


def evaluated_as_the_article_does(config: Config) -> Stale:
    """Accuracies before and after the article's adversarial training, from its evaluation to a real one."""
    import torch

    from recipes.adversarial_robustness import attacks, stale, zoo

    count = None if config.strong else 1000
    images, labels = zoo.tensors(data.load("mnist", config.data).test, count)
    last = images.permute(0, 2, 3, 1).numpy()
    undefended, defended = zoo.load("undefended"), zoo.load("stale")

    def accuracy(network, found) -> float:
        return 1 - float(attacks.fooled(network, found, labels).double().mean())

    def first(found: np.ndarray):
        return torch.from_numpy(found).permute(0, 3, 1, 2)

    old = first(stale.fgsm(stale.as_keras(undefended), last, config.epsilon))
    by_network = []
    for network in (undefended, defended):
        printed = first(stale.fgsm(stale.as_keras(network), last, config.epsilon))
        single = attacks.fgsm(network, images, labels, config.epsilon)
        many = attacks.pgd(
            *(network, images, labels, config.epsilon),
            generator=torch.Generator().manual_seed(config.seed),
        )
        by_network.append(
            {
                "no attack": accuracy(network, images),
                "FGSM on the undefended network": accuracy(network, old),
                "  the same, clipped to [0, 1]": accuracy(network, old.clamp(0, 1)),
                "FGSM as the article calls it": accuracy(network, printed),
                "  the same, clipped": accuracy(network, printed.clamp(0, 1)),
                "FGSM on logits and true labels": accuracy(network, single),
                "PGD, 40 steps": accuracy(network, many),
            }
        )
    return Stale(len(images), *by_network)


def defended(name: str, config: Config) -> Defence:
    """One network between the attacks and the bounds."""
    import torch

    from recipes.adversarial_robustness import attacks, bounds, checklist, evaluation, libraries, search, zoo

    network, surrogate = zoo.load(name), zoo.load("undefended")
    images, labels = zoo.tensors(data.load("mnist", config.data).test)
    x, y = images[: config.attacked], labels[: config.attacked]
    generator = torch.Generator().manual_seed(config.seed)
    epsilons = tuple(sorted({*EPSILONS, config.epsilon}))
    curve = evaluation.robust_accuracies(network, x, y, epsilons, generator=generator)
    shares = bounds.verified_shares(network, x, y, epsilons)
    crown = shares[epsilons.index(config.epsilon)] > 0  # it takes long, and else nothing comes of it
    safe = bounds.verified(network, images, labels, config.epsilon, crown=crown)

    def claim(target: nn.Module, seen: Tensor, truth: Tensor) -> Tensor:
        if name == "stale":  # what its article says 98 % of: made as for its training, and not clipped
            return attacks.fgsm(surrogate, seen, truth, config.epsilon, clip=False)
        return search.fixed_pgd(config.epsilon, steps=100, restarts=2)(target, seen, truth, generator)

    checks = checklist.run(network, x, y, claim, surrogate, epsilon=config.epsilon, seed=config.seed)
    tried = min(AUTOATTACKED, len(images)) if config.strong else 0
    strong: list[tuple[float | None, int, int]] = [(None, 0, 0)] * 2
    if config.strong:
        pgd = search.fixed_pgd(config.epsilon, steps=100, restarts=10)
        few = slice(tried)
        strong = [
            _under(pgd, network, images, labels, safe, config.epsilon, generator),
            _under(
                libraries.auto_attack(config.epsilon),
                *(network, images[few], labels[few], safe[few]),
                *(config.epsilon, generator),
            ),
        ]
    (by_pgd, *of_pgd), (by_auto_attack, *of_auto_attack) = strong
    return Defence(
        epsilon=config.epsilon,
        clean=1 - float(attacks.fooled(network, images, labels).double().mean()),
        epsilons=epsilons,
        attacked=tuple(curve),
        attacked_images=len(x),
        verified=tuple(shares),
        proved=float(safe.double().mean()),
        pgd=by_pgd,
        auto_attack=by_auto_attack,
        images_under={"PGD-40": len(x), "PGD-100 x 10": len(images), "AutoAttack": tried},
        found=of_pgd[0] + of_auto_attack[0],
        found_after_rounding=of_pgd[1] + of_auto_attack[1],
        checks=tuple(checks),
    )


def _under(
    attack: Search,
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    safe: Tensor,
    epsilon: float,
    generator: torch.Generator,
) -> tuple[float, int, int]:
    """Accuracy under an attack, how many adversarials it gave, and how many survive rounding to 8 bits.

    What is proved `safe` needs no trial.
    """
    import torch

    from recipes.adversarial_robustness import attacks, evaluation

    broken, found, rounded = attacks.fooled(network, images, labels), 0, 0
    left = torch.nonzero(~broken & ~safe)[:, 0]
    for places in left.split(1000) if len(left) else ():
        tries = attack(network, images[places], labels[places], generator)
        hit = evaluation.adversarial(network, images[places], labels[places], tries, epsilon)
        broken[places] = hit
        found += int(hit.sum())
        if hit.any():
            pictures = evaluation.eight_bits(tries[hit])
            rounded += int(attacks.fooled(network, pictures, labels[places][hit]).sum())
    return float((~broken).double().mean()), found, rounded


def main() -> None:
    """Run the recipe from the command line."""
    from recipes import cards, command_line
    from recipes.adversarial_robustness.report import describe, plot

    plan = cards.Plan(
        recipe="adversarial_robustness",
        number=4,
        question="How little must an image change before a network takes it for something else?",
        dataset="mnist",
        experiments=(
            cards.Experiment(
                "the attack from scratch, 100 digits, each to another class",
                Config(part="scratch"),
                shown=("scratch_reached", "scratch_l2"),
                source="one digit",
            ),
            cards.Experiment(
                "analysis by synthesis against a CNN, 200 images, median distances",
                Config(part="table", strong=True),
                shown=("cnn_l2", "cnn_linf", "cnn_l0", "abs_accuracy", "abs_l2", "abs_over_cnn"),
                source="five digits right, one attacked",
                published="CNN 1.09, 0.075, 8.7; ABS 2.24 (Schott 2019)",
            ),
            cards.Experiment(
                "the defence that only looks like one",
                Config(part="stale", strong=True),
                shown=("stale_claimed", "stale_fgsm", "stale_pgd"),
                source="an accuracy on FGSM",
            ),
            cards.Experiment(
                "defences that hold, Linf 0.3 (AutoAttack: first 1,000 images; else all)",
                Config(part="defences", strong=True, attacked=1000),
                shown=(
                    *("fgsm_auto_attack", "pgd_auto_attack", "certified_auto_attack"),
                    *("pgd_pgd", "certified_pgd", "certified_verified"),
                ),
                published="0.829 (Wong 2020), 0.885 (Madry 2018), verified 0.931 (fast IBP), 0.934 (SABR)",
            ),
        ),
    )
    full = Config(strong=True, attacked=1000, train="all")
    command_line.main("adversarial_robustness", run, plot, describe, {"quick": Config(), "full": full}, plan)
