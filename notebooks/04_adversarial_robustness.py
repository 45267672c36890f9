# %% [markdown]
# # 4. Adversarial robustness
#
# **How little must an image change before a network takes it for something else?**
#
# A network that reads 99 % of all digits can be led to misread nearly every one of them by a change that
# nobody would notice. How small a change is enough is a property that can be measured; but every attack
# gives an *upper* bound only, as a better one may get by with less. Much of this field's history is about
# defences that were no more than bad attacks.
#
# You will
#
# - walk a digit over a boundary by hand;
# - measure a network by many attacks at once, and set analysis by synthesis (ABS) beside a CNN;
# - meet a defence whose own evaluation says 98 % and a better one 0 %;
# - let a checklist look for the signs of such an evaluation;
# - see defences that hold, between what attacks reach and what can be *proved*.
#
# It takes about three minutes.

# %% tags=["parameters"]
DATA = "auto"  # "real", "embedded" (stand-ins drawn here), or "auto": real if it can be had

# %%
import matplotlib.pyplot as plt
import torch

from recipes import adversarial_robustness as ar
from recipes.adversarial_robustness import attacks, bounds, checklist, zoo
from recipes.data import load

torch.set_num_threads(1)
plt.rcParams.update({"figure.dpi": 55, "image.interpolation": "nearest"})
plt.show()  # nothing yet; from here on figures are shown as pictures
data = load("mnist", DATA)
images, labels = zoo.tensors(data.test)
print(f"{data.name} ({data.source}), {len(images):,} test images")

# %% [markdown]
# ## One gradient step, and another
#
# The first network has one convolution, max pooling and one dense layer: 10,210 weights, and hardly
# anything that is not linear. Training follows the gradient of the loss by the *weights*, downhill. An
# attack holds the weights fast and follows the gradient by the *pixels*: towards a class of the
# attacker's choice, one twentieth of the way from black to white a step, until the network believes it.

# %%
scratch = ar.run(ar.Config(data=DATA, part="scratch"))
print(ar.describe(scratch))
ar.plot(scratch)

# %% [markdown]
# All hundred digits were led to a class drawn at random. To us nothing has happened: the change looks like
# dirt. The network has learned a boundary, but not ours.
#
# ## What is small?
#
# Three measures of a change are in use. **L2** is its Euclidean length, **Linf** the largest change of a
# pixel, **L0** the number of changed pixels. Here is one digit and the chapter's CNN (Tsukerman 2019), which
# reads 99.3 % of the test images. *FGSM* takes one step of $\varepsilon$ along the gradient's sign; *PGD*
# takes many small ones and stays in the ball of $\varepsilon$.

# %%
cnn = zoo.load("cnn")
few, truth = images[:100], labels[:100]
for epsilon in (0.05, 0.1, 0.2):
    one = attacks.fgsm(cnn, few, truth, epsilon)
    many = attacks.pgd(cnn, few, truth, epsilon, steps=40)
    right = [1 - attacks.fooled(cnn, found, truth).float().mean() for found in (one, many)]
    print(f"epsilon {epsilon:.2f}: {right[0]:4.0%} right after one step, {right[1]:4.0%} after 40")

# %%
digit, answer = images[:1], labels[:1]
shown = [digit] + [attacks.pgd(cnn, digit, answer, e, steps=40) for e in (0.05, 0.1, 0.2)]
figure, axes = plt.subplots(2, 4, figsize=(8, 4.2), layout="constrained")
for column, picture in enumerate(shown):
    confidence = cnn(picture).softmax(1)[0]
    axes[0][column].imshow(picture[0, 0], cmap="gray", vmin=0, vmax=1)
    axes[0][column].set_title(f"{confidence.argmax()} ({confidence.max():.2f})")
    axes[1][column].imshow((picture - digit)[0, 0], cmap="RdBu", vmin=-0.3, vmax=0.3)
for each in axes.flat:
    each.set(xticks=[], yticks=[])
figure.suptitle("The CNN’s answer (above) and what PGD added (below), epsilon 0, 0.05, 0.1, 0.2")
plt.show()

# %% [markdown]
# ### Why libraries disagree
#
# Foolbox, CleverHans and this recipe give the same FGSM to $10^{-5}$ (the tests hold them together), as
# long as they are given the same thing. Many Keras models end in a softmax, and CleverHans takes what they
# give for logits. Where the network is sure, the gradient points the same way; where it believes in another
# class already, it all but vanishes, and an attack of many steps has nothing to follow.

# %%
taken_for_logits = torch.nn.Sequential(cnn, torch.nn.Softmax(1)).eval()
for name, seen in (("as it is", few), ("beyond the boundary", attacks.pgd(cnn, few, truth, 0.2))):
    lengths = [
        attacks.lengths(attacks.gradient(network, seen, truth)[0]).median()
        for network in (cnn, taken_for_logits)
    ]
    print(f"{name:20} gradient of logits {lengths[0]:.1e}, of probabilities {lengths[1]:.1e}")

# %% [markdown]
# ## Distances, and a network that draws
#
# An attack that works at some $\varepsilon$ says little. The recipe looks for the *nearest* adversarial of
# each image, by every attack it has, and keeps the least. What is reported was tried anew: inside [0, 1],
# misclassified, also as a picture of 8 bits a pixel.
#
# *Analysis by synthesis* (Schott et al. 2019) asks for each class which image it could have drawn that looks
# most like this one: ten small autoencoders, a search among 2,000 samples, then gradient descent on eight
# numbers. The class that draws it best wins. An attacker has its exact gradient: at the best latent it is
# twice the difference between the image and the drawing.

