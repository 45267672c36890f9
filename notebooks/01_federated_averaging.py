# %% [markdown]
# # 1. Federated averaging
#
# **Can Alice and Bob train one model while their images stay at home?**
#
# Alice and Bob each hold 30,000 photographs of clothes. Together they could train a better
# model than either could alone, but neither wants to hand over the pictures. In *federated
# learning* the data stay where they are and the model travels instead.
#
# You will
#
# - run one round of federated averaging by hand, step by step;
# - count what crosses the wire, and look at it as the server does;
# - run the same round on TensorFlow Federated and find the same weights;
# - see what ten rounds gain, and what they lose against pooling the data.
#
# It takes about a minute. You need to know what a gradient is, and nothing about federated
# learning.

# %% tags=["parameters"]
DATA = "auto"

# %%
import matplotlib.pyplot as plt
import numpy as np

from recipes import federated_averaging as fa
from recipes.data import load

# %% [markdown]
# ## The data
#
# Fashion-MNIST has 60,000 training images of 28 × 28 grey pixels in ten classes, and 10,000
# test images. Alice gets the first half of the training set, Bob the second.

# %%
config = fa.Config(data=DATA)
data = load("fashion-mnist", DATA)
alice, bob = fa.clients_of(data, config)
print(f"{data.name} ({data.source}): Alice {len(alice.labels):,}, Bob {len(bob.labels):,} images")

# %%
figure, axes = plt.subplots(2, 10, figsize=(10, 2.6), layout="constrained")
figure.suptitle("Above: images that only Alice can see. Below: images that only Bob can see.", fontsize=9)
for row, owner in enumerate([alice, bob]):
    for column, axis in enumerate(axes[row]):
        axis.imshow(owner.pixels[column].reshape(28, 28), cmap="gray_r")
        axis.set_title(data.class_names[owner.labels[column]], fontsize=7)
        axis.axis("off")

# %% [markdown]
# ## One round, step by step
#
# The model is the simplest that can tell classes apart, *softmax regression*: one weight for
# every pixel and class, and a bias for every class; the largest score wins. It starts at zero.
#
# A round of **federated averaging** has three steps:
#
# 1. the server sends the global model $w_t$ to every client;
# 2. each client $k$ trains it on its own $n_k$ examples by stochastic gradient descent, and
#    sends the result $w_{t+1}^k$ back;
# 3. the server takes the mean, weighted by the number of examples:
#    $w_{t+1} = \sum_k \frac{n_k}{n} w_{t+1}^k$.

# %%
model = fa.initial_model()
from_alice = fa.client_update(model, alice, config)
from_bob = fa.client_update(model, bob, config)
averaged = fa.server_update([from_alice, from_bob])

# %%
test = fa.Examples(fa.flatten(data.test.images), data.test.labels)
for name, one in [("Alice's", from_alice.model), ("Bob's", from_bob.model), ("averaged", averaged)]:
    accuracy, loss = fa.evaluate(one, test)
    print(f"{name:9} model: {accuracy:.4f} of the test images right, loss {loss:.4f}")

# %% [markdown]
# After one pass over its data each client's model is as good as the average: the two halves are
# alike, so either is enough to learn this small model. The average starts to pay when clients
# differ, or when each holds little.
#
# ## What crosses the wire
#
# Each client received one model and sent one back.

# %%
sent = sum(array.nbytes for array in from_alice.model)
held = len(alice.labels) * 28 * 28
print(f"Alice sent {sent:,} bytes of parameters; her images are {held:,} bytes")

# %% [markdown]
# No image was sent. Does that mean that nothing was told about the images? The server holds
# Alice's model, so let us look at it as the server can: the weights of each class, drawn as a
# picture. Dark pixels speak for the class, light ones against it.

