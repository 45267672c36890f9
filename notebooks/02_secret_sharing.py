# %% [markdown]
# # 2. The secret-sharing calculator
#
# **Can three parties compute with numbers that none of them knows?**
#
# You have numbers that you do not want to show to anybody, and three servers that you do not want to
# trust. *Secret sharing* splits each number into three shares, one for each server. A share says
# nothing, and yet the servers can add, multiply, compare and divide what they hold; only the result
# is put together again. This is *secure multi-party computation*.
#
# You will
#
# - split a picture into shares that look like noise, and add two pictures that nobody sees;
# - see why two shares out of three say nothing, and what a careless source of randomness gives away;
# - multiply shares with the help of random triples, and see what a comparison costs;
# - let a party cheat: unnoticed, then caught, then corrected;
# - run the whole as five processes that talk over the network.
#
# It takes less than a minute. You need to know what *modulo* means, what a polynomial is, and that
# chance can be tested.

# %% tags=["parameters"]
DATA = "auto"  # "real", "embedded" (stand-ins drawn here), or "auto": real if it can be had

# %%
import random

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import binomtest, chisquare

from recipes import secret_sharing as ss
from recipes.data import load

# %% [markdown]
# ## A number in three shares
#
# Take a large prime $P$ and compute modulo $P$. To share $x$, draw two numbers below $P$ at random,
# and choose the third so that the sum is $x$:
# $x = s_0 + s_1 + s_2 \bmod P$. That is *additive* secret sharing. The functions are called
# `encrypt` and `decrypt`, as in the chapter that this recipe starts from, although there is no cipher:
# to encrypt is to share, to decrypt is to put together, or *open*.
#
# Shares must come from a source that nobody can predict; the recipe draws them from Python's
# `secrets`. For this page only, so that it comes out the same whenever it is built, a seeded
# generator takes its place.

# %%
repeatable = np.random.default_rng(2).bytes  # for this page: never do this with real secrets
session = ss.Session(ss.Additive(parties=3), draw=repeatable)
x = session.encrypt(17)
print(f"P = {ss.CHAPTER_PRIME}")
for party, share in enumerate(x.shares.ravel()):
    print(f"party {party} holds {share}")
print("together:", sum(int(share) for share in x.shares.ravel()) % ss.CHAPTER_PRIME)

# %% [markdown]
# To add two shared numbers each party adds its own two shares, and that is all. In three lines:

# %%
from recipes.secret_sharing import decrypt, encrypt

total = encrypt(5) + encrypt(9)
print(decrypt(total))

# %% [markdown]
# ## A picture as noise
#
# All of this works on whole arrays, element by element. Here are two pictures from Fashion-MNIST, and
# the share of the first that each party holds: numbers between 0 and $P$, each panel in its own grey
# scale.

# %%
data = load("fashion-mnist", DATA)
print(f"{data.name} ({data.source})")
boot, shirt = data.train.images[[0, 1]].astype(int)
shared_boot, shared_shirt = session.encrypt(boot), session.encrypt(shirt)


# %% tags=["cover"] alt="A boot, three shares of it that are noise, the boot put together again, and a shirt"
def show(pictures):
    _, axes = plt.subplots(1, len(pictures), figsize=(9, 2), layout="constrained")
    for axis, (name, pixels) in zip(axes, pictures.items(), strict=True):
        axis.imshow(pixels, cmap="gray_r")
        axis.set(title=name, xticks=[], yticks=[])


held = {f"party {party}": shared_boot.shares[party, 0] for party in range(3)}
show({"a secret": boot, **held, "put together": decrypt(shared_boot), "another": shirt})

# %% [markdown]
# Each party now adds its noise of the second picture to its noise of the first. No party has seen
# either picture, and the sum of the noise is the sum of the pictures.

# %% alt="Three shares of a sum that are noise, and put together a boot over a shirt"
both = shared_boot + shared_shirt
held = {f"party {party}": both.shares[party, 0] for party in range(3)}
show({**held, "put together": decrypt(both)})

# %% [markdown]
# ## What do two shares say?
#
# Take a field small enough to go through: $P = 11$. Parties 0 and 1 put their shares together. Which
# secrets can it be? For every candidate there is exactly one share that party 2 might hold:

# %%
small = ss.Additive(parties=3, field=ss.Field(11))
for secret, missing in small.explain({0: 4, 1: 9}).items():
    print(f"if the secret is {secret:2}, party 2 holds {missing:2}: 4 + 9 + {missing:2} = {secret:2} mod 11")

