"""PySyft today: the same prediction through a datasite, where a person's approval replaces the cryptography.

The owner runs a syft 0.9 datasite with the network behind an endpoint; the client uploads images, files a
function, and gets labels once the owner has approved it. The client never gets the weights, but the owner
can read every image: syft shares no secrets any more. And approval binds less than one might think: the
function may be run again, and on other images. All in one process, without a network.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import numpy as np


class DatasiteFailed(OSError):
    """syft is missing, or did not do what was asked; one line says what."""


@dataclass(frozen=True)
class Report:
    """What came back from the datasite, and what was seen on the way."""

    labels: np.ndarray
    """`[N]` int64: the private network's labels, as the client received them."""
    mock_agreement: int
    """How many of them the mock network gives, too, by luck."""
    refused_before_approval: bool
    """Whether the client was refused both the private network and its own function."""
    owner_read_the_images: bool
    """Whether the owner, given no more than the request, could read the images exactly."""
    answered_again: bool
    """Whether a second run was answered after one approval, of a function that says "single use"."""
    answered_other_images: bool
    """Whether, after approval, the client could put other images in the place of those it had shown."""
    seconds: float
    """Wall time of all of it, the first import of syft included."""


def predict(layers: Sequence[tuple[np.ndarray, np.ndarray]], images: np.ndarray, *, seed: int = 0) -> Report:
    """Label images with the owner's network, through a datasite and the owner's approval.

    Args:
        layers: (weight [out, in], bias [out]) of each layer; a ReLU follows each but the last.
        images: [N, in] float32.
        seed: of the mock network's random weights; of the real ones it gets the shapes alone.

    Raises:
        ValueError: The shapes of images and layers do not fit each other.
        DatasiteFailed: syft is missing, or a step failed.
    """
    start = time.perf_counter()
    widths = [images.shape[-1], *(len(bias) for _, bias in layers)]
    shapes = [weight.shape for weight, _ in layers]
    if not layers or images.ndim != 2 or shapes != [(out, in_) for in_, out in pairwise(widths)]:
        raise ValueError(f"images {images.shape} do not fit weights {shapes}; want [N, in] and [out, in]")
    try:
        with _datasite() as site:
            seen = _protocol(site, layers, np.array(images, np.float32), seed)
    except Exception as error:  # syft raises its own, pydantic's, SQLAlchemy's and bare exceptions
        line = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DatasiteFailed(f"the prediction through a syft datasite failed: {line}") from error
    return Report(**seen, seconds=time.perf_counter() - start)


