# %% [markdown]
# # 3. Private prediction
#
# **Can a server classify images that it cannot see, with a network that its client cannot see?**
#
# A hospital has images, a company has a trained network, and neither wants to show what it has. Both
# can be split into shares, each of which is noise; and a network is sums, products and comparisons, all
# of which can be done on shares. Client and server together run the network; the client gets the label.
# A third, the *provider*, deals random numbers beforehand, and is never sent an image or a weight.
#
# You will
#
# - see what each of the three gets to see, and test whether it is noise;
# - see how a linear layer, rounding and a comparison are computed, and how rounding can betray weights;
# - classify all 10,000 test images in three processes, and hold each label against the network's own;
# - count rounds and bytes, and find out what they mean on a slow network;
# - break it: let the provider take sides;
# - do the same through a PySyft datasite, where approval takes the place of cryptography.
#
# It takes a minute or two. The [secret-sharing calculator](02_secret_sharing.ipynb) explains shares and
# why products need random numbers dealt beforehand; here the modulus is $2^{64}$.

# %% tags=["parameters"]
DATA = "auto"  # "real", "embedded" (stand-ins drawn here), or "auto": real if it can be had
IMAGES = 10_000  # that are classified by three processes

# %%
import textwrap

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
# The network has the shape of the one in the book chapter where this recipe starts (Tsukerman 2019): 784
# pixels, 500 hidden units with ReLU, 10 digits. Its weights were trained by this recipe (`--train`), and
# come with it. Any network of fully connected layers with ReLU between them will do, from a PyTorch state
# dict or a safetensors file.

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
# `pp.predict(network, images)` plays all three roles in this process: right for trying out, and private
# from nobody. `rehearse` does the same, and keeps what everybody received. (Below they are processes.) The
# provider draws seeds from the operating system, and AES makes masks of them; only for this page, so that
# it comes out the same whenever it is built, a seeded generator takes its place.

# %%
repeatable = np.random.default_rng(3).bytes  # for this page: never do this with real secrets
few = images[:8]
rehearsal = pp.rehearse(network, few, draw=repeatable)
print("labels, computed on shares:", rehearsal.answers.revealed)
print("labels, in the clear:      ", clear[:8].argmax(axis=1))

# %% [markdown]
# Numbers are whole, modulo a power of two; a pixel $x$ stands as $x \cdot 2^{16}$. The client adds a
# random mask to every pixel, modulo $2^{40}$, and sends the sums: the second row, where the server would
# like to see the first. Nor does the client see weights: the fourth row is what it gets of the third,
# the weights between the pixels and eight hidden units. Each picture is scaled to its own range of greys.

# %% tags=["cover"] alt="Digits and weights, each above the noise that the other side sees of them"
seen = pp.images_seen_by(rehearsal, provider_helps=False)
weights = pp.weights_seen_by(rehearsal, provider_helps=False)[0].weight
rows = {"images": few, "… as the server\nsees them": seen}
rows |= {"weights": network[0].weight, "… as the client\nsees them": weights}
_, axes = plt.subplots(4, 8, figsize=(9, 4.8), layout="constrained")
for row, (title, pictures) in zip(axes, rows.items(), strict=True):
    for axis, picture in zip(row, pictures, strict=False):
        axis.imshow(picture.reshape(28, 28), cmap="gray")
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(title, rotation=0, ha="right", va="center")

# %% [markdown]
# All else that either receives is masked as well. That every message is a number plus a mask that is used
# once *proves* that it says nothing; a test can only find that something is wrong. Try: take all images
# black, or all white, and 40 sessions of each. If messages say nothing, their bytes are uniform whatever
# the images are, and the test gives p-values anywhere between 0 and 1. (The recipe's own tests do this for
# every message, other weights, and what the messages of both sides add up to. Here those below 200 bytes
# are left out.) The last line is a white image that is not masked.


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
print(f"not masked: p = {p_value([(np.ones(784) * 2**16).astype(np.uint64).tobytes()]):.2g}")

# %% [markdown]
# What the provider hears is short enough to be printed: sizes and number formats of the layers, the range
# of the pixels, what the client wants to know, and how many images there are; 0 ends the session.

