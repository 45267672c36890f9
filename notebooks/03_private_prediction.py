# %% [markdown]
# # 3. Private prediction
#
# **Can a server classify images that it cannot see, with a network that its client cannot see?**
#
# A hospital has images, a company has a trained network, and neither wants to show what it has. Both
# can be split into shares, each of which is noise; and a network is sums, products and comparisons, all
# of which can be done on shares. Client and server together run the network; the client gets the label.
# A third, the *provider*, deals random numbers beforehand, and never hears of images or weights.
#
# You will
#
# - see what each of the three gets to see, and test whether it is noise;
# - follow a picture through a linear layer, a cut of its decimals, and ReLU;
# - classify all 10,000 test images in three processes, and hold each label against the network's own;
# - count rounds and bytes, and find out what they mean on a slow network;
# - break it: let the provider take sides, and the numbers grow too large;
# - do the same through a PySyft datasite, where approval takes the place of cryptography.
#
# It takes a minute or two. The [secret-sharing calculator](02_secret_sharing.ipynb) explains shares and
# why products need random numbers dealt beforehand; here the modulus is $2^{64}$.

# %% tags=["parameters"]
DATA = "auto"  # "real", "embedded" (stand-ins drawn here), or "auto": real if it can be had

# %%
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import chisquare

from recipes import private_prediction as pp
from recipes.data import load, scale
from recipes.private_prediction import costs, datasite
from recipes.private_prediction.roles import CLIENT, PROVIDER, SERVER

# %% [markdown]
# ## The network and the images
#
# The network is the one that the source chapter uses: 784 pixels, 500 hidden units with ReLU, 10
# digits. It was trained by this recipe (`--train`) and comes with it; any network of fully connected
# layers will do, from a safetensors file or a PyTorch state dict.

# %%
data = load("mnist", DATA)
images = scale(data.test.images).reshape(-1, 784)
network = pp.read("models/mnist_mlp.safetensors")
clear = pp.logits(network, images)
print(f"{data.name} ({data.source}), layers {[layer.weight.shape for layer in network]}")
print(f"in the clear: {np.mean(clear.argmax(axis=1) == data.test.labels):.2%} of {len(images):,} right")

# %% [markdown]
# ## Eight images, and what each of the three sees
#
# `predict(network, images)` is all that you need. `rehearse` does the same and keeps what everybody
# received; all three roles are threads of this process here, and processes below. Masks come from
# the operating system; only for this page, so that it comes out the same whenever it is built, a seeded
# generator takes its place.

# %%
repeatable = np.random.default_rng(3).bytes  # for this page: never do this with real secrets
few = images[:8]
rehearsal = pp.rehearse(network, few, draw=repeatable)
print("labels, computed on shares:", rehearsal.answers.revealed)
print("labels, in the clear:      ", clear[:8].argmax(axis=1))

# %% [markdown]
# The client adds a random mask to every pixel, modulo $2^{40}$, and sends the sum. That is the only
# thing the server ever sees of an image: the second row. Nor does the client see the weights: the third
# row is the part of the first layer's weights that eight hidden units have for each pixel, as the client
# gets it.

# %%
seen = pp.images_seen_by(rehearsal, provider_helps=False)
weights = pp.weights_seen_by(rehearsal, provider_helps=False)[0].weight
rows = {"the client's": few, "as the server\nsees them": seen, "weights as the\nclient sees them": weights}
_, axes = plt.subplots(3, 8, figsize=(9, 3.6), layout="constrained")
for row, (title, pictures) in zip(axes, rows.items(), strict=True):
    for axis, picture in zip(row, pictures, strict=False):
        axis.imshow(picture.reshape(28, 28), cmap="gray")
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(title, rotation=0, ha="right", va="center")

# %% [markdown]
# Noise that looks random need not be. If every message says nothing, its bytes are uniform *whatever
# the secrets are*. So test the extreme: all images black, or all white, and 40 sessions of each. Random
# bytes give p-values anywhere between 0 and 1; the last line shows what the test says of the same
# images when they are not masked.


