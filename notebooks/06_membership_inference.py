# %% [markdown]
# # 6. Membership inference
#
# **Does a trained network tell whom it was trained on?**
#
# That a photograph was in the training set of a network that recognises a disease says something of the
# person in it. Whoever has the photograph and may ask the network wants to find out; that is the
# weakest of all attacks on training data, and what every defence is measured by.
#
# This recipe starts from an article on ML Privacy Meter, which attacks an AlexNet on CIFAR-100 with a
# network that is trained to tell members of the training set from others (Nasr, Shokri and Houmansadr
# 2019). You will
#
# - see why a network that knows its images by heart gives them away, and attack it with a single
#   number;
# - see why an average says little, and what to report instead, and how surely;
# - calibrate: ask networks that were trained with an image, and without it, as today's attacks do;
# - make the article's attack, which knows some members, and see whether it is worth it;
# - find the images that are exposed most;
# - turn an attack into a bound: so private the network can at most be;
# - see what augmentation, weight decay and early stopping do against it, and what differential privacy
#   does;
# - audit a network of your own.
#
# It takes about three minutes: the networks, which took hours, come with the recipe. Where the images
# cannot be had, small ones are trained on stand-ins; then figures differ from what the text says.

# %% tags=["parameters"]
DATA = "auto"  # "real", "embedded" (stand-ins drawn here), or "auto": real if it can be had

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

from recipes import membership_inference as mia
from recipes import training
from recipes.membership_inference import fitting, metrics, report, targets

# %% [markdown]
# ## A network that knows its images by heart
#
# Each of CIFAR-100's training images was a member of the target's training set by the toss of a coin.
# There are three targets, all the same AlexNet of 2.5 million parameters: one was trained until it knew
# its images by heart; one on images that were moved and mirrored anew in each epoch, with more weight
# decay, and the epoch kept that was best on other images; one with DP-SGD ([recipe 5](05_dp_sgd.ipynb)).

# %%
config = mia.Config(data=DATA)
pool = targets.pool(config)
trained = targets.trained(list(targets.TRAININGS), pool, config)
member, (images, labels) = pool.member, pool.examples
print(f"CIFAR-100 ({pool.source}): {len(member):,} images, {member.sum():,} of them members")
for kind, one in trained.items():
    right, elsewhere = one.answers.train_accuracy, one.answers.test_accuracy
    print(f"{kind}: right on {right:.1%} of its members, {elsewhere:.1%} of test images")

# %% [markdown]
# A target gives the right label a probability $p$. Its *confidence* $\varphi = \log \frac{p}{1 - p}$
# is what attacks look at: where $p$ is 0.99, 0.999, 0.9999, $\varphi$ is 4.6, 6.9, 9.2. Where members
# and others hardly overlap, one number, a threshold, tells most of them apart.

# %% alt="Confidence of members and others: apart when over-fitted, alike under DP-SGD"
fig, panels = plt.subplots(1, 3, figsize=(11, 2.8), layout="constrained")
for axes, (kind, one) in zip(panels, trained.items(), strict=True):
    phi = one.answers.confidences[0]
    bins = np.linspace(*np.quantile(phi, (0.001, 0.999)), 60)
    axes.hist(phi[member], bins, alpha=0.6, label="members")
    axes.hist(phi[~member], bins, alpha=0.6, label="others")
    axes.set(title=report.TITLES[kind], xlabel="confidence φ in the right label", yticks=[])
panels[0].legend(frameon=False)
plt.show()

# %% [markdown]
# We begin with the first, the over-fitted one.

# %%
target = trained["overfitted"]
phi = target.answers.confidences[0]
by_loss = mia.evaluate(phi.astype(float), member)
print(f"AUC {by_loss.auc:.3f}, balanced accuracy {by_loss.balanced_accuracy:.1%}")

# %% [markdown]
# The AUC is the chance that a member's score is above another image's: 0.5 is guessing. Balanced accuracy
# is the mean of the rates at which members and others are told rightly; the threshold was chosen on other
# images than it is judged on.
#
# ## Why an average says little
#
# Look at the threshold's upper end. An attacker who accuses only where it is sure sets the threshold so
# high that of a hundred, or a thousand, of the others one is accused wrongly. How many members does it
# find? The interval, 95 %, is Clopper and Pearson's, widened as the threshold itself comes from a sample.
# Rates that there are not enough others to count with are left out.