def _protocol(site: Any, layers: Sequence, images: np.ndarray, seed: int) -> dict[str, Any]:
    """Play owner and client in turn; return what `Report` holds, but the time."""
    import syft as sy

    # 1. The owner, who holds the datasite's root key, publishes the endpoint and admits the client.
    owner = site.python_server.root_client
    draw = np.random.default_rng([seed, 0xDA7A51]).standard_normal  # a stream that no plain seed gives
    mock = [tuple(draw(part.shape, np.float32) for part in layer) for layer in layers]
    real = [tuple(np.array(part, np.float32) for part in layer) for layer in layers]
    codes = [sy.api_endpoint_method({"layers": face})(forward) for face in (mock, real)]
    owner.custom_api.add(endpoint=sy.TwinAPIEndpoint("network.predict", *codes))
    account = {"email": "client@example.org", "password": secrets.token_urlsafe()}
    owner.register("client", password_verify=account["password"], **account)
    # 2. The client uploads the images, gets the mock's labels for them, and is refused the private ones.
    client = site.login(**account)
    endpoint = client.api.services.network.predict
    uploaded = sy.ActionObject.from_obj(images).send(client)
    inputs = {"images": uploaded, "network": endpoint}
    guesses = _labels(client.custom_api.call_public("network.predict", images=images), len(images))
    denied = _refused(lambda: client.custom_api.call_private("network.predict", images=images), "not allowed")
    # 3. The client files its function and may not run it yet.
    request = client.code.request_code_execution(sy.syft_function_single_use(**inputs)(classify))
    unapproved = _refused(lambda: client.code.classify(**inputs), "waiting for approval")
    # 4. The owner finds the request by its id, reads the images that it names, and approves.
    pending = owner.requests.get_by_uid(uid=request.id)
    (named,) = pending.code.input_policy_init_kwargs.values()
    read = np.array_equal(owner.api.services.action.get(named["images"]).syft_action_data, images)
    pending.approve(disable_warnings=True)
    # 5. The client has its function run at the datasite, and fetches the result.
    labels = _labels(client.code.classify(**inputs).get(), len(images))
    # 6. Does approval bind? The client asks again, and again with its images reversed under the same id.
    again = _attempt(lambda: _labels(client.code.classify(**inputs).get(), len(images)))
    _attempt(lambda: sy.ActionObject.from_obj(images[::-1].copy(), id=uploaded.id).send(client))
    swapped = _attempt(lambda: _labels(client.code.classify(**inputs).get(), len(images)))
    return {
        "labels": labels,
        "mock_agreement": int((labels == guesses).sum()),
        "refused_before_approval": denied and unapproved,
        "owner_read_the_images": read,
        "answered_again": np.array_equal(again, labels),
        "answered_other_images": np.array_equal(swapped, labels[::-1]) and len(set(labels)) > 1,
    }


# syft sends the source of the next two functions: they see their arguments alone, and no annotations.
def forward(context, images):
    """Run the layers in the endpoint's settings, which are all that mock and private network differ in."""
    *inner, (last_weight, last_bias) = context.settings["layers"]
    for weight, bias in inner:
        images = (images @ weight.T + bias).clip(min=0)
    return (images @ last_weight.T + last_bias).argmax(axis=1)


def classify(images, network):
    """Ask the private network: the client's code, which the owner reads and approves."""
    return network.private(images=images)


def _labels(answer: Any, count: int) -> np.ndarray:
    labels = np.asarray(getattr(answer, "syft_action_data", answer))
    if labels.shape != (count,) or labels.dtype.kind != "i":
        raise RuntimeError(f"want {count} labels, got {labels.dtype} of shape {labels.shape}")
    return labels.astype(np.int64)


def _attempt(call: Callable[[], Any]) -> Any:
    """What the call gives, or None if syft does not allow it."""
    with contextlib.suppress(Exception):
        return call()
    return None


def _refused(call: Callable[[], Any], reason: str) -> bool:
    try:
        call()
    except Exception as error:
        return reason in str(error)  # a failure for another reason is no refusal
    return False


@contextlib.contextmanager
def _datasite() -> Iterator[Any]:
    """A fresh datasite that keeps silent; at the end no file, login or setting of it is left."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable()
        stack.callback(logging.root.setLevel, logging.root.level)
        stack.enter_context(patch.object(logging.root, "handlers", list(logging.root.handlers)))
        from IPython.utils.capture import capture_output

        stack.enter_context(capture_output())
        import syft as sy
        from syft.client import api, client
        from syft.server import server

        logins = client.SyftClientSessionCache
        contexts = server.AuthServerContextRegistry.__server_context_registry__
        registries = [contexts, server.CODE_RELOADER, logins.__credentials_store__, logins.__client_cache__]
        for registry in [api.APIRegistry.__api_registry__, *registries]:
            stack.enter_context(patch.dict(registry))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="datasite-"))
        stack.enter_context(patch.dict(os.environ, SYFT_TEMP_ROOT=folder))
        # The root key is a hash of the name. dev_mode would overwrite a file of the syft package.
        site = sy.orchestra.launch(secrets.token_hex(16), "datasite", "python", dev_mode=False)
        stack.callback(site.python_server.db.engine.dispose)
        stack.callback(site.land)
        yield site