# %%
def p_value(messages):
    content = np.frombuffer(b"".join(messages), np.uint8)
    return chisquare(np.bincount(content, minlength=256)).pvalue


for name, picture in {"black": np.zeros((8, 784)), "white": np.ones((8, 784))}.items():
    sessions = [pp.rehearse(network, picture, draw=repeatable) for _ in range(40)]
    for role, other in ((SERVER, CLIENT), (CLIENT, SERVER)):
        letters = [letter for s in sessions for letter in s.received[role][1:]]  # the first tells sizes
        heard = [m for sender, m in letters if sender == other and len(m) > 200]
        print(f"{name}: {len(heard)} messages from {other} to {role}, p = {p_value(heard):.2f}")
print(f"not masked: p = {p_value([np.ones(784).tobytes()]):.2g}")

# %% [markdown]
# What the provider hears is short enough to be printed: the sizes and number formats of the layers, what the
# client wants to know, and how many images there are.

# %%
for sender, message in rehearsal.received[PROVIDER]:
    said = message.decode() if message[:1] == b"{" else f"{int.from_bytes(message, 'little')} images"
    print(f"from the {sender}: {said[:76]}{' …' if len(said) > 76 else ''}")

# %% [markdown]
# ## How a layer is computed
#
# Call a number $x$ *masked* if both know $x + r$, and each has a share of the mask $r$. From a masked
# input and masked weights $w + s$, both computed once and for all, each party gets its share of
#
# $$x w = (x + r)\,w - r\,(w + s) + r s ,$$
#
# because it has shares of $w$ and of $r$, and the provider has dealt shares of $r s$. No message is
# needed, and all but the first product can be worked out before the image is known. To mask the result
# anew, each party tells the other its share plus its share of a fresh mask: one round.
#
# Decimals are whole numbers: $x$ stands for $x \cdot 2^{16}$. After a product there are 32 bits after the
# point, and 16 have to go. Each party simply cuts its own share. What is lost is the carry between the
# two shares, which makes the result one of the two neighbours of the quotient; but *modulo $2^{64}$ the
# cut is wrong* whenever the sum of the shares wraps around, and then by $2^{48}$. Many a system carries
# on modulo $2^{64}$ and hopes. Here it is modulo $2^{48}$, where nothing can go wrong, and ReLU takes
# the numbers back to $2^{64}$. Let the numbers grow until the usual way fails:

# %%
bits = np.arange(44, 63)
generator = np.random.default_rng(5)
tries = [pp.truncation_failures(1 << int(b), 16, 200_000, generator) for b in bits]
_, axis = plt.subplots(figsize=(6.5, 3), layout="constrained")
axis.semilogy(bits, [t.expected for t in tries], "k--", label=r"expected, $|x| / 2^{64}$")
axis.semilogy(bits, [t.in_the_ring or np.nan for t in tries], "o", label="cut modulo $2^{64}$")
axis.set(xlabel="bits of the number that is cut", ylabel="how often it fails", ylim=(1e-6, 1))
axis.set_xticks(bits[::3])
axis.legend(frameon=False)
failures = [round(t.in_the_smaller_ring * 200_000) for t in tries]
print(f"failures of the way that is used here, in 200,000 tries each: {failures}")

# %% [markdown]
# (Where no circle is drawn there was no failure.) And how large may numbers get? The server bounds
# them before the session, by interval arithmetic over its weights: whatever image with pixels in
# $[0, 1]$ the client sends, no number overflows. What it announces is that bound in whole bytes:

# %%
for number, format in enumerate(rehearsal.terms.scales, 1):
    print(
        f"layer {number}: {format.inputs} -> {format.outputs}, {format.word_bits} bits a number, "
        f"{format.fraction_bits} of them after the point"
    )