# %%
for sender, message in rehearsal.received[PROVIDER]:
    said = message.decode() if message[:1] == b"{" else f"{int.from_bytes(message, 'little')} images"
    print(textwrap.fill(f"from the {sender}: {said}", 100, subsequent_indent="    "))

# %% [markdown]
# ## How a layer is computed
#
# Call a number $x$ *masked* by $r$ if both know $x + r$, and each has a share of $r$: a summand of it.
# The input $x$ is masked by some $r$, once a query, the weights $w$ by some $s$, once a session. Then
# each party gets its share of
#
# $$x w = (x + r)\,w - r\,(w + s) + r s ,$$
#
# because it has shares of $w$ and of $r$, and the provider has dealt shares of $r s$. No message is
# needed, and all but the first product can be worked out before the image is known. To mask the result
# anew, each party tells the other its share plus its share of a fresh mask: one round.
#
# ## How decimals are rounded
#
# After a product there are 32 bits after the point, and 16 have to go. The usual way takes no message:
# one party cuts its share, the other the negative of its share, and what is lost is the carry between the
# two. CrypTen does so with two parties. It has two faults. It fails with probability $|x| / 2^{64}$, and
# then by $2^{48}$. Share a number 200,000 times, cut it, and count:

# %% alt="How often cutting shares fails, doubling with each bit, as expected"
bits = np.arange(38, 63)
generator = np.random.default_rng(5)
tries = [pp.cut_shares(1 << int(b), 16, 200_000, generator) for b in bits]
_, axis = plt.subplots(figsize=(6.5, 3), layout="constrained")
axis.semilogy(bits, [t.expected for t in tries], "k--", label=r"expected, $|x| / 2^{64}$")
axis.semilogy(bits, [t.failures or np.nan for t in tries], "o", label="counted (no circle: never)")
axis.axvline(38, color="grey", lw=1)
axis.text(38.3, 0.02, "largest\nnumber\nin layer 1", color="grey")
axis.legend(frameon=False, loc="lower right")
axis.set_xticks(bits[::3])
labels = {"xlabel": "bits of the number that is cut", "ylabel": "how often it fails"}
_ = axis.set(**labels, ylim=(1e-8, 1))

# %% [markdown]
# The other fault is worse. Where the cut does not fail, it gives one of the two neighbours of the
# quotient, and *which* of them depends on the shares. So a client who asks for the same image again and
# again gets logits that differ a little, and can hold them against its own shares, which it knows. How
# strongly the two go together tells what was cut off, one weight at a time, although every single message
# is uniform:

# %%
for tail in (0.1, 0.25, 0.5, 0.9):
    number = round((5 + tail) * 2**16)
    leak = pp.cut_shares(number, 16, 100_000, np.random.default_rng(6)).correlation
    print(f"{5 + tail}: correlation of the rounded number with one's own share {leak:+.2f}")

# %% [markdown]
# Each hidden unit moves the logits by its own weight, so many questions tell the weights apart. Numbers are
# therefore rounded exactly here: the carry is computed on shares, together with the sign, at the cost of
# more bits and two rounds. What comes out is what the same fixed-point numbers give in the clear, bit for
# bit, and the same as often as one asks:

# %%
asked = np.repeat(images[:1], 1000, axis=0)
answers = pp.rehearse(network, asked, reveal="logits", draw=repeatable)
exact = pp.fixed_point(network, answers.terms.scales, asked)
print("different answers to the same question:", len(np.unique(answers.answers.revealed, axis=0)))
print("equal to fixed point in the clear:     ", np.array_equal(answers.answers.revealed, exact))

# %% [markdown]
# How large may numbers get? The server bounds them before the session, by interval arithmetic over its
# weights: whatever image with pixels in $[0, 1]$ the client sends, no number overflows. It announces modulo
# what each layer is computed, in whole bytes; that is where the $2^{40}$ above comes from.

# %%
for number, format in enumerate(rehearsal.terms.scales, 1):
    print(f"layer {number}: {format.inputs} -> {format.outputs}, modulo 2^{format.ring_bits}")