# %% [markdown]
# Every secret is possible, and every one is as likely as it was before: the shares of parties 0 and 1
# were drawn before anybody looked at the secret. (For the other pairs it is the missing share that
# was drawn evenly.) Two shares say *nothing*. This does not rest on a problem that is hard to solve;
# if the draws are even and cannot be predicted, it holds against any computer.
#
# The chapter that this recipe starts from (Tsukerman, *Machine Learning for Cybersecurity Cookbook*,
# Packt 2019, chapter 8) draws with `random.randint(0, P)`. That is wrong twice: `random` can be
# predicted from its past output, and `randint` includes both ends, so that the residue 0 comes up
# as 0 *and* as $P$. With $P = 5$:

# %%
draws = 5_000
generator = random.Random(0)
careless = np.bincount([generator.randint(0, 5) % 5 for _ in range(draws)])
careful = np.bincount(ss.Field(5).random((draws,), repeatable).astype(int))
print("residue         0      1      2      3      4")
print("randint(0, P)", *(f"{count / draws:6.1%}" for count in careless))
print("this recipe  ", *(f"{count / draws:6.1%}" for count in careful))

# %% [markdown]
# Parties 1 and 2 now guess that party 0 holds 0, so that the secret is the sum of their own shares, and
# are right one time in three instead of one in five. (With the chapter's $P$ the excess is one in 67
# trillion; there the real fault is that `random` can be predicted.)
#
# A test notices: chi-square compares the counts with even ones. Its *p-value* is the probability of
# counts at least as uneven if all is well; only a very small one, below a thousandth say, is
# remarkable. The tests of this recipe do the same with all that is dealt, shared or opened in its
# basic operations; each such test raises a false alarm once in a million runs.

# %%
print(f"randint(0, P): p-value {chisquare(careless).pvalue:.0e}")
print(f"this recipe:   p-value {chisquare(careful).pvalue:.2f}")

# %% [markdown]
# ## Multiplication
#
# Sums are local; a product is not: $(x_0 + x_1 + x_2)(y_0 + y_1 + y_2)$ has terms such as $x_0 y_1$
# whose factors lie with different parties. Beaver's trick (1991) uses a *triple*: random shared $a$,
# $b$ and $c = ab$, which a *dealer* hands out beforehand, knowing nothing of $x$ and $y$. The parties
# open the differences $d = x - a$ and $e = y - b$, which say nothing because $a$ and $b$ are random,
# and then
#
# $$xy = (a + d)(b + e) = c + e\,a + d\,(b + e)$$
#
# is a matter of adding shares and multiplying them by public numbers. Each triple is used once and
# thrown away: two numbers masked by the same $a$ would give away their difference. (Below, `()` is
# the shape of a single number, and `public` makes shares of a number that all know: party 0 holds it,
# the others hold 0.)

# %%
x, y = session.encrypt(17), session.encrypt(-3)
a, b, c = session.triples(())
d, e = session.open(x - a), session.open(y - b)
print(f"everybody sees d = {d} and e = {e}")
product = c + a.times(e) + (b + session.public(e)).times(d)
print(f"17 * -3 = {decrypt(product)}")

# %% [markdown]
# Does $d$ really say nothing? Below it is opened 50,000 times, with a small prime, for each of two
# secrets. What everybody sees looks the same for both.

# %% alt="Two flat histograms: what is opened looks the same for x = 7 and for x = -40"
tiny = ss.Session(ss.Additive(3, ss.Field(101)), fraction_bits=0, draw=repeatable)
figure, axes = plt.subplots(1, 2, figsize=(8, 2), sharey=True, layout="constrained")
axes[0].set_ylabel("times")
for axis, secret in zip(axes, (7, -40), strict=True):
    x = tiny.encrypt(np.full(50_000, secret))
    a, _, _ = tiny.triples(x.shape)
    opened = np.bincount(tiny.open(x - a).astype(int), minlength=101)
    axis.bar(range(101), opened, width=1)
    axis.set_title(f"x = {secret}: what is opened (p-value {chisquare(opened).pvalue:.2f})", fontsize=9)
    axis.set_xlabel("d")