# %% [markdown]
# ## Is it negative?
#
# ReLU and argmax compare. Both parties know $x + r$; the provider knows $r$. Whether $x < 0$ depends on
# whether the one, without its top bit, is less than the other: a public number against a secret one.
# Two protocols do that.
#
# *Truth tables*: for every piece of 4 bits the provider has dealt shares of the answers to all 16
# questions; both look their piece up, open the answers under fresh masks (one round), and combine them.
# *Function secret sharing*: each party has a key, walks with it down a tree of AES blocks as the bits
# of the public number say, and arrives at a share of the answer: no round, but long keys and much AES.
#
# The table shows what one image costs, by the formulas; the tests find the same numbers at the sockets.


# %%
def row(name, steps):
    rounds = sum(step.rounds for step in steps.values())
    online, offline = (sum(getattr(step, kind) for step in steps.values()) for kind in ("online", "offline"))
    print(f"{name:<26}{rounds:>8}{online:>12,}{offline:>12,}")


print(f"{'one image':<26}{'rounds':>8}{'bytes':>12}{'dealt':>12}")
for comparison in ("tables", "fss"):
    row(comparison, costs.query(rehearsal.terms.scales, 1, comparison, "label"))
row("tables, logits revealed", costs.query(rehearsal.terms.scales, 1, "tables", "logits"))

# %% [markdown]
# ## All test images, in three processes
#
# Now client, server and provider are processes that talk over TCP, and every one of the 10,000 images is
# counted. A second session reveals the logits, to see how far they are from the network's own; the first
# reveals labels only.

# %%
result = pp.run(pp.Config(data=DATA, images=10_000))
print(f"{result.images:,} images ({result.data})")
print(f"right, on shares:     {result.accuracy:.2%}")
print(f"right, in the clear:  {result.plaintext_accuracy:.2%}")
print(f"the same label:       {result.agreement:,}")
print(f"other labels:         {list(result.disagreements)}")
print(f"every logit within 0.001 of the network's own: {result.max_logit_error < 0.001}")

# %% [markdown]
# ### What it costs
#
# Each step with its messages, as counted at the sockets. The masked weights are sent once a session; all
# else is for 10 queries of 1,000 images. A *round* is a message that must arrive before the next can be
# sent; both directions at once count as one.

# %%
print(f"{'':<10}{'rounds':>8}{'from client':>14}{'from server':>14}{'from provider':>16}   bytes")
for name, step in result.steps.items():
    sent = [step[f"{role}_bytes"] for role in (CLIENT, SERVER, PROVIDER)]
    print(f"{name:<10}{step['rounds']:>8}{sent[0]:>14,}{sent[1]:>14,}{sent[2]:>16,}")
each = (result.bytes_online + result.bytes_offline) / result.images
print(f"\nan image: {result.bytes_online / result.images:,.0f} bytes online, {each:,.0f} with the provider's")

# %% [markdown]
# On one machine a message takes no time; between machines it does, and rounds are what hurts. How long
# do the messages alone of one image take, if they travel at 100 megabits a second, and half of the round
# trip each? CrypTen's protocol for the same network and label takes 69 rounds and 6.6 megabytes, counted on
# version 0.4.1; much of that is the weights, which it opens for every query.

# %%
peer = {"all": costs.Cost(rounds=69, client=3_310_000, server=3_310_000)}
print(f"{'round trip':<14}{'fss':>10}{'tables':>10}{'CrypTen':>10}")
for milliseconds in (0.5, 10, 50, 200):
    steps = [costs.query(rehearsal.terms.scales, 1, name, "label") for name in ("fss", "tables")]
    seconds = [costs.projected(s, 0, milliseconds / 1000, 100e6 / 8) for s in (*steps, peer)]
    print(f"{milliseconds:>7} ms    {seconds[0]:>8.3f} s{seconds[1]:>8.3f} s{seconds[2]:>8.2f} s")