# %% [markdown]
# ## Is it negative?
#
# ReLU keeps a number if it is not negative. For the label each of the 10 logits is compared with each other
# one, 45 differences; the digit that wins all its comparisons is the label. So: is a shared $x$
# negative? Both parties know $x + r$, the provider knows $r$. Take the top bit off both: if what is left of
# $x + r$ is less than what is left of $r$, a carry came from below; that and the two top bits give the
# sign. (The lowest 16 bits alone give the carry that rounding needs.) It remains to compare a public number
# with one that only the provider knows. Two protocols do that.
#
# *Truth tables*: for every piece of 4 bits the provider has dealt shares of the answers to all questions;
# both look their piece up, open the answers under fresh masks, and combine them by means of dealt products
# of these masks; that takes two rounds. *Function secret sharing*: each party has a key, walks with it down
# a tree of AES blocks as the bits of the public number say, and arrives at a share of the answer: no round,
# but long keys and much AES.
#
# What one image costs, by the formulas; the tests find the same numbers at the sockets. *Dealt* are bytes
# from the provider to both, which can come before the image is known. A *round* is a message that must
# arrive before the next can be sent; both directions at once count as one.


# %%
def row(name, steps):
    rounds = sum(step.rounds for step in steps.values())
    online, offline = (sum(getattr(step, kind) for step in steps.values()) for kind in ("online", "offline"))
    print(f"{name:<26}{rounds:>8}{online:>12,}{offline:>12,}")


print(f"{'one image':<26}{'rounds':>8}{'bytes':>12}{'dealt':>12}")
for comparison in ("tables", "fss"):
    row(comparison, costs.query(rehearsal.terms.scales, 1, comparison, "label"))
row("tables, if logits are told", costs.query(rehearsal.terms.scales, 1, "tables", "logits"))

# %% [markdown]
# ## All test images, in three processes
#
# Now client, server and provider are processes that talk over TCP, and every one of the 10,000 images is
# counted. A second session reveals the logits, to see how far they are from the network's own; the first
# reveals labels only.

# %%
result = pp.run(pp.Config(data=DATA, images=IMAGES))
print(f"{result.images:,} images ({result.data})")
print(f"right, on shares:     {result.accuracy:.2%}")
print(f"right, in the clear:  {result.plaintext_accuracy:.2%}")
print(f"the same label:       {result.agreement:,}")
print(f"other labels:         {list(result.disagreements)}")
print(f"every logit within 0.001 of the network's own: {result.max_logit_error < 0.001}")

# %% [markdown]
# ### What it costs
#
# Each step with its rounds, and its bytes as counted at the sockets. The masked weights are sent once a
# session; all else is for 10 queries of 1,000 images.

# %%
print(f"{'':<10}{'rounds':>8}{'from client':>14}{'from server':>14}{'from provider':>16}")
for name, step in result.steps.items():
    sent = [step[f"{role}_bytes"] for role in (CLIENT, SERVER, PROVIDER)]
    print(f"{name:<10}{step['rounds']:>8}{sent[0]:>14,}{sent[1]:>14,}{sent[2]:>16,}")
each = (result.bytes_online + result.bytes_offline) / result.images
print(f"\nan image: {result.bytes_online / result.images:,.0f} bytes online, {each:,.0f} with the provider's")

# %% [markdown]
# On one machine a message takes almost no time; between machines it does, and rounds are what hurts. How
# long do one image's messages take at 100 megabits a second, if each is also half a round trip under way?
# CrypTen 0.4.1 needs 69 rounds and 6.6 megabytes for the same network and label, as its own counter says in
# the benchmark; 96 % of that are the weights, which it sends masked in every query. Ours, 2 megabytes, go
# once a session; they are not in this table, nor is what providers deal, nor any computing.

# %%
peer = {"all": costs.Cost(rounds=69, client=3_310_000, server=3_310_000)}
print(f"{'round trip':<14}{'fss':>10}{'tables':>10}{'CrypTen':>10}")
for milliseconds in (0.5, 10, 50, 200):
    steps = [costs.query(rehearsal.terms.scales, 1, name, "label") for name in ("fss", "tables")]
    seconds = [costs.projected(s, 0, milliseconds / 1000, 100e6 / 8) for s in (*steps, peer)]
    print(f"{milliseconds:>7} ms    {seconds[0]:>8.3f} s{seconds[1]:>8.3f} s{seconds[2]:>8.2f} s")

