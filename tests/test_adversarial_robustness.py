"""Recipe 4: attacks beside closed forms and other libraries, bounds beside exact optima, claims attacked."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from torch import nn

from recipes import analysis_by_synthesis, data
from recipes.adversarial_robustness import (
    Config,
    attacks,
    blind,
    bounds,
    checklist,
    defences,
    evaluation,
    latent,
    libraries,
    networks,
    search,
    zoo,
)
from recipes.adversarial_robustness.nearest import NearestNeighbour

FEW = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**31 - 1)


def images_of(seed: int, count: int = 6, size: int = 28) -> torch.Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed))


def convolutional(seed: int = 0) -> nn.Sequential:
    """A network with batch norm whose statistics are anything, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = networks.normed(4, 16)
        for layer in network:
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
        for layer in network:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight.data *= 3  # so that images differ in their logits
    return network.eval()


def linear(seed: int = 0, classes: int = 3, size: int = 4) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(size * size, classes)).eval()


def own_labels(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network(images).argmax(1)


# --- attacks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logits", [True, False], ids=["logits", "probabilities"])
def test_fgsm_equals_foolbox_and_cleverhans(logits):
    import foolbox
    from cleverhans.torch.attacks.fast_gradient_method import fast_gradient_method

    network = convolutional() if logits else nn.Sequential(convolutional(), nn.Softmax(1)).eval()
    images = images_of(1)
    labels = own_labels(network, images)
    ours = attacks.fgsm(network, images, labels, 0.1)
    model = foolbox.PyTorchModel(network, (0, 1), device="cpu")
    theirs, _, _ = foolbox.attacks.LinfFastGradientAttack(random_start=False)(
        model, images, labels, epsilons=0.1
    )
    cleverhans = fast_gradient_method(network, images, 0.1, np.inf, 0, 1, y=labels)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours, cleverhans.detach(), atol=1e-5, rtol=0)
    assert (ours != images).float().mean() > 0.5


def test_probabilities_taken_for_logits_point_the_same_way_but_fade_beyond_the_boundary():
    """Where the label is sure, both are multiples of the sum of p_j (∇z_j − ∇z_label); where another
    class is, that of the probabilities has a factor p (1 − p), which is next to nothing."""
    network, images = convolutional(), images_of(1, 50)
    network[-1].weight.data *= 5
    network[-1].bias.data *= 5
    labels = own_labels(network, images)
    mistaken = nn.Sequential(network, nn.Softmax(1)).eval()
    for truth, alike in ((labels, True), ((labels + 1) % 10, False)):
        right, wrong = (attacks.gradient(each, images, truth)[0].flatten(1) for each in (network, mistaken))
        if alike:
            assert (nn.functional.cosine_similarity(right, wrong) > 0.999).all()
        else:
            assert (wrong.norm(dim=1) < 1e-3 * right.norm(dim=1)).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_equals_foolbox_and_cleverhans(norm):
    import foolbox
    from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent

    # away from black and white: CleverHans' L2 cuts to [0, 1] before it projects, too
    network, images = convolutional(), 0.4 + 0.2 * images_of(2)
    labels = own_labels(network, images)
    epsilon, step, steps = {"linf": (0.1, 0.02, 10), "l2": (1.0, 0.2, 10)}[norm]
    ours = attacks.pgd(
        network,
        images,
        labels,
        epsilon,
        norm=norm,
        steps=steps,
        step_size=step,
        random_start=False,
        stop_early=False,
    )
    attack = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    model = foolbox.PyTorchModel(network, (0, 1), device="cpu")
    theirs, _, _ = attack(rel_stepsize=step / epsilon, steps=steps, random_start=False)(
        model, images, labels, epsilons=epsilon
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    order = np.inf if norm == "linf" else 2
    cleverhans = projected_gradient_descent(
        network, images, epsilon, step, steps, order, 0, 1, y=labels, rand_init=False, sanity_checks=False
    )
    torch.testing.assert_close(ours, cleverhans.detach(), atol=1e-5, rtol=0)
    assert (search.distances(images, ours, norm) > 0.5 * epsilon).all()


@FEW
@given(seeds, st.sampled_from(["linf", "l2"]), st.floats(0.01, 0.4))
def test_pgd_stays_in_the_ball_and_in_the_pixels(seed, norm, epsilon):
    network, images = convolutional(seed % 5), images_of(seed)
    labels = own_labels(network, images)
    radii = epsilon * torch.linspace(0.1, 1, len(images))
    found = attacks.pgd(
        network, images, labels, radii, norm=norm, steps=5, generator=torch.Generator().manual_seed(seed)
    )
    assert found.min() >= 0
    assert found.max() <= 1
    assert (search.distances(images, found, norm) <= radii + 1e-5).all()


@FEW
@given(seeds)
def test_pgd_finds_what_a_linear_network_allows(seed):
    """The worst loss of two linear classes in a box is at x + ε sign(w_other − w_label), cut to [0, 1]."""
    network, images = linear(seed, classes=2), images_of(seed, size=4)
    labels = own_labels(network, images)
    found = attacks.pgd(network, images, labels, 0.2, steps=10, step_size=0.1, stop_early=False)
    weight = network[1].weight.detach()
    direction = (weight[1 - labels] - weight[labels]).sign().view_as(images)
    torch.testing.assert_close(found, (images + 0.2 * direction).clamp(0, 1), atol=1e-6, rtol=0)


@FEW
@given(seeds, st.sampled_from(["l2", "linf"]))
def test_deepfool_steps_onto_a_linear_boundary(seed, norm):
    """|f| / ‖w‖ (L2) or |f| / ‖w‖₁ (Linf) is how far a linear boundary is; pixels stay inside here."""
    network = linear(seed, classes=2)
    with torch.no_grad():
        network[1].weight *= 50
        network[1].bias[:] = -network[1].weight.sum(1) / 2  # through grey, so that no pixel is cut off
        images = 0.5 + 0.01 * (images_of(seed, size=4) - 0.5)
        logits = network(images)
    labels = logits.argmax(1)
    found = attacks.deepfool(network, images, labels, norm=norm, overshoot=0.02)
    weight = (network[1].weight[1] - network[1].weight[0]).detach()
    size = weight.norm() if norm == "l2" else weight.abs().sum()
    expected = (logits[:, 1] - logits[:, 0]).abs() / size
    assert attacks.fooled(network, found, labels).all()
    torch.testing.assert_close(search.distances(images, found, norm), 1.02 * expected, rtol=1e-2, atol=1e-6)


@FEW
@given(seeds, st.floats(0.05, 0.95))
def test_bisection_finds_the_least_strength_that_does(seed, boundary):
    class Threshold(nn.Module):
        def forward(self, images):
            mean = images.flatten(1).mean(1)
            return torch.stack([boundary - mean, mean - boundary], 1)

    network, images, labels = Threshold().eval(), torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64)
    found = search.bisect(
        *(network, images, labels), lambda _, strength: strength.view(-1, 1, 1, 1).expand(-1, 1, 2, 2), 1
    )
    on_the_way = search.nearer(network, images, labels, torch.ones(4, 1, 2, 2))
    for result, rounds in ((found, 12), (on_the_way, 9)):
        assert (result.flatten(1).mean(1) >= boundary).all()
        assert (result.flatten(1).mean(1) <= boundary + 2**-rounds + 1e-6).all()


