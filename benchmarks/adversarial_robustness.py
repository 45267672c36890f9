"""PGD-40 and DeepFool on the same CNN and images, beside Foolbox, CleverHans, ART and torchattacks.

One run, one thread, peers in turns; every repetition gives all peers the same images. PGD: Linf 0.1, 40
steps of 0.01, from the image, nobody stopping early; and once more as this recipe runs it, leaving alone
what is misclassified already. DeepFool: L2, at most 50 steps, overshoot 0.02, all ten classes; CleverHans
has none.

Command: python benchmarks/adversarial_robustness.py [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from torch import Tensor, nn

from recipes import cards, data
from recipes.adversarial_robustness import attacks, zoo

IMAGES, REPETITIONS = {"PGD-40": 200, "DeepFool": 50}, 3
EPSILON, STEP, STEPS = 0.1, 0.01, 40

Attack = Callable[[Tensor, Tensor], Tensor]


def pgd(network: nn.Module) -> dict[str, Attack]:
    """Each library's PGD: images, labels -> adversarial images."""
    import foolbox
    import torchattacks
    from art.attacks.evasion import ProjectedGradientDescent
    from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent

    model = foolbox.PyTorchModel(network, (0, 1), device="cpu")
    theirs = foolbox.attacks.LinfPGD(rel_stepsize=STEP / EPSILON, steps=STEPS, random_start=False)
    art = ProjectedGradientDescent(
        _for_art(network),
        eps=EPSILON,
        eps_step=STEP,
        max_iter=STEPS,
        batch_size=IMAGES["PGD-40"],
        verbose=False,
    )
    torchattack = torchattacks.PGD(network, eps=EPSILON, alpha=STEP, steps=STEPS, random_start=False)
    common = {"steps": STEPS, "step_size": STEP, "random_start": False}
    return {
        "here": lambda x, y: attacks.pgd(network, x, y, EPSILON, stop_early=False, **common),
        "here, stopping early": lambda x, y: attacks.pgd(network, x, y, EPSILON, **common),
        "Foolbox": lambda x, y: theirs(model, x, y, epsilons=EPSILON)[0],
        "CleverHans": lambda x, y: projected_gradient_descent(
            network, x, EPSILON, STEP, STEPS, np.inf, 0, 1, y=y, rand_init=False
        ),
        "ART": lambda x, y: torch.from_numpy(art.generate(x.numpy(), y.numpy())),
        "torchattacks": torchattack,
    }


def deepfool(network: nn.Module) -> dict[str, Attack]:
    """Each library's DeepFool."""
    import foolbox
    import torchattacks
    from art.attacks.evasion import DeepFool

    model = foolbox.PyTorchModel(network, (0, 1), device="cpu")
    theirs = foolbox.attacks.L2DeepFoolAttack(steps=50, candidates=10, overshoot=0.02)
    art = DeepFool(
        _for_art(network),
        max_iter=50,
        epsilon=0.02,
        nb_grads=10,
        batch_size=IMAGES["DeepFool"],
        verbose=False,
    )
    torchattack = torchattacks.DeepFool(network, steps=50, overshoot=0.02)
    return {
        "here": lambda x, y: attacks.deepfool(network, x, y, steps=50, overshoot=0.02),
        "Foolbox": lambda x, y: theirs(model, x, y, epsilons=None)[0],
        "ART": lambda x, y: torch.from_numpy(art.generate(x.numpy())),
        "torchattacks": torchattack,
    }


def _for_art(network: nn.Module) -> object:
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        network, nn.CrossEntropyLoss(), (1, 28, 28), 10, clip_values=(0, 1), device_type="cpu"
    )


def measure(peers: dict[str, Attack], network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Median CPU seconds of each peer, and print it with what the attack reached."""
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    found = {}
    for repetition in range(REPETITIONS + 1):
        for name, attack in peers.items():
            begin = time.process_time()
            found[name] = attack(images.clone(), labels)
            if repetition:  # the first warms up
                seconds[name].append(time.process_time() - begin)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    for name, median in medians.items():
        fooled = attacks.fooled(network, found[name].detach(), labels)
        length = attacks.lengths(found[name].detach() - images).flatten()[fooled].median()
        print(
            f"  {name:22} {len(images) / median:8.1f} images a second, "
            f"{fooled.float().mean():.1%} misclassified, median L2 {length:.3f}"
        )
    return medians


def main() -> None:
    """Run it, print it, and write the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    target = parser.parse_args().json
    torch.set_num_threads(1)
    network = zoo.load("cnn")
    images, labels = zoo.tensors(data.load("mnist", "auto").test, max(IMAGES.values()))
    ratios: dict[str, dict[str, float]] = {}
    for title, peers in (("PGD-40", pgd(network)), ("DeepFool", deepfool(network))):
        print(title)
        few = slice(IMAGES[title])
        medians = measure(peers, network, images[few], labels[few])
        for name, median in medians.items():
            if not name.startswith("here"):
                ratios.setdefault(name, {})[title] = round(median / medians["here"], 3)
        if "here, stopping early" in medians:
            early = medians["here"] / medians["here, stopping early"]
            ratios["itself without stopping early"] = {title: round(early, 3)}
    print(ratios)
    if target:
        cards.write_json(target, {"ratios": ratios})


if __name__ == "__main__":
    main()
