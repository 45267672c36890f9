"""Membership inference beside its peers: the same answers of the same networks, CPU seconds of what is
computed.

All in one run, one thread, the peers in turns; what a library wants its input to look like is made before
the clock runs. What computes the same must agree to one record, which is checked; of the trained attack,
where each library has a network of its own, the accuracy stands beside the seconds.
TensorFlow Privacy's attacks come from tensorflow-empirical-privacy.

    python benchmarks/membership_inference.py [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", TF_CPP_MIN_LOG_LEVEL="3")

import numpy as np
import torch

from recipes import cards
from recipes.membership_inference import Config, attacks, inference_model, metrics, targets

TURNS = 3
RATE = 0.01
Peer = Callable[[], float]
"""Does the work, and gives the figure that must agree, or that stands beside the seconds."""


def peers() -> tuple[dict[str, dict[str, Peer]], float]:
    """By task: each library's way; and what one member is of all."""
    config = Config(target="overfitted")
    pool = targets.pool(config)
    print(f"{len(pool.member):,} {pool.source} images", flush=True)
    target = targets.trained(["overfitted"], pool, config)["overfitted"]
    view = inference_model.view(target.network, inference_model.ARTICLE.values(), *pool.examples)
    known = np.random.default_rng((0, 5)).random(len(pool.member)) < config.known_share
    rows = np.stack([reference.trained_on for reference in target.references])
    seen = np.stack([reference.confidences[0] for reference in target.references]).astype(np.float64)
    phi, population = target.answers.confidences[:1], target.answers.population[:1]
    signals = attacks.Signals(phi, seen[:, None], rows, population, np.zeros((len(rows), 1, 1)))
    tasks = {
        "LiRA": lira(signals, pool.member),
        "threshold on the loss": threshold(view, pool.member),
        "trained attack on outputs": trained(view, pool.member, known),
    }
    return tasks, 1.001 / pool.member.sum()


def lira(signals: attacks.Signals, member: np.ndarray) -> dict[str, Peer]:
    """Fixed variance, one view: the AUC."""
    from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack import advanced_mia

    seen, rows = signals.references[:, 0], signals.trained_on
    target = signals.target[0][:, None].astype(np.float64)
    inside = [seen[rows[:, i], i][:, None] for i in range(len(member))]
    outside = [seen[~rows[:, i], i][:, None] for i in range(len(member))]

    def theirs() -> float:
        scores = advanced_mia.compute_score_lira(
            target, inside, outside, fix_variance=True, median_or_mean="mean"
        )
        return metrics.auc(-np.asarray(scores, np.float64), member)[0]

    return {
        "this recipe": lambda: metrics.auc(attacks.lira(signals), member)[0],
        "TensorFlow Privacy": theirs,
    }


def threshold(view: inference_model.View, member: np.ndarray) -> dict[str, Peer]:
    """The true positive rate at a false positive rate of 1 %."""
    from art.metrics.privacy.worst_case_mia_score import get_roc_for_fpr
    from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack.data_structures import (
        AttackInputData,
        AttackType,
    )
    from tensorflow_privacy.privacy.privacy_tests.membership_inference_attack.membership_inference_attack import (  # noqa: E501
        run_attacks,
    )

    logits, labels = view.logits.numpy(), view.labels.numpy()

    def ours() -> float:
        return metrics.at_rate(attacks.loss(logits, labels), member, RATE).true_positives.value

    def art() -> float:
        scores = np.exp(attacks.loss(logits, labels))
        return get_roc_for_fpr(scores, member.astype(int), targeted_fpr=RATE)[0][1]

    data = AttackInputData(
        logits_train=logits[member],
        logits_test=logits[~member],
        labels_train=labels[member],
        labels_test=labels[~member],
    )

    def tensorflow_privacy() -> float:
        curve = (
            run_attacks(data, attack_types=(AttackType.THRESHOLD_ATTACK,)).single_attack_results[0].roc_curve
        )
        return float(max(curve.tpr[curve.fpr <= RATE]))

    return {"this recipe": ours, "ART": art, "TensorFlow Privacy": tensorflow_privacy}


def trained(view: inference_model.View, member: np.ndarray, known: np.ndarray) -> dict[str, Peer]:
    """An attack that learns from known members, on the last outputs and the label: balanced accuracy."""
    from art.attacks.inference.membership_inference import MembershipInferenceBlackBox
    from art.estimators.classification import PyTorchClassifier

    logits, labels = view.logits.numpy(), view.labels.numpy()
    exploit = inference_model.ARTICLE["output"]

    def ours() -> float:
        seen = view.components(exploit)
        scores = inference_model.train(seen, member, known, inference_model.Settings())
        return metrics.balanced_accuracy(scores[~known], member[~known])[0]

    def art() -> float:
        classes = logits.shape[1]
        target = PyTorchClassifier(
            view.network, torch.nn.CrossEntropyLoss(), (3, 32, 32), classes, device_type="cpu"
        )
        attack = MembershipInferenceBlackBox(target, attack_model_type="nn")
        inside, outside = known & member, known & ~member
        attack.fit(y=labels[inside], test_y=labels[outside], pred=logits[inside], test_pred=logits[outside])
        said = attack.infer(None, labels[~known], pred=logits[~known], probabilities=True)
        return metrics.balanced_accuracy(np.asarray(said, np.float64).ravel(), member[~known])[0]

    return {"this recipe": ours, "ART": art}


def main() -> None:
    """Measure, check, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # of the peers
    torch.set_num_threads(1)
    tasks, one_record = peers()
    seconds: dict[str, dict[str, list[float]]] = {task: {name: [] for name in tasks[task]} for task in tasks}
    figures: dict[str, dict[str, float]] = {task: {} for task in tasks}
    for _ in range(TURNS):
        for task, by_name in tasks.items():
            for name, work in by_name.items():
                start = time.process_time()
                figures[task][name] = work()
                seconds[task][name].append(time.process_time() - start)
    for task, by_name in figures.items():
        if task != "trained attack on outputs" and np.ptp(list(by_name.values())) > one_record:
            raise SystemExit(f"{task}: the libraries do not agree: {by_name}")
    medians = {t: {n: statistics.median(s) for n, s in by_name.items()} for t, by_name in seconds.items()}
    print(f"{'':<28}{'':<22}{'CPU s':>8}{'times ours':>12}{'figure':>10}")
    ratios: dict[str, dict[str, float]] = {}
    for task, by_name in medians.items():
        for name, median in by_name.items():
            ratio = median / by_name["this recipe"]
            print(f"{task:<28}{name:<22}{median:>8.2f}{ratio:>12.2f}{figures[task][name]:>10.4f}")
            if name != "this recipe":
                ratios.setdefault(name, {})[task] = ratio
    if arguments.json:
        record = {"cpu_seconds": medians, "figures": figures, "turns": seconds, "ratios": ratios}
        cards.write_json(arguments.json, record)


if __name__ == "__main__":
    main()