# %% [markdown]
# `--imitate` holds messages up for as long, and the measured time confirms the projection (in the result
# card). So: function secret sharing for one image over a long line, tables for everything else.
#
# ## A provider that takes sides
#
# All rests on the provider's keeping its random numbers to itself. If it tells the server what it dealt,
# the masks come off, and the second row above becomes the first:

# %%
revealed = pp.images_seen_by(rehearsal, provider_helps=True)
_, axes = plt.subplots(1, 8, figsize=(9, 1.3), layout="constrained")
for axis, picture in zip(axes, revealed, strict=True):
    axis.imshow(picture.reshape(28, 28), cmap="gray")
    axis.set(xticks=[], yticks=[])
stolen = pp.weights_seen_by(rehearsal, provider_helps=True)
print(f"largest error of a pixel:  {np.abs(revealed - few).max():.1e}")
off = [np.abs(a.weight - b.weight).max() for a, b in zip(stolen, network, strict=True)]
print(f"largest error of a weight: {max(off):.1e}")

# %% [markdown]
# With the client it would know all weights. A provider must be somebody who gains nothing by that: that
# is a stronger assumption than none, and a much weaker one than trusting the other party.
#
# ## The same through PySyft
#
# The chapter did this with PySyft 0.2, which no longer exists: today's PySyft shares no secrets. It
# offers *remote execution under approval* instead. The owner of a network puts it behind a datasite,
# with a mock of the same shape for everybody to try; the client uploads its images and a function, the
# owner reads both and approves, and the client gets the result.

# %%
report = datasite.predict([(layer.weight, layer.bias) for layer in network], images[:1000])
same = int(np.sum(report.labels == clear[:1000].argmax(axis=1)))
print(f"labels as in the clear, once approved:   {same:,} of 1,000")
print(f"refused before approval:                 {report.refused_before_approval}")
print(f"the owner could read the images:         {report.owner_read_the_images}")
print(f"answered again, though single use:       {report.answered_again}")
print(f"answered other images after approval:    {report.answered_other_images}")

# %% [markdown]
# | | on shares | at a datasite |
# | --- | --- | --- |
# | the images are seen by | the client | the client **and the owner of the network** |
# | the weights are seen by | the server | the owner of the network |
# | the labels are seen by | the client | the client, and whoever runs the datasite |
# | who must be trusted | a provider that takes no side | the owner, with the images |
# | what the owner controls | how much is revealed | which function runs on which object, until approved |
# | work beside that in the clear | 15 kB and 10 rounds an image | none |
#
# The two answer different questions: a datasite lets an owner decide who may compute what; shares let
# two compute what neither may see. In version 0.9.5 an approval is also weaker than it looks: the function
# ran again although it said *single use*, and ran on images that the owner had not seen.
#
# ## What this does not show
#
# - **All must follow the protocol.** A server that sends other numbers than it should changes the label,
#   and nobody notices; with care it can learn something from that. Codes as in
#   [recipe 2](02_secret_sharing.ipynb) would catch it, at about twice the cost.
# - **The answers themselves tell something.** Whoever may ask often enough can rebuild a network from
#   its labels, and more easily from its logits; and find out who was in its training data
#   (recipe 6). Nothing here limits the number of questions.
# - **Sizes are public**: layers, number formats (which bound the weights a little), numbers of images.
# - **Layers are fully connected** with ReLU between them. Convolutions are products too, but are not here.
#
# ## Exercise
#
# 1. Predict with `fraction_bits=6` (a setting of `rehearse` and of `Config`). How many of the first 1,000
#    labels change? How large is the largest logit error, and why does it fall by half with every bit?
# 2. A round trip of 200 ms and one image: what would be left of the time if *only* the input, the opening
#    of the hidden layer and the label had to be sent? Which rounds could a protocol save, then?
# 3. Train a network of your own in PyTorch, save its `state_dict()`, and run
#    `python -m recipes.private_prediction --model FILE.pt`. If you normalised the images, say `--mean`
#    and `--std`.