# %% [markdown]
# ## Comparisons, decimals, division
#
# From sums and products all else follows, at a price. Is $x < 0$? Negative numbers stand in the upper
# half of the field, so doubling makes them wrap: modulo the odd $P$, $2x$ is even for $x \ge 0$ and
# odd for $x < 0$. The lowest bit of $2x$ is wanted, and nothing else. The parties open
# $c = 2x + r$ for a random $r$ whose *bits* the dealer has shared; the lowest bits of $c$ and $r$ give
# that of $2x$, unless the sum has wrapped, and it has if $c < r$: a comparison of a public number
# with shared bits, done by a tree of products. For $x < y$ three signs are needed, because $x - y$
# may wrap.
#
# Decimals are integers times $2^{-12}$; after a product 12 bits too many must be cut off, which takes
# comparisons again. Division is what you learned at school, a binary place at a time.
#
# In a *round* every party sends one message to every other; over a long distance, rounds are what
# takes time. *Opened* are numbers that everybody sees. A number takes 8 bytes and a message 4 more, so
# that opening one number among three parties sends $6 \times 12 = 72$ bytes. (`select` takes one of two
# numbers by a shared bit; `dot of 100` is the sum of a hundred products.)

# %%
print(ss.cost_table(ss.Config()))

# %% [markdown]
# The table is computed from formulas; the tests hold them against what is really sent. A sum costs
# nothing, a product one round. A comparison costs ten rounds and two hundred times the bytes, a
# division 424 rounds and thirty times the bytes of a comparison.
#
# There is a cheaper way to cut off bits, in one round, that is wrong now and then: add $2^{k-1}$ so
# that $x$ is not negative, open $x + 2^{k-1} + r$, and hope that the sum has not wrapped around modulo
# $P$. If it has, the result is nonsense. How often that happens can be computed:

# %%
loose = ss.Session(ss.Additive(2, ss.Field(1_000_003)), fraction_bits=4, draw=repeatable,
                   truncation="probabilistic", integer_bits=6)  # fmt: skip
numbers = np.full(50_000, 5.5)
products = decrypt(loose.encrypt(numbers) * loose.encrypt(numbers))
wrong = np.mean(np.abs(products - 5.5**2) > 0.1)
exact = (2**loose.product_bits + 5.5**2 * 2**8) / loose.field.prime
print(f"5.5 * 5.5: {wrong:.2%} nonsense; computed {exact:.2%}, at most {loose.failure_probability:.2%}")

# %% [markdown]
# With the chapter's larger prime, 12 fraction bits and products below 4,096, a small product still
# fails once in 980 times, and one near 4,096 once in 490. So the calculator rounds exactly; told to do
# otherwise, it prints the bound.
#
# ## Shamir's scheme: shares may be missing, or wrong
#
# Additive shares must all be there. *Shamir's* scheme draws a random polynomial of degree $t$ whose
# value at 0 is the secret; party $i$ gets its value at $i + 1$. Any $t + 1$ points determine it, and
# $t$ points say nothing. Five parties, $t = 2$ (which is also the default: half of the other parties,
# rounded down):

# %%
five = ss.Session(ss.Shamir(parties=5, threshold=2), draw=repeatable)
x = five.encrypt(1234)
print("parties 0, 2 and 4 are enough:", five.decrypt(x, parties=(0, 2, 4)))
try:
    five.decrypt(x, parties=(0, 2))
except ValueError as error:
    print("two are not:", error)

# %% [markdown]
# Points beyond $t + 1$ are redundant, as in an error-correcting code; in fact they form the code of
# Reed and Solomon. With $n$ points, $(n - t - 1) / 2$ wrong ones can be found and corrected: with five
# and $t = 2$, one. (If more are wrong, nothing is promised; with no redundant point nothing is even
# noticed.) Here party 3 adds 1 to all that it opens:

# %%
liar = ss.Session(ss.Shamir(parties=5, threshold=2), cheater=3, draw=repeatable)
print("12 * 12 =", liar.decrypt(liar.encrypt(12) ** 2), "although these parties lied:", set(liar.liars))

# %% [markdown]
# ## A cheater among additive shares
#
# With additive shares a cheater goes unnoticed:

# %%
naive = ss.Session(ss.Additive(3), cheater=1, draw=repeatable)
print("5 + 9 =", naive.decrypt(naive.encrypt(5) + naive.encrypt(9)))