# %%
figure, axes = plt.subplots(1, 10, figsize=(10, 1.5), layout="constrained")
figure.suptitle("What the server sees of Alice's data", fontsize=9)
for label, axis in enumerate(axes):
    axis.imshow(from_alice.model.weights[:, label].reshape(28, 28), cmap="gray_r")
    axis.set_title(data.class_names[label], fontsize=7)
    axis.axis("off")

# %% [markdown]
# Trousers, a bag, a boot: the server learns what Alice's images look like on average. With one
# image instead of 30,000 the "average" *is* the image:

# %%
one_image = fa.Examples(alice.pixels[:1], alice.labels[:1])
update = fa.client_update(model, one_image, config).model
label = int(update.bias.argmax())  # only the true class's bias grows
recovered = update.weights[:, label] / update.bias[label]
error = np.abs(recovered - one_image.pixels[0]).max()
print(f"class {data.class_names[label]}; every pixel right to 1e-6: {error < 1e-6}")

# %%
pictures = {"Alice's image": one_image.pixels[0], "from her update": recovered}
figure, axes = plt.subplots(1, 2, figsize=(4, 2.2), layout="constrained")
for axis, (title, pixels) in zip(axes, pictures.items(), strict=True):
    axis.set_title(title, fontsize=9)
    axis.imshow(pixels.reshape(28, 28), cmap="gray_r")
    axis.axis("off")

# %% [markdown]
# The step on a class's weights is the step on its bias times the image, so a division gives the
# image back, to the last digit. **Keeping the data at home is not the same as keeping them
# secret.** An update has to be hidden from the server (secure aggregation), or blurred
# (differential privacy), before such a claim may be made. Federated averaging alone does neither.
#
# ## The same round on TensorFlow Federated
#
# The functions above are NumPy, short enough to read. TensorFlow Federated (TFF) is the library
# that this experiment was first written for. Both get the same batches, so both should arrive
# at the same weights.

# %%
by_numpy = fa.run(fa.Config(data=DATA, engine="reference"))
by_tff = fa.run(fa.Config(data=DATA, engine="tff"))
print(fa.describe(by_tff))

# %%
pairs = [(by_numpy.weights, by_tff.weights), (by_numpy.bias, by_tff.bias)]
difference = max(np.abs(one - other).max() for one, other in pairs)
print(f"every weight equal to 1e-5: {difference < 1e-5}")

# %% [markdown]
# The two columns headed *train* are the figures that TFF reports: they are taken **while** the
# clients train, before each step, so they count the mistakes of a model that has barely begun.
# The same model, once the round is over, does better on images it has never seen.
#
# ### The figure in print
#
# The article that this recipe starts from printed a training accuracy of 0.74365 and a loss of
# 0.82071316. Its data loader served the images in an order of its own; in that order we find
# the same figures, on today's libraries.

# %%
in_print = fa.run(fa.Config(data=DATA, order="chapter"))
print(f"accuracy {in_print.train_accuracy[0]:.5f}, loss {in_print.train_loss[0]:.6f}")

# %% [markdown]
# ## Ten rounds
#
# How much does it cost to leave the data apart? Beside the federated model stands one that is
# trained on both halves pooled, for as many passes.

# %%
ten = fa.run(fa.Config(data=DATA, rounds=10))
print(fa.describe(ten))

# %%
fa.plot(ten)

# %% [markdown]
# The pooled model takes twice as many steps in an epoch (one after the other over 60,000
# images, where Alice and Bob walk side by side over 30,000), so it is ahead in every round; the
# gap narrows as both converge.
#
# ## What this does not show
#
# - **Privacy.** The server sees every update in plaintext, and you have seen what one can tell.
# - **Many clients.** Alice and Bob are always there, and their data are alike. Real clients are
#   thousands, come and go, and hold different things; then averaging works less well.
# - **A network.** Both clients live in this process. Bytes are those of the parameters.
#
# ## Exercise
#
# Give Alice only the classes 0 to 4 and Bob only 5 to 9 (sort the training set by label before it
# is cut in two). How good is each client's model after one round, and the average? What do more
# rounds, and more local epochs a round, change?