# %%
abs_ = zoo.load("abs")
latents = abs_.search(images[:4])
drawn, believed = abs_.draw(latents), abs_.logits_at(images[:4], latents)
figure, axes = plt.subplots(4, 11, figsize=(10, 4), layout="constrained")
for row in range(4):
    pictures = [images[row, 0], *drawn[row]]
    for column, picture in enumerate(pictures):
        best = column - 1 == believed[row].argmax()
        axes[row][column].imshow(picture, cmap="gray", vmin=0, vmax=1)
        axes[row][column].set(xticks=[], yticks=[])
        if row == 0:
            axes[row][column].set_title("image" if column == 0 else f"as a {column - 1}")
        axes[row][column].spines[:].set(color="tab:red" if best else "white", linewidth=3)
plt.show()

# %% [markdown]
# Now the table of the ABS paper, on eight images and with the quick attacks: medians of the nearest
# adversarials, and the accuracy that is left at L2 1.5, Linf 0.3 and 12 pixels. The lines below each
# are the paper's.

# %%
table = ar.run(ar.Config(data=DATA, part="table", images=8))
print(ar.describe(table))

# %%
ar.plot(table)

# %% [markdown]
# What fools the CNN looks like dirt. What fools ABS looks like the other digit: the changes follow its
# strokes. That is what robustness would look like, and the distances say so in L2. In Linf, ABS is hardly
# better than the nearest neighbour: no network is robust in general, only against something.
#
# ## A defence that only looks like one
#
# The third article trains a CNN, makes FGSM examples of all training images at $\varepsilon = 0.3$,
# adds them, trains on, and reports how well the result does on FGSM. Here it is, evaluated better from
# line to line.

# %%
stale = ar.run(ar.Config(data=DATA, part="stale"))
print(ar.describe(stale))

# %%
ar.plot(stale)

# %% [markdown]
# On test images made as its training examples were, against the *old* network, it is right nearly always.
# They are stale: the network has moved and left them behind. Made anew against the network as it is,
# the same attack breaks most images, and forty steps break them all. It has learned to know one kind of
# dirt.

# %% [markdown]
# ## A checklist
#
# Such signs can be looked for by machine (Athalye et al. 2018; Carlini et al. 2019): does a longer or a
# blind attack beat the one on which the claim rests? Does everything break where everything is allowed?
# Do gradients vanish?


# %%
def claimed(network, seen, truth):
    return attacks.fgsm(network, seen, truth, 0.3)


defended, surrogate = zoo.load("stale"), zoo.load("undefended")
for check in checklist.run(defended, images[:200], labels[:200], claimed, surrogate):
    print(f"{'passed' if check.passed else 'FLAG  '}  {check.name}: {check.measured}")

# %% [markdown]
# ## Defences that hold
#
# *Adversarial training* as it is meant makes its examples anew for every batch, against the network as it is:
# by one step from a random start (Wong et al. 2020), or by seven (Madry et al. 2018). *Interval training*
# (Gowal et al. 2018) trains on a bound instead. A box around the image is sent through the network layer by
# layer: a linear layer maps centre $c$ and radius $r$ to $Wc + b$ and $|W| r$. If at the end the label's
# logit is above all others for the whole box, *no* attack can succeed, known or unknown.

# %%
certified = zoo.load("certified")
for epsilon in (0.1, 0.2, 0.3, 0.4):
    boxes = bounds.margins(certified, digit, answer, epsilon)
    worst = boxes.scatter(1, answer[:, None], -torch.inf).max()
    print(f"epsilon {epsilon}: another class is ahead by at most {worst:+.2f}")

# %%
holds = ar.run(ar.Config(data=DATA, part="defences", attacked=100))
print(ar.describe(holds))

# %%
ar.plot(holds)

# %% [markdown]
# The picture has both sides. The solid lines are what attacks leave: the true robust accuracy is *at
# most* that. The dashed line is proved, image by image: it is *at least* that. For the interval network
# they nearly meet, and nobody has to believe in the attack. For the others nothing is proved at 0.3:
# the bounds have grown too large on the way, and the solid line is only as good as the attack.

# %%
for name in ("pgd", "certified"):
    about = zoo.about(name)
    minutes, clean = int(about["cpu_seconds"]) / 60, float(about["test_accuracy"])
    print(f"{name}: trained in {minutes:.0f} CPU minutes, {clean:.2%} clean")

# %% [markdown]
# ## What to remember
#
# - An accuracy under attack belongs to the attack as much as to the network. State both, and the number
#   of images; a stronger attack may come. `--strong` adds AutoAttack and PGD with 100 steps and ten
#   restarts, and the result card has those figures.
# - Only a proof holds against attacks that nobody knows yet; and it holds for one network, one norm,
#   one radius, and arithmetic without rounding.
# - Robust in Linf is not robust in L2, and neither is robust against a turned digit.
# - MNIST is easy: at 0.3, thresholding the pixels would go a long way. On photographs the same methods
#   leave far less.
#
# **Exercise.** Put the pixels through a threshold at 0.5 before the CNN, as a `torch.nn.Module`. What
# does PGD say of it, what does the checklist, and what does the boundary attack (`libraries.boundary`)?
# Then write an attack that knows of the threshold.