# %%
for rate, point in by_loss.points.items():
    found = point.true_positives
    print(f"wrong about {rate:.2%} of others: finds {found.value:.2%} of members", end=" ")
    print(f"[{found.low:.2%}, {found.high:.2%}]")

# %% [markdown]
# The average is impressive, and the attacker can never be sure: where it accuses one in a hundred of the
# others, it finds hardly more of the members, as one who guesses would. An easy image has a high
# confidence whether the network was trained on it or not, and the easiest are all at the upper end.
#
# ## An image is easy or hard; ask networks that never saw it
#
# So the attacker trains *reference networks* as the target was trained, each on a half of the images of
# its own choice. For each image some references were trained with it, and some without. Here are eight
# images: what references that were trained with the image say of it, what the others say, and what the
# target says.

# %%
trained_on = np.stack([reference.trained_on for reference in target.references])
seen = np.stack([reference.confidences[0] for reference in target.references])
random = np.random.default_rng(1)
chosen = np.concatenate([random.choice(np.flatnonzero(group), 4, False) for group in (member, ~member)])
print(f"{len(seen)} references; each image was seen by {trained_on[:, chosen].sum(axis=0)} of them")

# %% alt="Eight records: confidence of references that saw each, that did not, and of the target"
fig, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
for place, record in enumerate(chosen):
    inside = trained_on[:, record]
    axes.plot(seen[inside, record], np.full(inside.sum(), place + 0.12), "o", color="tab:blue")
    axes.plot(seen[~inside, record], np.full((~inside).sum(), place - 0.12), "o", color="tab:orange")
    axes.plot(phi[record], place, "k|", markersize=18, markeredgewidth=2)