def test_estimated_gradients_are_those_of_a_linear_network():
    network, images = linear(3), images_of(3, size=4).requires_grad_()
    labels = own_labels(network, images)
    guess = blind.EstimatedGradients(network)
    ours, logits = attacks.gradient(guess, images, labels)
    exact, same = attacks.gradient(network, images, labels)
    torch.testing.assert_close(ours, exact, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(logits, same)


class Counts(nn.Module):
    """Class 1 if at least so many pixels are white."""

    def __init__(self, needed: int) -> None:
        super().__init__()
        self.needed = needed

    def forward(self, images):
        score = (images > 0.5).flatten(1).sum(1) - self.needed + 0.5
        return torch.stack([-score, score], 1)


@FEW
@given(st.integers(1, 16), seeds)
def test_putting_back_leaves_just_the_pixels_that_are_needed(needed, seed):
    network, images = Counts(needed).eval(), torch.zeros(3, 1, 4, 4)
    found = search.put_back(
        network,
        images,
        torch.zeros(3, dtype=torch.int64),
        torch.ones(3, 1, 4, 4),
        torch.Generator().manual_seed(seed),
    )
    assert search.distances(images, found, "l0").tolist() == [needed] * 3


def two_classes(seed: int) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A linear network, grey images far from black and white, their labels, and w of `logit 1 − logit 0`."""
    network = linear(seed, classes=2)
    images = 0.5 + 0.02 * (images_of(seed, size=4) - 0.5)
    with torch.no_grad():
        network[1].bias.zero_()
        way = network[1].weight[1] - network[1].weight[0]
        network[1].bias[1] = 0.05 * way.abs().sum() - network(images).diff(dim=1).mean()
    return network, images, own_labels(network, images), way.detach()


@pytest.mark.parametrize(
    ("attack", "norm", "slack"),
    [
        (search.one_step("l2"), "l2", 1.05),
        (search.one_step("linf"), "linf", 1.01),
        (search.deepfool("l2"), "l2", 1.01),
        (search.deepfool("linf"), "linf", 1.01),
        (search.least_pgd("l2", 40, 10), "l2", 1.05),
        (search.least_pgd("linf", 40, 10), "linf", 1.05),
        (libraries.carlini_wagner(), "l2", 1.1),
    ],
    ids=["FGM", "FGSM", "DeepFool L2", "DeepFool Linf", "PGD L2", "PGD Linf", "Carlini-Wagner"],
)
def test_searches_find_the_nearest_boundary_of_a_linear_network(attack, norm, slack):
    network, images, labels, way = two_classes(0)
    found = attack(network, images, labels, torch.Generator().manual_seed(0))
    gaps = network(images).diff(dim=1)[:, 0].abs()
    least = gaps / (way.norm() if norm == "l2" else way.abs().sum())
    assert attacks.fooled(network, found, labels).all()
    distance = search.distances(images, found, norm)
    assert (distance >= least * 0.999).all()
    assert (distance <= least * slack + 1e-5).all()


@pytest.mark.parametrize("attack", [search.sparse, blind.pointwise(5)], ids=["sparse", "pointwise"])
def test_few_pixels_are_those_that_weigh_most(attack):
    """Of a linear network the fewest are those whose way to black or white changes the logits most."""
    network, images, labels, way = two_classes(0)
    found = attack(network, images, labels, torch.Generator().manual_seed(0))
    sign = 1 - 2 * labels[:, None].float()
    gain = torch.where(sign * way > 0, 1 - images.flatten(1), images.flatten(1)) * way.abs()
    gaps = network(images).diff(dim=1).abs()
    needed = 1 + (gain.sort(1, descending=True).values.cumsum(1) < gaps).sum(1)
    assert attacks.fooled(network, found, labels).all()
    count = search.distances(images, found, "l0")
    assert (count >= needed).all()
    assert attack is not search.sparse or (count == needed).all()


def test_accuracies_at_each_epsilon_are_those_of_a_linear_network():
    network, images, labels, way = two_classes(1)
    least = network(images).diff(dim=1)[:, 0].abs() / way.abs().sum()
    epsilons = [0.0, *(least.sort().values[[0, 2, 4]] * 1.02).tolist()]
    found = evaluation.robust_accuracies(
        network, images, labels, epsilons, generator=torch.Generator().manual_seed(0)
    )
    exact = [float((least > epsilon).float().mean()) for epsilon in epsilons]
    assert found == pytest.approx(exact)
    assert bounds.verified_shares(network, images, labels, epsilons) == pytest.approx(exact)
    with pytest.raises(ValueError, match="epsilons must rise"):
        bounds.verified_shares(network, images, labels, [0.3, 0.1])


def test_an_unknown_norm_is_refused():
    network, images = linear(), images_of(0, size=4)
    labels = own_labels(network, images)
    for attempt in (
        lambda: attacks.pgd(network, images, labels, 0.1, norm="Linf"),
        lambda: attacks.deepfool(network, images, labels, norm="l1"),
        lambda: search.distances(images, images, "Linf"),
        lambda: search.Attack("mine", "l1", search.sparse),
    ):
        with pytest.raises(ValueError, match="norm"):
            attempt()


def test_distances_are_those_of_the_norms():
    images, others = torch.zeros(1, 1, 2, 2), torch.tensor([[[[0.0, 0.6], [-0.8, 0.0]]]])
    assert [round(search.distances(images, others, n).item(), 6) for n in attacks.NORMS] == [1.0, 0.8, 2]


@pytest.mark.parametrize(
    ("attack", "draws"),
    [
        (libraries.carlini_wagner(200, 4), False),
        (libraries.boundary(20), True),
        (libraries.salt_and_pepper, True),
        (libraries.square(0.3, 50), True),
        (libraries.auto_attack(0.3), True),
    ],
    ids=["carlini-wagner", "boundary", "salt and pepper", "square", "autoattack"],
)
def test_other_libraries_draw_from_our_generator_and_leave_theirs_alone(attack, draws):
    network, images = linear(0, classes=10, size=28), images_of(5, 3)
    labels = own_labels(network, images)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    found = [attack(network, images, labels, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert attacks.fooled(network, found[0], labels).all()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2]) != draws
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
    assert found[0].min() >= 0
    assert found[0].max() <= 1


BAD = {
    "pixels": ({"images": images_of(0) * 255}, "images must be in [0, 1]"),
    "not a number": ({"images": images_of(0) * float("nan")}, "images must be in [0, 1]"),
    "shape": ({"images": images_of(0)[:, 0]}, "images must be floats [N, channels, height, width]"),
    "size": ({"images": images_of(0)[..., :20, :]}, "the network takes no images of [1, 20, 28]"),
    "integers": ({"images": (images_of(0) * 255).byte()}, "images must be floats"),
    "labels too large": ({"labels": torch.full((6,), 10)}, "labels must be from 0 to 9"),
    "negative labels": ({"labels": torch.full((6,), -1)}, "labels must be from 0 to 9"),
    "too few labels": ({"labels": torch.zeros(5, dtype=torch.int64)}, "labels must be int64 [6]"),
    "epsilon": ({"epsilon": -0.1}, "epsilon must be a number from 0, not -0.1"),
    "training": ({"network": networks.normed(4, 16).train()}, "the network is in training mode"),
    "arrays": ({"images": np.zeros((6, 1, 28, 28))}, "must be PyTorch tensors, not ndarray, Tensor"),
    "too few epsilons": ({"epsilon": torch.tensor([0.1, 0.2])}, "one for each of the 6 images"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name):
    change, message = BAD[name]
    good = {
        "network": convolutional(),
        "images": images_of(0),
        "labels": torch.zeros(6, dtype=torch.int64),
        "epsilon": 0.1,
    }
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        attacks.fgsm(**good | change)
    assert message in str(error.value)


# --- distances and what is reported -------------------------------------------------------------------


def test_the_least_over_all_attacks_is_reported_and_each_is_tried_anew():
    network, images = Counts(3).eval(), torch.zeros(4, 1, 4, 4)
    images[3] = 1  # classified wrongly to begin with
    labels = torch.zeros(4, dtype=torch.int64)

    def white(count, value=1.0):
        def attack(_network, x, _labels, _generator):
            found = x.clone().flatten(1)
            found[:, :count] = value
            return found.view_as(x)

        return attack

    tried = [
        search.Attack("five", "l0", white(5)),
        search.Attack("three", "l0", white(3)),
        search.Attack("two, which is not enough", "l0", white(2)),
        search.Attack("out of range", "l0", white(1, 9.0)),
        search.Attack("half, lost in rounding", "l0", white(3, 0.5 + 1e-6)),
    ]
    found = evaluation.measure(network, images, labels, tried)
    assert found.distance["l0"].tolist() == [3, 3, 3, 0]
    assert found.by["l0"] == ["three"] * 3 + ["none"]
    assert found.median("l0") == 3
    assert found.accuracy_at("l0", 2) == 0.75
    assert found.accuracy_at("l0", 3) == 0
    assert found.medians == {
        "five": 5,
        "three": 3,
        "two, which is not enough": np.inf,
        "out of range": np.inf,
        "half, lost in rounding": 3,
    }
    assert (found.nearest["linf"] <= 1).all()


def test_what_rounding_would_undo_is_moved_on():
    class Fine(nn.Module):
        def forward(self, images):
            score = images.flatten(1).amax(1) - 0.4985
            return torch.stack([-score, score], 1)

    network, images = Fine().eval(), torch.zeros(1, 1, 2, 2)
    labels, found = torch.zeros(1, dtype=torch.int64), torch.full((1, 1, 2, 2), 0.499)
    assert not attacks.fooled(network, evaluation.eight_bits(found), labels).any()
    settled, taken_for = evaluation.settle(network, images, labels, found)
    assert attacks.fooled(network, settled, labels).all()
    assert attacks.fooled(network, evaluation.eight_bits(settled), labels).all()
    assert taken_for.tolist() == [1]
    assert 0.499 < settled.max() <= 0.499 * 1.1


def test_a_tie_of_two_logits_is_moved_on():
    class Tied(nn.Module):
        def forward(self, images):
            score = (images.flatten(1).amax(1) - 0.4).clamp(min=0)
            return torch.stack([1 + 0 * score, 1 + score, 0 * score], 1)

    images, labels = torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64)
    settled, taken_for = evaluation.settle(Tied().eval(), images, labels, torch.full((1, 1, 2, 2), 0.4))
    assert taken_for.tolist() == [1]
    assert settled.max() > 0.4001


def test_accuracy_under_an_attack_counts_what_is_found_in_the_ball():
    from recipes.adversarial_robustness import experiment

    network, images = Counts(3).eval(), torch.zeros(4, 1, 4, 4)
    images[3] = 1  # misclassified to begin with
    labels, safe = torch.zeros(4, dtype=torch.int64), torch.tensor([True, False, False, False])

    def brighter(_network, x, _labels, _generator):
        return x + torch.tensor([0.55, 0.65]).view(-1, 1, 1, 1)  # the second leaves the ball

    seen = experiment._under(brighter, network, images, labels, safe, 0.6, torch.Generator())
    assert seen == (0.5, 1, 1)


def test_a_defence_is_measured_from_end_to_end():
    from recipes.adversarial_robustness import experiment

    defence = experiment.defended("certified", Config(data="embedded", attacked=5))
    assert len(defence.epsilons) == len(defence.attacked) == len(defence.verified)
    assert all(low <= high + 1e-9 for low, high in zip(defence.verified, defence.attacked, strict=True))
    assert defence.proved <= defence.clean < 1
    assert defence.images_under["PGD-40"] == 5


def test_adversarials_outside_the_ball_do_not_count():
    network, images = Counts(1).eval(), torch.zeros(2, 1, 2, 2)
    found = torch.stack([torch.full((1, 2, 2), 0.6), torch.full((1, 2, 2), 0.61)])
    labels = torch.zeros(2, dtype=torch.int64)
    assert evaluation.adversarial(network, images, labels, found, 0.6).tolist() == [True, False]


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (10, 10), (7, 10), (880, 1000)])
def test_intervals_cover_by_the_binomial_tails(hits, trials):
    """The ends are where seeing so few, or so many, has probability 2.5 %."""
    from scipy.stats import binom

    low, high = evaluation.interval(hits, trials)
    assert low == 0 if hits == 0 else binom.sf(hits - 1, trials, low) == pytest.approx(0.025)
    assert high == 1 if hits == trials else binom.cdf(hits, trials, high) == pytest.approx(0.025)


# --- bounds -------------------------------------------------------------------------------------------


def worst_seen(network, images, labels, epsilon, seed, tries=60):
    generator = torch.Generator().manual_seed(seed)
    worst = torch.full((len(images), 10), -torch.inf).double()
    for number in range(tries):
        noise = 2 * torch.rand(images.shape, generator=generator).double() - 1
        noise = noise.sign() if number % 2 else noise
        logits = network((images + epsilon * noise).clamp(0, 1)).detach()
        worst = worst.maximum(logits - logits.gather(1, labels[:, None]))
    return worst


@FEW
@given(seeds, st.floats(0, 0.5))
def test_no_point_of_the_ball_is_beyond_the_bounds(seed, epsilon):
    network, images = convolutional(seed % 7).double(), images_of(seed, 3).double()
    labels = own_labels(network, images)
    seen = worst_seen(network, images, labels, epsilon, seed)
    for bound in (bounds.margins, bounds.crown_margins):
        assert (bound(network, images, labels, epsilon) >= seen - 1e-9).all()


@pytest.mark.parametrize("build", [networks.chapter, networks.article, networks.small, networks.linear])
def test_bounds_go_through_every_network_of_the_recipe(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build().eval().double()
    images = images_of(3, 2).double()
    labels = own_labels(network, images)
    seen, logits = worst_seen(network, images, labels, 0.02, 0), network(images)
    for bound in (bounds.margins, bounds.crown_margins):
        assert (bound(network, images, labels, 0.02) >= seen - 1e-9).all()
        still = bound(network, images, labels, 0)
        torch.testing.assert_close(still, logits - logits.gather(1, labels[:, None]), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [{"dilation": 2}, {"groups": 2}, {"bias": False}, {"stride": 3, "padding": 2}, {"padding": "same"}],
    ids=str,
)
def test_bounds_know_how_a_convolution_is_set(settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, **settings), nn.ReLU(), nn.Flatten()
        width = nn.Sequential(*body)(torch.zeros(1, 1, 8, 8)).shape[1]
        network = nn.Sequential(*body, nn.Linear(width, 10, bias=False)).eval().double()
    images = images_of(3, 3, 8).double()
    labels = own_labels(network, images)
    seen = worst_seen(network, images, labels, 0.1, 0)
    logits = network(images)
    for bound in (bounds.margins, bounds.crown_margins):
        assert (bound(network, images, labels, 0.1) >= seen - 1e-9).all()
        still = bound(network, images, labels, 0)
        torch.testing.assert_close(still, logits - logits.gather(1, labels[:, None]), atol=1e-9, rtol=0)


@FEW
@given(seeds)
def test_crown_is_exact_where_there_is_no_ball_and_both_are_on_linear_networks(seed):
    network, images = convolutional(seed % 7).double(), images_of(seed, 3).double()
    labels = own_labels(network, images)
    logits = network(images)
    still = bounds.crown_margins(network, images, labels, 0)
    torch.testing.assert_close(still, logits - logits.gather(1, labels[:, None]), atol=1e-9, rtol=0)

    flat = linear(seed, classes=10).double()
    images = images_of(seed, 3, 4).double()
    labels = own_labels(flat, images)
    weight = flat[1].weight[None] - flat[1].weight[labels][:, None]  # [N, 10, 16]
    best = torch.where(
        weight > 0,
        (images + 0.3).clamp(max=1).flatten(1)[:, None],
        (images - 0.3).clamp(min=0).flatten(1)[:, None],
    )
    exact = (weight * best).sum(2) + flat[1].bias - flat[1].bias[labels][:, None]
    for bound in (bounds.margins, bounds.crown_margins):
        torch.testing.assert_close(bound(flat, images, labels, 0.3), exact, atol=1e-9, rtol=0)


def exact_worst(network, image, label, other, epsilon):
    """The largest logit difference in the ball, by mixed-integer programming, one switch a ReLU."""
    first, second = network[1], network[3]
    w, b = first.weight.detach().numpy(), first.bias.detach().numpy()
    hidden, pixels = w.shape
    low, high = np.clip(image - epsilon, 0, 1), np.clip(image + epsilon, 0, 1)
    middle, radius = w @ (low + high) / 2 + b, np.abs(w) @ (high - low) / 2
    lower, upper = middle - radius, middle + radius
    goal = (second.weight[other] - second.weight[label]).detach().numpy()
    eye, none = np.eye(hidden), np.zeros((hidden, pixels))
    rows = [
        (np.hstack([-w, eye, 0 * eye]), b, np.inf),  # h >= w x + b
        (np.hstack([none, eye, -np.diag(np.maximum(upper, 0))]), -np.inf, 0),  # h <= u a
        (np.hstack([-w, eye, -np.diag(np.minimum(lower, 0))]), -np.inf, b - np.minimum(lower, 0)),
    ]
    found = optimize.milp(
        -np.concatenate([np.zeros(pixels), goal, np.zeros(hidden)]),
        integrality=np.repeat([0, 0, 1], [pixels, hidden, hidden]),
        bounds=optimize.Bounds(
            np.concatenate([low, np.zeros(2 * hidden)]),
            np.concatenate([high, np.full(hidden, np.inf), np.ones(hidden)]),
        ),
        constraints=[optimize.LinearConstraint(*row) for row in rows],
    )
    assert found.status == 0
    return -found.fun + float(second.bias[other] - second.bias[label])


@settings(max_examples=8, deadline=None)
@given(seeds, st.floats(0.01, 0.3))
def test_bounds_are_at_least_the_exact_optimum_and_crown_is_near_it(seed, epsilon):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    images = images_of(seed, 2, 3).double()
    labels = own_labels(network, images)
    boxes, lines = (
        bound(network, images, labels, epsilon) for bound in (bounds.margins, bounds.crown_margins)
    )
    safe = bounds.verified(network, images, labels, epsilon)
    for place, label in enumerate(labels.tolist()):
        image = images[place].flatten().numpy()
        exact = {
            other: exact_worst(network, image, label, other, epsilon) for other in range(3) if other != label
        }
        for other, worst in exact.items():
            assert boxes[place, other] >= worst - 1e-7
            assert lines[place, other] >= worst - 1e-7
            still = bounds.crown_margins(network, images, labels, 0)[place, other]
            assert lines[place, other] - worst <= 0.75 * (worst - still) + 0.25
        assert not safe[place] or max(exact.values()) < 0


def test_subclasses_that_do_something_else_have_no_bound():
    class Normalised(nn.Sequential):
        def forward(self, images):
            return super().forward((images - 0.5) / 0.1)

    class Cosine(nn.Linear):
        def forward(self, features):
            return 10 * nn.functional.linear(features, nn.functional.normalize(self.weight, dim=1))

    images, labels = images_of(0, size=4), torch.zeros(6, dtype=torch.int64)
    for network in (
        Normalised(*linear()),
        nn.Sequential(nn.Flatten(), Cosine(16, 3)),
        nn.Sequential(nn.Flatten(), nn.ELU(-1.0)),
        nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16, affine=False)),
    ):
        for bound in (bounds.margins, bounds.crown_margins, bounds.verified):
            with pytest.raises(TypeError, match="bound"):
                bound(network.eval(), images, labels, 0.1)


@pytest.mark.parametrize("name", ["pixels", "labels too large", "negative labels", "epsilon"])
def test_nothing_is_proved_of_bad_input(name):
    change, message = BAD[name]
    good = {"images": images_of(0), "labels": torch.zeros(6, dtype=torch.int64), "epsilon": 0.1}
    with pytest.raises(ValueError, match=re.escape(message)):
        bounds.verified(convolutional(), **good | change)


def test_what_no_bound_is_known_for_says_so():
    with pytest.raises(TypeError, match="no bound is known for Dropout"):
        bounds.margins(
            nn.Sequential(nn.Dropout(), *linear()).eval(),
            images_of(0, size=4),
            torch.zeros(6, dtype=torch.int64),
            0.1,
        )
    reflecting = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(TypeError, match="no bound is known for Conv2d"):
        bounds.margins(reflecting, images_of(0), torch.zeros(6, dtype=torch.int64), 0.1)
    with pytest.raises(TypeError, match="not through Counts"):
        bounds.margins(Counts(1), images_of(0), torch.zeros(6, dtype=torch.int64), 0.1)


# --- trainings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0, 0.002, 0.01, 0.1, 0.5])
def test_sorting_out_in_float32_changes_no_verdict(epsilon):
    network, images = convolutional(), images_of(0, 8)
    labels = own_labels(network, images)
    worst = bounds.margins(copy.deepcopy(network).double(), images.double(), labels, epsilon)
    expected = worst.scatter(1, labels[:, None], -torch.inf).amax(1) < 0
    for batch in (1, 8):
        proved = bounds.verified(network, images, labels, epsilon, crown=False, batch=batch)
        assert proved.tolist() == expected.tolist()
    assert expected.all() if epsilon == 0 else epsilon < 0.5 or not expected.any()


def bars(count: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    """White on the left or on the right, labels 0 and 1; balls of 0.3 do not touch."""
    labels = torch.arange(count) % 2
    images = torch.zeros(count, 1, 28, 28)
    images[labels == 0, :, :, :14] = 1
    images[labels == 1, :, :, 14:] = 1
    return (images + 0.1 * images_of(0, count)).clamp(0, 1), labels


def test_interval_training_gives_a_network_that_is_proved_safe():
    images, labels = bars()
    network = defences.interval_training(
        networks.normed(2, 8), images, labels, epsilon=0.3, epochs=12, batch=50, learning_rate=1e-2
    )
    assert not network.training
    assert bounds.verified(network, images[:50], labels[:50], 0.2).all()


@pytest.mark.parametrize(("steps", "step_size"), [(1, 0.375), (3, 0.2)])
def test_adversarial_training_repeats_itself_and_holds(steps, step_size):
    images, labels = bars(200)

    def trained(epochs):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = networks.small(4, 16)
        return defences.adversarial_training(
            *(network, images, labels),
            **{"steps": steps, "step_size": step_size, "epochs": epochs, "batch": 25, "learning_rate": 5e-3},
        )

    first, second = trained(3), trained(3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    network = trained(30)
    found = attacks.pgd(network, images, labels, 0.3)
    assert attacks.fooled(network, found, labels).float().mean() < 0.05


# --- analysis by synthesis, and the nearest neighbour --------------------------------------------------


def test_the_running_average_has_the_statistics_of_its_network():
    images, labels = bars(64)
    network = nn.Sequential(nn.Conv2d(1, 2, 5, stride=4), nn.BatchNorm2d(2), nn.Flatten(), nn.LazyLinear(2))
    network(images[:1])
    average = defences.adversarial_training(network, images, labels, steps=2, epochs=1, batch=32)
    torch.testing.assert_close(average[1].running_mean, network[1].running_mean)
    assert network[1].num_batches_tracked > 0


@pytest.fixture(scope="module")
def abs_network():
    network = zoo.load("abs")
    network.samples = 200
    return network


def test_abs_gives_the_gradient_at_the_best_latents(abs_network):
    """By finite differences of the energy, searched anew on either side."""
    images = torch.from_numpy(data.channels_first(data.scale(data.load("mnist", "embedded").test.images[:2])))
    latents = abs_network.search(images, descents=[(5, 400)])
    slopes = []
    for label in range(2):
        moving = images.clone().requires_grad_()
        slopes.append(torch.autograd.grad(abs_network.logits_at(moving, latents)[:, label].sum(), moving)[0])
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    ends = [
        abs_network.logits_at(
            images + h * direction, abs_network.search(images + h * direction, latents, [(5, 200)])
        )
        for h in (0.005, -0.005)
    ]
    by_difference = (ends[0] - ends[1]) / 0.01
    for label, slope in enumerate(slopes):
        expected = (slope * direction).sum((1, 2, 3))
        likely = abs_network.logits_at(images, latents).topk(5, 1).indices
        rows = (likely == label).any(1)
        torch.testing.assert_close(by_difference[rows, label], expected[rows], rtol=0.05, atol=0.2)


def test_abs_forgets_what_it_drew_before_its_weights_were_loaded(abs_network):
    other = analysis_by_synthesis.AnalysisBySynthesis(samples=50, descents=())
    images = images_of(0, 2)
    before = other(images)
    other.load_state_dict(abs_network.state_dict())
    fresh = analysis_by_synthesis.AnalysisBySynthesis(samples=50, descents=())
    fresh.load_state_dict(abs_network.state_dict())
    assert not torch.equal(before, other(images))
    assert torch.equal(fresh(images), other(images))


def test_abs_forward_has_that_gradient_and_a_search_never_gets_worse(abs_network):
    images = images_of(4, 2).requires_grad_()
    logits = abs_network(images)
    latents = abs_network.search(images.detach())
    torch.testing.assert_close(logits, abs_network.logits_at(images, latents))
    slope = torch.autograd.grad(logits[:, 3].sum(), images)[0]
    drawn = abs_network.draw(latents)[:, 3:4]
    torch.testing.assert_close(slope, -2 * (images.detach() - drawn), atol=1e-4, rtol=1e-4)
    begun = abs_network.logits_at(images, abs_network.search(images.detach(), descents=()))
    assert (logits >= begun - 1e-4).all()
    assert (latents.norm(dim=2) <= analysis_by_synthesis.LONGEST + 1e-4).all()


def test_an_autoencoder_learns_to_draw_what_it_saw():
    images, labels = bars(128)
    decoder = analysis_by_synthesis.train_decoder(images[labels == 0], epochs=60)
    drawn = decoder(torch.zeros(1, 8, 1, 1))
    own, other = ((drawn - images[labels == label].mean(0)).abs().mean() for label in (0, 1))
    assert own < other / 2


def test_a_decoder_draws_the_same_without_batch_norm():
    torch.manual_seed(0)
    trained = analysis_by_synthesis.decoder(normed=True)
    for layer in trained:
        if isinstance(layer, torch.nn.BatchNorm2d):
            for values in (layer.weight, layer.bias, layer.running_mean):
                torch.nn.init.normal_(values)
            torch.nn.init.uniform_(layer.running_var, 0.5, 2)
    latent_codes = torch.randn(4, analysis_by_synthesis.LATENT, 1, 1)
    plain = analysis_by_synthesis.without_norm(trained)
    torch.testing.assert_close(plain(latent_codes), trained.eval()(latent_codes), atol=1e-5, rtol=1e-4)
    analysis_by_synthesis.decoder().load_state_dict(plain.state_dict())


def test_attacks_on_abs_share_one_search(abs_network, monkeypatch):
    images, begun = images_of(3, 2), []
    search_latents = abs_network.search

    def counted(images, start=None, *arguments):
        begun.append(start is None)
        return search_latents(images, start, *arguments)

    monkeypatch.setattr(abs_network, "search", counted)
    latents, labels = latent.Latents(), torch.tensor([0, 1])
    for steps in (1, 2):
        latent.tracked(lambda network, x, *_: network(x), steps, 3, latents)(
            abs_network, images, labels, torch.Generator()
        )
    assert sum(begun) == 1
    assert len(begun) == 3
    latents(abs_network, images.clone())
    assert sum(begun) == 2


def test_the_nearest_neighbour_is_the_nearest():
    train, labels = images_of(1, 50), torch.arange(50) % 10
    network, images = NearestNeighbour(train, labels), images_of(2, 8)
    squares = torch.cdist(images.flatten(1).double(), train.flatten(1).double()).square()
    expected = torch.stack([squares[:, labels == label].amin(1) for label in range(10)], 1)
    torch.testing.assert_close(network(images).double(), -expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(network(images).argmax(1), labels[squares.argmin(1)])


def test_towards_a_prototype_is_the_shortest_way_between_two_images():
    """With one image a class the boundary is half-way between them."""
    train = torch.stack([torch.full((1, 4, 4), 0.2), torch.full((1, 4, 4), 0.8)])
    network = NearestNeighbour(train, torch.tensor([0, 1]), classes=2)
    labels = torch.tensor([0, 1])
    found = latent.towards("l2", rounds=14)(network, train, labels, torch.Generator())
    torch.testing.assert_close(
        search.distances(train, found, "l2"), torch.full((2,), 0.3 * 4), rtol=2e-3, atol=0
    )


# --- the networks that come with the recipe ------------------------------------------------------------


def test_weights_say_where_they_come_from():
    for name in zoo.ENTRIES:
        about = zoo.card(name)
        assert about["command"] == f"python -m recipes.adversarial_robustness --train {name}"
        assert 0.9 < float(about["test_accuracy"]) < 1
        assert float(about["cpu_seconds"]) <= 45 * 60


def test_weights_of_another_network_are_refused(monkeypatch):
    monkeypatch.setattr(zoo, "file_name", lambda _: "mnist_mlp.safetensors")
    with pytest.raises(ValueError, match="holds no weights of pgd"):
        zoo.load("pgd")


@pytest.mark.parametrize("name", ["cnn", "undefended", "stale", "fgsm", "pgd", "certified", "scratch"])
def test_networks_are_as_accurate_as_their_files_say(name, real_mnist):
    images, labels = zoo.tensors(real_mnist.test)
    wrong = attacks.fooled(zoo.load(name), images, labels).sum().item()
    assert abs((10_000 - wrong) / 10_000 - float(zoo.card(name)["test_accuracy"])) <= 2e-4


def test_stand_ins_train_nothing_that_is_shipped():
    with pytest.raises(ValueError, match="trained on real images"):
        zoo.train("fgsm", data.load("mnist", "embedded"))


def test_proof_and_attack_do_not_contradict_each_other(real_mnist):
    images, labels = zoo.tensors(real_mnist.test, 300)
    network = zoo.load("certified")
    safe = bounds.verified(network, images, labels, 0.3)
    assert safe.float().mean() > 0.85
    found = attacks.pgd(network, images, labels, 0.3, steps=100, step_size=0.01, restarts=2)
    assert not (safe & attacks.fooled(network, found, labels)).any()
    assert (bounds.verified(network, images, labels, 0.2) | ~safe).all()


# --- the defence that only looks like one, and the checklist --------------------------------------------


def checks_of(name, images, labels):
    network, surrogate = zoo.load(name), zoo.load("undefended")

    def claim(target, seen, truth):
        if name == "stale":
            return attacks.fgsm(surrogate, seen, truth, 0.3, clip=False)
        return search.fixed_pgd(0.3, 100, 2)(target, seen, truth, torch.Generator().manual_seed(0))

    return {c.name: c for c in checklist.run(network, images, labels, claim, surrogate)}


def test_the_checklist_flags_the_stale_defence_and_passes_those_that_hold(real_mnist):
    images, labels = zoo.tensors(real_mnist.test, 50)
    stale = checks_of("stale", images, labels)
    for attack in ("more steps and starts", "gradient-free attacks", "adversarials of a surrogate"):
        assert not stale[f"{attack} leave no less than is claimed"].passed
    for name in ("pgd", "certified"):
        assert all(check.passed for check in checks_of(name, images, labels).values()), name


def test_the_checklist_sees_gradients_that_vanish():
    class Rounded(nn.Module):
        """Its logits are whole numbers: no gradient leads anywhere."""

        def __init__(self):
            super().__init__()
            self.network = convolutional()

        def forward(self, images):
            return (20 * self.network(images)).round()

    network, images = Rounded().eval(), images_of(6, 20)
    labels = own_labels(network, images)

    def claim(target, seen, truth):
        return attacks.pgd(target, seen, truth, 0.3)

    found = {c.name: c.passed for c in checklist.run(network, images, labels, claim, convolutional(1))}
    assert not found["gradients do not vanish"]
    assert found["the same image gets the same answer"]
    assert not found["everything breaks at epsilon 1"]


def test_the_checklist_sees_answers_that_do_not_repeat_and_none_that_are_right():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = convolutional()

        def forward(self, images):
            return self.network(images + 0.1 * torch.randn(images.shape))

    class Constant(nn.Module):
        def forward(self, images):
            return torch.eye(10)[3].expand(len(images), 10)

    def claim(target, seen, truth):
        return attacks.pgd(target, seen, truth, 0.1, steps=5)

    images = images_of(6, 10)
    for network, labels, flagged in (
        (Noisy().eval(), own_labels(convolutional(), images), "the same image gets the same answer"),
        (Constant().eval(), torch.zeros(10, dtype=torch.int64), "gradients do not vanish"),
    ):
        found = {c.name: c.passed for c in checklist.run(network, images, labels, claim, convolutional(1))}
        assert not found[flagged]


# --- the recipe ---------------------------------------------------------------------------------------


def test_the_walk_ends_where_it_should_and_stays_within_the_pixels():
    from recipes.adversarial_robustness import experiment

    walk = experiment.walked(Config(data="embedded", seed=3), digits=8)
    assert walk.reached.all()
    assert (walk.targets != walk.labels).all()
    assert walk.adversarial.min() >= 0
    assert walk.adversarial.max() <= 1
    assert walk.path.shape == (walk.steps[0] + 1, 28, 28)
    np.testing.assert_array_equal(walk.path[0], walk.images[0])
    np.testing.assert_array_equal(walk.path[-1], walk.adversarial[0])
    assert walk.confidences[-1].argmax() == walk.targets[0]
    np.testing.assert_allclose(walk.confidences.sum(1), 1, rtol=1e-5)


def test_keras_and_pytorch_agree_on_the_same_weights():
    from recipes.adversarial_robustness import from_scratch, keras_twins, stale

    images = images_of(7, 4)
    last = images.permute(0, 2, 3, 1).numpy()
    model = keras_twins.to_keras(zoo.load("scratch"), from_scratch.network())
    assert model.count_params() == 10_210
    np.testing.assert_allclose(model(last).numpy(), zoo.load("scratch")(images).numpy(), atol=1e-4)
    article = stale.as_keras(zoo.load("stale"))
    np.testing.assert_allclose(article(last).numpy(), zoo.load("stale")(images).softmax(1).numpy(), atol=1e-5)
    back = keras_twins.to_pytorch(article, networks.article())
    np.testing.assert_allclose(back(images).detach().numpy(), zoo.load("stale")(images).numpy(), atol=1e-4)
    with pytest.raises(ValueError, match="fit"):
        keras_twins.to_pytorch(article, networks.linear())


def test_a_part_runs_and_reports_in_json(python, tmp_path):
    done = python(
        "-m",
        "recipes.adversarial_robustness",
        *("--part", "scratch", "--data", "embedded"),
        *("--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "p.png")),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())["result"]
    wanted = {"clean_accuracy", "median_distance", "accuracy_at", "attacks", "verified_accuracy", "checklist"}
    assert wanted <= set(result)
    assert result["scratch_reached"] == 100
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_a_script_without_a_guard_can_run_it(root, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from recipes.adversarial_robustness.experiment import _in_processes\n"
        "print('here')\n"
        "print(*_in_processes([(abs, (-1,)), (abs, (-2,))]), __file__)\n"
    )
    done = subprocess.run([sys.executable, script], cwd=root, capture_output=True, text=True)  # on all cores
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["here", "1", "2", str(script)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images", "0"], "images must be at least 1, not 0"),
        (["--images", "999999", "--data", "embedded"], "which is all of embedded mnist"),
        (["--epsilon", "-1"], "epsilon must be above 0 and at most 1"),
        (["--epsilon", "nan"], "epsilon must be above 0 and at most 1"),
        (["--train", "pgd", "--data", "embedded"], "train needs the real data"),
        (["--part", "everything"], "part"),
        (["--seed", "-1"], "seed must be from 0"),
    ],
)
def test_bad_flags_are_one_line(refused, flags, message):
    assert message in refused("adversarial_robustness", *flags)


def test_abs_is_attacked_along_what_other_classes_draw(abs_network, real_mnist):
    images, labels = zoo.tensors(real_mnist.test, 3)
    attack = search.Attack("latent", "l2", latent.tracked(latent.towards("l2")))
    found = evaluation.measure(abs_network, images, labels, [attack])
    assert ((found.distance["l2"] > 0.3) & (found.distance["l2"] < 5)).all()


def test_a_table_is_told_and_drawn():
    """One row, of so few images that the figure has fewer columns than it would like."""
    from recipes.adversarial_robustness import experiment, report, results

    config = Config(data="embedded", images=3, part="table")
    result = results.collect(config, "embedded", None, {"cnn": experiment.measured("cnn", config)}, None, {})
    assert "CNN" in report.describe(result)
    assert set(result.median_distance["cnn"]) == {"l2", "linf", "l0"}
    assert (
        len(report.plot(result).subfigs[0].axes) == (1 + 2) * 3
    )  # originals; adversarials and what was added


def test_two_runs_give_the_same():
    from recipes.adversarial_robustness import experiment

    config = Config(data="embedded", images=3, part="table")
    first, second = (experiment.measured("cnn", config)[0] for _ in range(2))
    assert first.medians == second.medians
    assert all(np.array_equal(first.nearest[n], second.nearest[n]) for n in attacks.NORMS)