# %% [markdown]
# `--imitate` holds messages up for as long, and measures; `models/private_prediction.json` has both
# figures. Function secret sharing saves four rounds, and costs 700 kB more an image from the provider and
# many times the work of a comparison: right for one image over a long line, if its keys have come
# beforehand. Else take the tables.
#
# ## A provider that takes sides
#
# All rests on the provider's keeping its random numbers to itself. If it tells the server what it dealt,
# the masks come off, and what the server sees is this:

# %% alt="The eight digits that were classified"
revealed = pp.images_seen_by(rehearsal, provider_helps=True)
_, axes = plt.subplots(1, 8, figsize=(9, 1.3), layout="constrained")
for axis, picture in zip(axes, revealed, strict=True):
    axis.imshow(picture.reshape(28, 28), cmap="gray")
    axis.set(xticks=[], yticks=[])
stolen = pp.weights_seen_by(rehearsal, provider_helps=True)
print(f"largest error of a pixel:  {np.abs(revealed - few).max():.1e} (rounding: {2**-17:.1e})")
off = [np.abs(a.weight - b.weight).max() for a, b in zip(stolen, network, strict=True)]
print(f"largest error of a weight: {max(off):.1e}")

# %% [markdown]
# Told to the client, the same numbers give all weights. The provider must side with neither; whether such a
# one is easier to find than another party to be trusted depends on the case.
#
# ## The same through PySyft
#
# The chapter used PySyft 0.2, which is no longer maintained. Today's PySyft has no secret sharing; it
# offers *remote execution under approval* instead. The owner of a network puts it behind a datasite,
# with a mock of the same shape for everybody to try; the client uploads its images and a function, the
# owner reads both and approves, and the client gets the result. (Both are played in this process.)

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
# | the labels are seen by | the client | the client and the owner |
# | who must be trusted | the provider to side with nobody, all to follow the protocol | the owner |
# | what the owner of the network controls | whether labels or logits are told | which function may run |
# | what it takes | 19 kB and 12 rounds an image, and the provider | no cryptography; a person's approval |
#
# The two answer different questions: a datasite lets an owner decide who may compute what; shares let
# two compute what neither may see. In syft 0.9.5 an approval is also weaker than it looks: the function
# ran again although it said *single use*, and ran on images that the owner had not been shown.
#
# ## On three machines
#
# Each role is started by itself, with the same secret in a file (32 random bytes, say) and the addresses
# of all three, as `host:port`. Between machines, connections are encrypted only if each role has a
# certificate (`--certificate`, `--key`, `--authority`). `--inputs` names a NumPy file with images of your
# own, `--output` one for the labels.
#
# ```
# run="python -m recipes.private_prediction --secret-file secret --client … --server … --provider …"
# $run --role provider
# $run --role server --model FILE.pt
# $run --role client --inputs images.npy --output labels.npy
# ```
#
# ## What this does not show
#
# - **All must follow the protocol.** A server that sends other numbers than it should changes the label,
#   and nobody notices; with care it can learn something from that. Codes in the manner of
#   [recipe 2](02_secret_sharing.ipynb) would catch it; they are not here, and cost more than there,
#   because single bits need codes, too.
# - **The answers themselves tell something.** Whoever may ask often enough can rebuild a network from
#   its labels, and more easily from its logits; and find out who was in its training data
#   ([recipe 6](06_membership_inference.ipynb)). Nothing here limits the number of questions.
# - **Sizes are public**: layers, number formats (which bound the weights a little), numbers of images.
# - **Layers are fully connected** with ReLU between them. Convolutions are products too, but are not here.
#
# ## Exercise
#
# 1. Predict the first 1,000 images with `pp.rehearse(network, images[:1000], fraction_bits=6)`. How many
#    labels change? With `reveal="logits"`, how large is the largest error, and why does it fall by about
#    half with each bit?
# 2. Rounds by step: input 1, layer 1 five (by function secret sharing three), label six (four). Suppose
#    that layer 1 and the label took one round each. What would be left of the time at a round trip of 200
#    ms?
# 3. Train a network of your own in PyTorch, save its `state_dict()`, and run
#    `python -m recipes.private_prediction --model FILE.pt`. If you normalised the images, say `--mean`
#    and `--std`. Is the accuracy the one that you measured? (The file does not say which activation there
#    was: every layer but the last is followed by ReLU.)