axes.plot([], [], "o", color="tab:blue", label="references that saw it")
axes.plot([], [], "o", color="tab:orange", label="references that did not")
axes.plot([], [], "k|", markersize=12, label="the target")
names = [pool.class_names[labels[record]] + (" (member)" if member[record] else "") for record in chosen]
axes.set(yticks=range(len(chosen)), yticklabels=names, xlabel="confidence φ")
axes.legend(frameon=False, bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# An easy image has a high confidence with all of them; a hard one only with those that know it by
# heart. The likelihood ratio attack (LiRA, Carlini et al. 2022) puts a normal distribution to the blue
# points and one to the orange ones, and compares how likely the target's mark is under each. With so
# few points it takes one variance for all images; BaVarIA (2026) leans on all images as much as an
# image's own points are few. RMIA (2024) compares an image with other images, and BMIA (2025) takes the
# spread from the posterior of a Bayesian network. References are counted as they are trained: of two, one
# was not trained on a given image, which is what papers call one reference.
#
# ## All attacks, on the same images
#
# A fifth of the images the attacker knows to be members or not. The article's attack (*inference model*,
# below) and nothing else learns from them; no attack is judged on them.
#
# *Entropy* is how undecided the answer is, *modified entropy* the same with the label in mind. *Quantile
# regression* (Bertran et al. 2023) learns from test images how confident the target is of images like this
# one that it never saw. *Offline* attacks look only at references that were not trained on the image;
# *fixed variance* is one variance for all images.

# %%
result = mia.run(config)
audits = result.audits.of
audit = audits["overfitted"]
rates = report.rates(audit)
lowest = metrics.floor((~audit.member).sum())
print(f"{len(audit.member):,} images are judged; no rate below {lowest:.3%} can be shown")
print(f"{'attack, references':36}{'AUC':>6}{'balanced':>10}" + "".join(f"{r:>9.2%}" for r in rates))
for name, attack in audit.attacks.items():
    e = attack.evaluation
    found = "".join(f"{e.points[rate].true_positives.value:>9.2%}" for rate in rates)
    print(f"{name:36}{e.auc:6.3f}{e.balanced_accuracy:10.1%}{found}")

# %% tags=["cover"] alt="ROC curves of six attacks on the over-fitted network, both axes logarithmic"
fig, axes = plt.subplots(figsize=(5, 3.8), layout="constrained")
report.plot_roc(axes, audit)
plt.show()

# %% [markdown]
# The last columns are true positive rates at the false positive rates above them. By its average the
# loss is near the best; at the low rates it is worth nothing, and the references are worth their hours.
# Both axes of the picture are logarithmic, as the lower left is where an attacker is sure.
#
# ## Is it worth the trouble?
#
# References cost hours of training; the loss costs nothing. What do they buy? For each number of
# references this is the attack that proved best, so that it looks a little better than it is. Attacks that
# are told some members by name are left out; they come next.

# %%
costs = np.cumsum([0] + [reference.fit.cpu_seconds / 60 for reference in target.references])
for number, _, name, found in report.by_cost(audit, 0.01):
    minutes = f"{costs[number]:.0f} CPU minutes to train, " if number and pool.source == "real" else ""
    print(f"{number} references, {minutes}{name}: finds {found:.1%} while wrong about 1 %")

# %% [markdown]
# ## The article's attack
#
# ML Privacy Meter's attack trains a network on what the target makes of images that the attacker
# *knows* to be members: no reference is needed, but names are. It saw the last layer's gradient,
# outputs, the loss and the label (white-box), the outputs of two layers, or the last outputs and the
# label alone (black-box). Nasr et al. report a balanced accuracy of 75.1, 74.6 and 74.2 %.

# %%
print(f"the loss and a threshold: {audit.attacks['loss'].evaluation.balanced_accuracy:.1%}")
for name, attack in audit.attacks.items():
    if attack.knows_members:
        e = attack.evaluation
        low, high = e.balanced_accuracy_low, e.balanced_accuracy_high
        print(f"{name}: {e.balanced_accuracy:.1%} [{low:.1%}, {high:.1%}]")

# %% [markdown]
# It has to be held against the threshold, which needs no training at all: an inference model that does
# not beat it has not learned what there is to learn. Here it does, by a point on average, and by far where
# the attacker has to be sure. The gradient adds next to nothing to the outputs: what tells is the whole
# answer, of which the loss is one number. On the other two networks, below, it does not beat the loss
# (`make recipe-6` says so): from ten thousand known images it does not learn what little there is.
#
# ## Precision
#
# An accusation is worth what share of the accused are members. That depends on how common members are
# among those whom the attacker looks at; in a balanced test every second one is, in the world hardly
# any. We accuse by BaVarIA, which was chosen before any attack was seen: who picks the best one afterwards
# flatters it.

# %%
best = audit.headline
rate = rates[:2][-1]
print(f"{best}, wrong about {rate:.2%} of others")
for prior in metrics.PRIORS:
    found = audit.attacks[best].evaluation.points[rate].precision(prior)
    print(f"{prior:.0%} are members: precision {found.value:.1%} [{found.low:.1%}, {found.high:.1%}]")

# %% [markdown]
# ## Who is exposed?
#
# Each pair of references is an attack of its own, with a seed of its own. These members are exposed
# most, all pairs together; the number says how many of the pairs have the image among their hundred
# surest.

# %% alt="Eight members found by the attacks, with how many references give each away"
fig, row = plt.subplots(1, 8, figsize=(9, 1.6), layout="constrained")
pictures = report.most_exposed_pictures(result, audit, 8)
for axes, (image, name, found) in zip(row, pictures, strict=True):
    axes.imshow(image, interpolation="nearest")
    axes.set_title(f"{name}\n{found} of {audit.exposed.seeds}", fontsize=8)
    axes.axis("off")
plt.show()

# %%
print(report.exposure_line(audit))
classes = report.by_class(result, audit)
for name, (value, low, high) in [*classes[:3], *classes[-3:]]:
    print(f"{name}: AUC {value:.3f} [{low:.3f}, {high:.3f}]")

# %% [markdown]
# The eight above are hard images: a network that was not shown them would not guess their label. Memory
# is for exceptions. The intervals of single classes are wide; which class is worst is less sure than it
# looks.
#
# ## From an attack to a bound
#
# If training were $\varepsilon$-differentially private, no one could guess the tosses of the coin that
# made members better than with the chance $e^\varepsilon / (1 + e^\varepsilon)$ each, but for what
# $\delta$ allows (Steinke, Nasr and Jagielski 2023). Who is right more often shows that $\varepsilon$ is
# larger. The attack, and how many images it guesses, were chosen on one half of the images; its guesses
# about the other half are what counts.

# %%
print(report.epsilon_line(audit))

# %% [markdown]
# ## What helps?
#
# The same attacks on the other two networks, each with references that were trained as it was. They have
# fewer; so all three are compared by what as many references show.

# %%
name = report.common_attack(audits.values())
print(
    f"{name:16}{'members':>9}{'test':>8}{'AUC':>7}" + "".join(f"{rate:>9.1%}" for rate in rates[:2]), end=""
)
print(f"{'epsilon at least':>18}{'stated':>8}")
for kind, one in audits.items():
    e = one.attacks[name].evaluation
    print(f"{report.TITLES[kind]:16}{one.train_accuracy:9.1%}{one.test_accuracy:8.1%}{e.auc:7.3f}", end="")
    print("".join(f"{e.points[rate].true_positives.value:9.2%}" for rate in rates[:2]), end="")
    print(f"{one.bound.epsilon:18.2f}{one.stated_epsilon or 'none':>8}")

# %% alt="ROC curves on the regularised network, and on the one by DP-SGD, close to guessing"
fig, panels = plt.subplots(1, 2, figsize=(8.2, 3.4), layout="constrained")
for axes, kind in zip(panels, ("regularised", "private"), strict=True):
    report.plot_roc(axes, audits[kind])
plt.show()

# %% [markdown]
# Moving and mirroring the images, and stopping at the best epoch, take nothing from what the network is
# worth on test images, and most from what an attacker finds: the cheapest defence there is. Most is not
# all; some images are still found surely, as the bound shows. Under DP-SGD no attack finds anything to
# speak of, at the price of three quarters of the accuracy: an honest price for training this network from
# nothing on so few images ([recipe 5](05_dp_sgd.ipynb) shows how to pay less).
#
# The bound of the private network has to be below its stated epsilon, but for the 5 % that a bound may
# err; it is far below: an attacker who may not plant images of its own, and sees the last network only, is
# weaker than the one that DP-SGD protects from.
#
# ## A network of your own
#
# `audit` takes any PyTorch classifier. A bound needs members that a coin chose, and others to compare
# with. Here is one that learns noise by heart, and the same before it was trained.

# %%
random = np.random.default_rng(0)
inputs = random.normal(size=(900, 20)).astype(np.float32)
answers = random.integers(0, 4, 900)
tossed = random.random(800) < 0.5
members, others = ((inputs[:800][side], answers[:800][side]) for side in (tossed, ~tossed))
population = inputs[800:], answers[800:]
torch.manual_seed(0)
network = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 4))
how = mia.Training(epochs=40, batch=16, weight_decay=0.0)