# %% [markdown]
# The remedy is a *message authentication code* (MAC). Beside $x$ the parties hold shares of
# $\alpha x$, where $\alpha$ is a key that no party knows: the dealer has drawn and shared it. Sums and
# products keep the code right. Before the result is opened the parties check, without opening
# $\alpha$, that everything opened so far fits its code, and then that the result does. Whoever
# changes a value would have to change the code by $\alpha$ times as much. This is SPDZ (Damgård et
# al., 2012).

# %%
guarded = ss.Session(ss.Authenticated(3), cheater=1, draw=repeatable)
try:
    guarded.decrypt(guarded.encrypt(5) + guarded.encrypt(9))
except ss.CheaterDetected as error:
    print("caught:", error)

# %% [markdown]
# A cheater who lies only about the result, as here, still learns the right one (it knows its own lie)
# and can keep it from the others; it cannot make them believe a wrong one.
#
# Can it be lucky? This cheater leaves the code alone, and so gets through if the key happens to be 0,
# one time in $P$; guessing another key is no better. With the chapter's prime nobody will live to see
# it; with $P = 101$ it can be counted.

# %%
trials, escaped = 3000, 0
for _ in range(trials):
    small = ss.Session(ss.Authenticated(2, ss.Field(101)), fraction_bits=0, cheater=1, draw=repeatable)
    try:
        small.decrypt(small.encrypt(5))
        escaped += 1
    except ss.CheaterDetected:
        pass
low, high = binomtest(escaped, trials).proportion_ci(0.99)
print(f"{escaped} of {trials} escaped: {escaped / trials:.2%}, between {low:.2%} and {high:.2%} (99 %)")
print(f"1 / 101 = {1 / 101:.2%}")

# %% [markdown]
# ## The calculator, and real processes
#
# `python -m recipes.secret_sharing "(17 + 5) * 3.5 < 80"` shares every number of an expression but
# exponents, computes on shares and opens only the result. With `--processes` you, the dealer and the
# three parties are five processes, which prove to each other that they belong to the same run and
# talk over TCP. Through the sockets goes what was counted in one process, to the byte.

# %%
config = ss.Config("(17 + 5) * 3.5 < 80", scheme="authenticated")
here = ss.run(config)
there = ss.run(ss.Config(config.expression, scheme="authenticated", processes=True))
print(ss.describe(there).rsplit("\n\n", 1)[0])
print("\nas counted in one process:", (here.rounds, here.bytes_sent) == (there.rounds, there.bytes_sent))

# %% [markdown]
# ## Which shares against whom?
#
# | | additive | Shamir, $n$ parties, threshold $t$ | authenticated |
# | --- | --- | --- | --- |
# | parties who are curious learn nothing | up to $n - 1$ | up to $t$ | up to $n - 1$ |
# | parties who stay away | stop everything | up to $n - t - 1$ are not missed | stop everything |
# | parties who lie | are not noticed | up to $(n - t - 1) / 2$ are corrected | are caught, not named |
#
# ## What this does not show
#
# - **A dealer is trusted.** It knows every mask: together with one party it learns whatever enters a
#   product or a comparison, and with MACs every input; and it could help a cheater to forge any code.
#   SPDZ replaces it by cryptography between the parties, which costs far more than all the rest.
# - **The result is told.** Whoever sees $x + y$ and knows $y$ knows $x$. Secret sharing protects what
#   is computed on, not what is computed.
# - **Numbers wrap.** Beyond $\pm(P - 1) / 2$ a result wraps around, and nobody sees it. The
#   calculator, whose user knows all numbers, checks beforehand; your own code must know its ranges.
# - **The expression is public**, with its exponents, and so is which numbers are decimals.
# - **On the wire** the processes keep strangers out when they connect, and protect nothing after: they
#   are meant for one machine, and a party could pose as another.
#
# ## Exercise
#
# 1. `ss.Additive(3, ss.Field(11)).explain({0: 4})` refuses, as two shares are missing. For each secret,
#    how many pairs of missing shares would there be?
# 2. `print(ss.describe(ss.run(ss.Config("5 + 9", scheme="shamir", parties=4, cheat=1))))` corrects the
#    cheater. With `parties=3` it does not. What will happen with five parties and `threshold=3`, and
#    what with `threshold=4`?
# 3. Compute the mean and the variance of the numbers 3, 1, 4, 1, 5, which are `ss.encrypt([3, 1, 4, 1,
#    5])`. What do you open, and what does that tell? (A public divisor need not be divided by on
#    shares.)
