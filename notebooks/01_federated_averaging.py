# %% [markdown]
# # 1. Federated averaging
#
# **Can Alice and Bob train one model while their images stay at home?**
#
# Alice and Bob each hold 30,000 photographs of clothes, and neither wants to hand them over. In
# *federated learning* the data stay where they are and the model travels instead.
#
# You will
#
# - run one round of federated averaging, step by step;
# - look at what crosses the wire as the server does, and get an image back out of it;
# - run the same round on TensorFlow Federated and find the same weights;
# - see when it pays to train together, and what is lost against pooling the data.
#
# It takes about a minute. You need to know what a gradient is, and nothing about federated
# learning.

# %% tags=["parameters"]
DATA = "auto"  # "real", "embedded" (stand-ins drawn here), or "auto": real if it can be had

# %%
import inspect
import itertools

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
test = fa.Examples(fa.flatten(data.test.images), data.test.labels)
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
# The model is the simplest that can tell classes apart, *softmax regression*: every class has one
# weight for every pixel, and a bias; weights times pixels plus bias is the class's score, and the
# softmax turns the ten scores into probabilities. All weights start at zero. The *loss* of an
# image is minus the logarithm of the probability that the model gives to its true class.
#
# A round of **federated averaging** has three steps:
#
# 1. the server sends the global model $w_t$ to every client;
# 2. each client $k$ trains it on its own $n_k$ examples by stochastic gradient descent (here one
#    pass over its data, in batches of 32, at learning rate 0.02) and sends the result
#    $w_{t+1}^k$ back;
# 3. the server takes the mean, weighted by the number of examples:
#    $w_{t+1} = \sum_k \frac{n_k}{n} w_{t+1}^k$ with $n = \sum_k n_k$.
#
# This is Algorithm 1 of McMahan et al., [*Communication-Efficient Learning of Deep Networks from
# Decentralized Data*](https://arxiv.org/abs/1602.05629) (2017), with all clients in every round. In
# code, steps 2 and 3 are:

# %%
print(inspect.getsource(fa.client_update))
print(inspect.getsource(fa.server_update))

# %%
model = fa.initial_model()
from_alice = fa.client_update(model, alice, config)
from_bob = fa.client_update(model, bob, config)
averaged = fa.server_update([from_alice, from_bob])

# %%
for name, one in [("Alice's", from_alice.model), ("Bob's", from_bob.model), ("averaged", averaged)]:
    accuracy, loss = fa.evaluate(one, test)
    print(f"{name:9} model: {accuracy:.4f} of the test images right, mean loss {loss:.4f}")

# %% [markdown]
# ## What crosses the wire
#
# Each client received one model and sent one back.

# %%
sent = sum(array.nbytes for array in from_alice.model)
held = len(alice.labels) * 28 * 28
print(f"Alice sent {sent:,} bytes of parameters; her images are {held:,} bytes")

# %% [markdown]
# No image was sent. Does that mean that nothing was told about the images? Here are Alice's weights
# as the server receives them, a picture for each class: dark pixels speak for the class, light
# ones against it.

# %%
figure, axes = plt.subplots(2, 5, figsize=(7, 3.2), layout="constrained")
figure.suptitle("Alice's weights, as the server receives them", fontsize=9)
limit = np.abs(from_alice.model.weights).max()
for label, axis in enumerate(axes.flat):
    weights = from_alice.model.weights[:, label].reshape(28, 28)
    axis.imshow(weights, cmap="gray_r", vmin=-limit, vmax=limit)
    axis.set_title(data.class_names[label], fontsize=8)
    axis.axis("off")

# %% [markdown]
# Trousers, a T-shirt, a sneaker: the weights show how a class of Alice's images differs from the
# rest. That tells of the classes, and little of any one image, because 30,000 went into it. Now
# let a client train on a *single* image. One step of gradient descent moves the weights of class
# $j$ by $\eta\,(y_j - p_j)\,x$, where $x$ is the image, $y_j$ is 1 for the true class and 0
# otherwise, and $p_j$ is the model's probability; and it moves the bias by $\eta\,(y_j - p_j)$.
# Divide one by the other:

# %%
one_image = fa.Examples(alice.pixels[:1], alice.labels[:1])
update = fa.client_update(model, one_image, config).model
recovered, label = fa.image_from_update(model, update)
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
# The server has the image, to the last grey level. This division needs a client that holds one
# image; for small batches there are stronger attacks. **Keeping data at home is not the same as
# keeping them secret.**
#
# Nor is the server the only one who looks. Bob knows the average and his own model:

# %%
alice_as_bob_sees_her = 2 * averaged.weights - from_bob.model.weights
difference = np.abs(alice_as_bob_sees_her - from_alice.model.weights).max()
print(f"Bob knows Alice's weights to 1e-6: {difference < 1e-6}")

# %% [markdown]
# Two remedies have names. *Secure aggregation* shows the server only the sum of the updates; the
# sum still tells something, and of two clients either can subtract its own. *Differential
# privacy* limits what an update may weigh and adds noise, which bounds what anybody can learn
# about one example. Federated averaging alone does neither.
#
# ## The same round on TensorFlow Federated
#
# TensorFlow Federated (TFF) is the library that this experiment was first written for. It gets
# the same batches, so it should arrive at the same weights as the NumPy functions above.

# %%
by_numpy = fa.run(fa.Config(data=DATA, engine="reference"))
by_tff = fa.run(fa.Config(data=DATA, engine="tff"))
print(fa.describe(by_tff))

# %%
pairs = [(by_numpy.weights, by_tff.weights), (by_numpy.bias, by_tff.bias)]
difference = max(np.abs(one - other).max() for one, other in pairs)
print(f"every weight equal to 1e-5: {difference < 1e-5}")

# %% [markdown]
# TFF's *training* accuracy and loss are taken batch by batch, before each step, on Alice's and
# Bob's models in motion. In the first round most of those models have barely begun. The averaged
# model at the end does better on the very same images:

# %%
pooled = fa.Examples(*map(np.concatenate, zip(alice, bob, strict=True)))
accuracy, loss = fa.evaluate(fa.Model(by_tff.weights, by_tff.bias), pooled)
print(f"the averaged model on the training images: accuracy {accuracy:.4f}, loss {loss:.4f}")

# %% [markdown]
# ### The figure in print
#
# This recipe starts from chapter 8 of Tsukerman's *Machine Learning for Cybersecurity Cookbook*
# (Packt, 2019), which ran TFF 0.2 and printed a training accuracy of 0.74365 and a loss of
# 0.82071316. Its data loader served the images in an order of its own; in that order TFF 0.87
# finds the same figures.

# %%
in_print = fa.run(fa.Config(data=DATA, order="chapter", engine="tff"))
print(f"accuracy {in_print.train_accuracy[0]:.5f}, loss {in_print.train_loss[0]:.6f}")

# %% [markdown]
# ## Ten rounds
#
# Beside the federated model stands one that is trained on both halves pooled, with as many
# passes over the data.

# %%
ten = fa.run(fa.Config(data=DATA, rounds=10))
print(fa.describe(ten))

# %%
fa.plot(ten)

# %% [markdown]
# Pooling is ahead, but look at the steps. In a round Alice and Bob each take 938 steps side by
# side; the pooled model takes 1,875, one after the other. Compare equal steps (federated round 2
# with pooled round 1, round 10 with round 5) and there is hardly a difference: with halves so
# alike, what federated averaging loses is speed.
#
# ## When does it pay?
#
# For the same reason there is little to gain here: Alice alone, after ten passes over her half,
# is almost as good. So let the clients differ. Now Alice holds the classes 0 to 4, and Bob the
# classes 5 to 9.


# %%
def after(rounds, clients, **settings):
    steps = fa.federated_rounds(clients, fa.Config(**settings))
    return fa.evaluate(next(itertools.islice(steps, rounds - 1, None)).model, test)[0]


low = pooled.labels < 5
by_class = [fa.Examples(pooled.pixels[part], pooled.labels[part]) for part in (low, ~low)]
for name, clients in {"alike": [alice, bob], "by class": by_class}.items():
    alone = [after(10, [client]) for client in clients]
    together = after(10, clients)
    print(f"{name:9} Alice alone {alone[0]:.4f}, Bob alone {alone[1]:.4f}, together {together:.4f}")

# %% [markdown]
# Alone, neither can know a class that it has never seen. Together they do, although no client
# ever saw the other's images; yet not as well as when their data are alike, because between two
# averages each client pulls the model towards its own classes (*client drift*).
#
# ## What this does not show
#
# - **Privacy.** You have seen what one update can tell, to the server and to the other client.
# - **Many clients.** Alice and Bob are always there. Real clients are thousands; they come and go.
# - **A network.** Both clients live in this process. The bytes counted are the parameters alone.
#
# ## Exercise
#
# 1. With `by_class`, spend ten passes as 10 rounds of 1 local epoch, 5 of 2, 2 of 5 and 1 of 10
#    (`after(5, by_class, local_epochs=2)`). Which is best, and why? How often does each send?
# 2. A client goes through its data in the order in which they stand. Sort each client's data by
#    label and run `after(10, …)` again. What has the model forgotten?