# %%
own = mia.Config(references=4, mirror=False)
for state in ("untrained", "trained"):
    if state == "trained":
        fitting.fit(network, members, how, seed=0)
    found = mia.audit(network, members, others, own, how=how, population=population, fair_tosses=True)
    e = found.attacks["BaVarIA, 4"].evaluation
    right = training.accuracy(network, *members)
    print(f"{state}, {right:.0%} right: AUC {e.auc:.2f} [{e.auc_low:.2f}, {e.auc_high:.2f}]", end=", ")
    print(f"epsilon at least {found.bound.epsilon:.2f}")

# %% [markdown]
# ## What this does not show
#
# - An attack that finds nothing proves nothing: a better one may come. Only differential privacy bounds
#   all of them.
# - Members and others are drawn alike here, and the attacker's images, too. Where they differ an attack
#   may tell *kinds* of images apart, not members, and look better than it is.
# - The references know how the target was trained. One that knows less finds less.
# - The papers' figures (LiRA 27.6 % at 0.1 % with 256 references, BMIA 35.75 % at 1 % with one) are of
#   wider networks that are right on more test images, and of many more references.
# - The intervals are of this network. Another training, another network: the nine that were trained like
#   the over-fitted one are right about 97.4 to 99.9 % of their members.
# - No attack is the best everywhere: BaVarIA, which was to stand for all before any was seen, is behind
#   LiRA on the first network, and behind RMIA on the second.
#
# **Exercise.** The attacker knows the label of each image. Take it away: let the threshold look at the
# target's confidence in its own guess (`from recipes.membership_inference import attacks`, and
# `attacks.confidences(logits, logits.argmax(1))`). How much is left of the AUC? And what, if the target
# answers with its guess alone, and no probability?
