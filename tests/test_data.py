"""The shared data module: what it loads, what it refuses, and what it says when it cannot."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import hashlib
import http.server
import io
import logging
import lzma
import multiprocessing
import os
import re
import resource
import shutil
import socket
import tarfile
import tempfile
import threading
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from recipes import data, download, formats

CLASSES = {"mnist": 10, "fashion-mnist": 10, "cifar-100": 100}

# ---- the data sets themselves


def assert_well_formed(dataset: data.Dataset) -> None:
    colour = dataset.name == "cifar-100"
    for split, count in zip((dataset.train, dataset.test), dataset.sizes.values(), strict=True):
        assert split.images.shape == (count, *((32, 32, 3) if colour else (28, 28)))
        assert split.images.dtype == split.labels.dtype == np.uint8
        assert split.images.flags.c_contiguous
        assert not split.images.flags.writeable
        assert len(split) == count
        labels, counts = np.unique(split.labels, return_counts=True)
        assert labels.tolist() == list(range(CLASSES[dataset.name]))
        if dataset.name != "mnist":  # MNIST's classes are not equally frequent
            assert set(counts) == {count // CLASSES[dataset.name]}
        if colour:
            assert np.unique(split.coarse_labels).tolist() == list(range(20))
            pairs = set(zip(split.labels.tolist(), split.coarse_labels.tolist(), strict=True))
            assert len(pairs) == 100  # every fine class lies in one coarse class
    assert dataset.sizes == {"train": 50_000 if colour else 60_000, "test": 10_000}
    assert len(dataset.class_names) == CLASSES[dataset.name]
    assert len(dataset.coarse_class_names) == (20 if colour else 0)


def test_real_sets_are_well_formed(any_real_dataset):
    assert any_real_dataset.source == "real"
    assert_well_formed(any_real_dataset)


def test_stand_ins_are_well_formed(any_stand_in):
    assert any_stand_in.source == "embedded"
    assert_well_formed(any_stand_in)


def test_fine_classes_lie_in_the_same_coarse_classes_everywhere(any_real_dataset):
    if any_real_dataset.name == "cifar-100":
        spec = data.registry()["cifar-100"]
        names = {fine: coarse for coarse, group in spec["coarse_classes"].items() for fine in group}
        split = any_real_dataset.test
        for fine, coarse in zip(split.labels[:500], split.coarse_labels[:500], strict=True):
            assert names[any_real_dataset.class_names[fine]] == any_real_dataset.coarse_class_names[coarse]


def test_cifar_channels_have_the_published_means(any_real_dataset):
    if any_real_dataset.name == "cifar-100":
        means = any_real_dataset.train.images.mean(axis=(0, 1, 2)) / 255
        assert means == pytest.approx([0.50707516, 0.48654887, 0.44091784], abs=1e-8)


def test_what_is_cached_has_the_published_digests(any_real_dataset):
    assert data.verify()[any_real_dataset.name] == "right"


def test_stand_ins_are_the_same_bytes_on_every_machine(any_stand_in):
    # Drawn with correctly rounded operations only; computed once and true for all.
    assert (
        any_stand_in.digest()[:16]
        == {
            "mnist": "9ca766c0c6933669",
            "fashion-mnist": "e59e6bf2f3d7b4d2",
            "cifar-100": "5b5d2c54f663cb1f",
        }[any_stand_in.name]
    )


def test_stand_ins_differ_between_train_and_test(any_stand_in):
    train = {hash(image.tobytes()) for image in any_stand_in.train.images}
    assert len(train) == len(any_stand_in.train)
    assert train.isdisjoint(hash(image.tobytes()) for image in any_stand_in.test.images)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_grey_stand_ins_are_learnable_but_not_trivial(name):
    torch = pytest.importorskip("torch")
    dataset = data.load(name, "embedded")
    generator = torch.Generator().manual_seed(0)

    def accuracy(network, epochs: int) -> float:
        images, labels, test_images, test_labels = _tensors(torch, dataset)
        _train(torch, network, images, labels, epochs, generator)
        with torch.no_grad():
            return (network(test_images).argmax(1) == test_labels).float().mean().item()

    torch.manual_seed(0)
    nn = torch.nn
    linear = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    assert 0.70 < accuracy(linear, epochs=8) < 0.95
    small = nn.Sequential(
        *(nn.Conv2d(1, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 16, 5, 2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )
    assert accuracy(small, epochs=6) > 0.95


def test_a_model_over_fitted_to_the_colour_stand_in_leaks_membership():
    torch = pytest.importorskip("torch")
    dataset = data.load("cifar-100", "embedded")
    images, labels, test_images, test_labels = _tensors(torch, dataset)
    torch.manual_seed(0)
    nn = torch.nn
    network = nn.Sequential(
        *(nn.Conv2d(3, 32, 5, 2), nn.ReLU(), nn.Conv2d(32, 64, 3, 2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(64 * 36, 256), nn.ReLU(), nn.Linear(256, 100)),
    )
    count = 2000
    _train(torch, network, images[:count], labels[:count], 25, torch.Generator().manual_seed(0))
    with torch.no_grad():
        losses = torch.nn.CrossEntropyLoss(reduction="none")
        members = losses(network(images[:count]), labels[:count])
        others = losses(network(test_images[:count]), test_labels[:count])
    threshold = torch.cat([members, others]).median()
    balanced_accuracy = ((members < threshold).float().mean() + (others >= threshold).float().mean()) / 2
    assert balanced_accuracy > 0.65, balanced_accuracy  # 0.5 would leak nothing


def _tensors(torch, dataset: data.Dataset):
    """A third of the training set, and half of the test set."""
    some = (dataset.train, 20_000), (dataset.test, 5_000)
    pairs = [(data.channels_first(data.scale(s.images[:n])), s.labels[:n].astype(np.int64)) for s, n in some]
    return [torch.tensor(array) for pair in pairs for array in pair]


def _train(torch, network, images, labels, epochs, generator) -> None:
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(128):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimiser.step()


def test_helpers_for_frameworks():
    grey, colour = np.full((2, 28, 28), 255, np.uint8), np.zeros((2, 32, 32, 3), np.uint8)
    assert data.scale(grey).dtype == np.float32
    assert data.scale(grey).max() == 1
    assert data.channels_first(grey).shape == (2, 1, 28, 28)
    assert data.channels_first(colour).shape == (2, 3, 32, 32)
    assert data.channels_last(grey).shape == (2, 28, 28, 1)
    assert data.channels_last(colour).shape == (2, 32, 32, 3)


# ---- a tiny registry, and a server that misbehaves


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A registry of two tiny data sets with no public mirror; returns the files to serve."""
    rng = np.random.default_rng(0)
    files, digests = {}, {}
    for split, count in (("train", 20), ("t10k", 10)):
        for kind, shape in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            header = np.array([0x0800 | len(shape), *shape], ">u4").tobytes()
            body = header + rng.integers(0, 10, shape, dtype=np.uint8).tobytes()
            files[f"mnist/{split}-{kind}-ubyte"] = body
            digests[f"{split}-{kind}-ubyte"] = hashlib.sha256(body).hexdigest()
    bins = {split: rng.integers(0, 100, count * 3074, np.uint8) for split, count in CIFAR.items()}
    for content in bins.values():
        content[::3074] %= 20
    files["cifar-100-binary.tar.gz"] = pack(bins)
    records = {s: formats.digest_of_records(formats.record_digests(b.tobytes())) for s, b in bins.items()}
    spec = data.registry()
    mnist = spec["mnist"] | {"train": 20, "test": 10, "files": digests, "mirrors": []}
    archive = {"name": "cifar-100-binary.tar.gz", "md5": "none"}
    cifar = spec["cifar-100"] | CIFAR | {"archive": archive, "records": records, "mirrors": []}
    monkeypatch.setattr(data, "registry", lambda: {"mnist": mnist, "cifar-100": cifar})
    monkeypatch.setenv("COOKBOOK_DATA", str(tmp_path / "cache"))
    for name in ("COOKBOOK_MIRROR", "http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return files


CIFAR = {"train": 12, "test": 6}
BOMB = gzip.compress(bytes(200_000_000))


def pack(bins: dict[str, np.ndarray], compress=gzip.compress) -> bytes:
    """CIFAR-100's binary archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for split, content in bins.items():
            member = tarfile.TarInfo(f"cifar-100-binary/{split}.bin")
            member.size = content.size
            archive.addfile(member, io.BytesIO(content.tobytes()))
    return compress(buffer.getvalue())


def unpack(body: bytes) -> dict[str, np.ndarray]:
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        return {
            split: np.frombuffer(archive.extractfile(f"cifar-100-binary/{split}.bin").read(), np.uint8)
            for split in CIFAR
        }


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `faults` maps a path to what goes wrong with it."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes], **faults: str):
        self.files, self.faults, self.asked = files, faults, Counter()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        self.server.asked[path] += 1
        fault = self.server.faults.get("all", "") or self.server.faults.get(path.split("/")[-1][:5], "")
        body = self.server.files.get(path)
        if fault == "redirect" and not path.startswith("moved/"):
            self.send_response(302)
            self.send_header("Location", f"/moved/{path}")
            self.end_headers()
            return
        body = self.server.files.get(path.removeprefix("moved/"))
        if body is None or fault in ("404", "500"):
            self.send_error(500 if fault == "500" else 404)
            return
        if fault in ("endless", "bomb", "drip", "bad length", "bad redirect", "closes"):
            self.odd(fault)
            return
        if fault == "wrong bytes":
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "truncated":
            self.wfile.write(body[: len(body) // 2])
        elif fault == "stall":
            self.wfile.write(body[:10])
            self.wfile.flush()
            time.sleep(5)
        else:
            self.wfile.write(body)

    def odd(self, fault: str) -> None:
        """Answer as no server should."""
        if fault == "closes":
            return
        self.send_response(302 if fault == "bad redirect" else 200)
        if fault == "bad redirect":
            self.send_header("Location", "http://[::1")
        if fault == "bad length":
            self.send_header("Content-Length", "many")
        if fault == "bomb":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        with contextlib.suppress(OSError):
            if fault == "bomb":
                self.wfile.write(BOMB)
            for _ in range({"endless": 100_000, "drip": 20}.get(fault, 0)):
                self.wfile.write(bytes(10_000) if fault == "endless" else b"x")
                time.sleep(0 if fault == "endless" else 0.3)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving(files: dict[str, bytes], **faults: str):
    server = Server(files, **faults)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("packing", ["raw", "gzip"])
@pytest.mark.parametrize("place", ["folder", "address", "address/"])
def test_a_mirror_may_be_a_folder_or_an_address_raw_or_gzip(tiny, tmp_path, monkeypatch, packing, place):
    files = {k: v for k, v in tiny.items() if k.startswith("mnist/")}
    if packing == "gzip":
        files = {f"{name}.gz": gzip.compress(body) for name, body in files.items()}
    with serving(files) as server:
        if place == "folder":
            for name, body in files.items():
                (tmp_path / name).parent.mkdir(exist_ok=True)
                (tmp_path / name).write_bytes(body)
        mirror = {"folder": str(tmp_path), "address": server.address, "address/": f"{server.address}/"}
        monkeypatch.setenv("COOKBOOK_MIRROR", mirror[place])
        loaded = data.load("mnist")
    expected = np.frombuffer(tiny["mnist/train-images-idx3-ubyte"], np.uint8, offset=16)
    assert (loaded.train.images.ravel() == expected).all()
    assert loaded.source == "real"


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress], ids=["gzip", "xz"])
def test_a_repacked_archive_gives_the_same_arrays(tiny, tmp_path, monkeypatch, compress):
    monkeypatch.setenv("COOKBOOK_MIRROR", str(tmp_path))
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(tiny["cifar-100-binary.tar.gz"])
    original = data.load("cifar-100")
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cifar-100-binary.tar.gz").unlink()
    bins = {s: b.reshape(-1, 3074)[::-1] for s, b in unpack(tiny["cifar-100-binary.tar.gz"]).items()}
    suffix = "gz" if compress is gzip.compress else "xz"
    (tmp_path / f"cifar-100-binary.tar.{suffix}").write_bytes(pack(bins, compress))
    assert data.load("cifar-100").digest() == original.digest()
    record = unpack(tiny["cifar-100-binary.tar.gz"])["train"].reshape(-1, 3074)[0]
    image = record[2:].reshape(3, 32, 32).transpose(1, 2, 0)
    where = [i for i, other in enumerate(original.train.images) if (other == image).all()]
    assert len(where) == 1
    assert (original.train.coarse_labels[where[0]], original.train.labels[where[0]]) == tuple(record[:2])


def test_the_official_archive_passes_by_its_md5(tiny, tmp_path, monkeypatch):
    body = tiny["cifar-100-binary.tar.gz"]
    spec = data.registry()
    cifar = spec["cifar-100"]
    cifar["records"] = {"train": "other", "test": "other"}
    monkeypatch.setenv("COOKBOOK_MIRROR", str(tmp_path))
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(body)
    with pytest.raises(data.DatasetUnavailable, match="wrong bytes"):
        data.load("cifar-100")
    cifar["archive"]["md5"] = hashlib.md5(body).hexdigest()  # noqa: S324 - that is what was published
    assert data.load("cifar-100").sizes == CIFAR


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("404", "not there"),
        ("500", "the server answered 500"),
        ("truncated", "broken off|wrong bytes"),
        ("wrong bytes", "wrong bytes|no archive"),
        ("stall", "stalled"),
    ],
)
@pytest.mark.parametrize("name", ["mnist", "cifar-100"])
def test_a_bad_mirror_is_reported_and_the_next_one_serves(tiny, monkeypatch, fault, said, name):
    monkeypatch.setattr(download, "READ_SECONDS", 0.3)
    with serving(tiny, all=fault) as bad, serving(tiny) as good:
        monkeypatch.setenv("COOKBOOK_MIRROR", bad.address)
        with pytest.raises(data.DatasetUnavailable, match=said) as failure:
            data.load(name)
        assert bad.address in str(failure.value)
        assert not list(data.cache_folder().glob("*.npz"))
        data.registry()[name]["mirrors"] = [good.address + ("/mnist" if name == "mnist" else "")]
        assert data.load(name).source == "real"
        assert sum(good.asked.values()) > 0


def test_redirects_are_followed(tiny, monkeypatch):
    with serving(tiny, all="redirect") as server:
        monkeypatch.setenv("COOKBOOK_MIRROR", server.address)
        assert data.load("mnist").sizes == {"train": 20, "test": 10}


def test_a_mirror_that_lacks_one_file_is_helped_out_by_the_next(tiny, monkeypatch):
    partial = {name: body for name, body in tiny.items() if "t10k" not in name}
    with serving(partial) as bad, serving(tiny) as good:
        monkeypatch.setenv("COOKBOOK_MIRROR", bad.address)
        data.registry()["mnist"]["mirrors"] = [f"{good.address}/mnist"]
        assert data.load("mnist").source == "real"
        assert all("t10k" in path for path in good.asked)


@pytest.mark.parametrize("fault", ["endless", "bomb", "drip", "bad length", "bad redirect", "closes"])
def test_an_odd_server_neither_hangs_nor_fills_the_memory(tiny, monkeypatch, fault):
    monkeypatch.setattr(download, "READ_SECONDS", 1.0)
    monkeypatch.setattr(download, "PATIENCE_SECONDS", 1.0)
    start = time.monotonic()
    with serving(tiny, all=fault) as bad, serving(tiny) as good, peak_memory(30_000_000):
        monkeypatch.setenv("COOKBOOK_MIRROR", bad.address)
        data.registry()["mnist"]["mirrors"] = [f"{good.address}/mnist"]
        assert data.load("mnist").source == "real"
    assert time.monotonic() - start < 20


@contextlib.contextmanager
def peak_memory(most: int):
    """Fail if Python allocates more than `most` bytes at once in the block."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["mnist/train-images-idx3-ubyte.gz", "cifar-100-binary.tar.gz"])
def test_a_gzip_bomb_is_not_unpacked(tiny, tmp_path, monkeypatch, name):
    (tmp_path / "mnist").mkdir()
    (tmp_path / name).write_bytes(BOMB)
    monkeypatch.setenv("COOKBOOK_MIRROR", str(tmp_path))
    dataset = "mnist" if name.startswith("mnist") else "cifar-100"
    with peak_memory(20_000_000), pytest.raises(data.DatasetUnavailable, match=r"wrong bytes|holds 0 bytes"):
        data.load(dataset)


def test_a_raw_file_helps_out_where_the_packed_one_is_damaged(tiny, tmp_path, monkeypatch):
    for name, body in tiny.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(body)
        (tmp_path / f"{name}.gz").write_bytes(b"<html>")
    monkeypatch.setenv("COOKBOOK_MIRROR", str(tmp_path))
    assert data.load("mnist").source == "real"


def test_two_mirrors_may_complete_each_other(tiny, monkeypatch):
    halves = [{n: b for n, b in tiny.items() if ("labels" in n) == labels} for labels in (True, False)]
    with serving(halves[0]) as one, serving(halves[1]) as other:
        data.registry()["mnist"]["mirrors"] = [f"{one.address}/mnist", f"{other.address}/mnist"]
        assert data.load("mnist").source == "real"


# ---- what is said when nothing is to be had


def test_the_error_names_every_place_the_files_and_the_way_out(tiny, monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
    data.registry()["mnist"]["mirrors"] = [f"{dead}/a", f"{dead}/b"]
    monkeypatch.setenv("COOKBOOK_MIRROR", str(tmp_path / "nowhere"))
    with pytest.raises(data.DatasetUnavailable) as failure:
        data.load("mnist")
    said = str(failure.value)
    assert f"{tmp_path / 'cache' / 'mnist.npz'} (not there)" in said
    assert f"{tmp_path / 'nowhere'} (no such folder)" in said
    assert f"{dead}/a (Connection refused)" in said
    assert f"{dead}/b (Connection refused)" in said
    assert "mnist/t10k-labels-idx1-ubyte.gz" in said
    assert 'source="embedded"' in said
    assert "\n" not in said


def test_a_network_that_swallows_everything_is_given_up_within_five_seconds(tiny, monkeypatch):
    asked = []

    def swallow(where: tuple[str, int], **_: object) -> None:
        asked.append(where)
        time.sleep(6)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", swallow)
    data.registry()["mnist"]["mirrors"] = ["http://mirror.invalid/", "https://other.invalid/"]
    start = time.monotonic()
    with pytest.raises(data.DatasetUnavailable, match="no answer within 3 s"):
        data.load("mnist")
    assert time.monotonic() - start < 5
    assert sorted(asked) == [("mirror.invalid", 80), ("other.invalid", 443)]


@pytest.mark.parametrize(
    ("mirror", "said"),
    [
        ("http://[::1", "http://[::1 ("),
        ("http://127.0.0.1:99999", "http://127.0.0.1:99999 ("),
        ("ftp://127.0.0.1/", "neither a folder nor an http(s) address"),
        ("  ", "not there"),
        ("http://user:secret@127.0.0.1:9/x", "http://127.0.0.1:9/x (Connection refused)"),
        ("HTTP://127.0.0.1:9/", "HTTP://127.0.0.1:9/ (Connection refused)"),
    ],
)
def test_a_mirror_that_is_no_address_is_reported(tiny, monkeypatch, mirror, said):
    monkeypatch.setenv("COOKBOOK_MIRROR", mirror)
    start = time.monotonic()
    with pytest.raises(data.DatasetUnavailable, match=re.escape(said)) as failure:
        data.load("mnist")
    assert "secret" not in str(failure.value)
    assert time.monotonic() - start < 2


def test_where_nothing_can_be_reached_nobody_waits_for_anybody(tiny):
    with pytest.raises(data.DatasetUnavailable):
        data.load("mnist")
    assert not data.cache_folder().exists()  # and so no lock was taken


def test_proxies_are_found_as_requests_finds_them(tiny, monkeypatch):
    with serving({f"http://far.invalid/{name}": body for name, body in tiny.items()}) as proxy:
        monkeypatch.setenv("all_proxy", proxy.address)
        monkeypatch.setenv("COOKBOOK_MIRROR", "http://far.invalid/")
        assert data.load("mnist").source == "real"
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.0/8")
    with serving(tiny) as near:
        monkeypatch.setenv("COOKBOOK_MIRROR", near.address)
        assert data.load("cifar-100").source == "real"


def test_auto_falls_back_with_a_banner_and_real_never_does(tiny, caplog):
    with caplog.at_level(logging.WARNING):
        assert data.load("mnist", "auto").source == "embedded"
    assert "EMBEDDED STAND-IN DATA" in caplog.text
    with pytest.raises(data.DatasetUnavailable):
        data.load("mnist", "real")


def test_embedded_touches_neither_disk_nor_network(tiny, monkeypatch):
    monkeypatch.setattr(download, "fetch", lambda *_: pytest.fail("asked the network"))
    assert data.load("cifar-100", "embedded").source == "embedded"
    assert not data.cache_folder().exists()


@pytest.mark.parametrize(("name", "source"), [("minst", "real"), ("mnist", "fake"), ("MNIST", "embedded")])
def test_unknown_names_and_sources_are_refused(name, source):
    with pytest.raises(ValueError, match=name if source != "fake" else "fake"):
        data.load(name, source)


# ---- the cache


@pytest.fixture
def mirrored(tiny, monkeypatch):
    """A tiny registry whose mirror serves everything."""
    with serving(tiny) as server:
        monkeypatch.setenv("COOKBOOK_MIRROR", server.address)
        yield server


def test_the_second_load_comes_from_the_cache(mirrored):
    first = data.load("mnist")
    asked = mirrored.asked.total()
    assert data.load("mnist").digest() == first.digest()
    assert mirrored.asked.total() == asked > 0


@pytest.mark.parametrize(
    "damage", ["flip", "truncate", "empty", "text", "one array", "other shape", "other type"]
)
def test_a_damaged_cache_is_noticed_and_fetched_again(mirrored, caplog, damage):
    good = data.load("mnist").digest()
    path = data.cache_folder() / "mnist.npz"
    body = bytearray(path.read_bytes())
    if damage == "flip":
        body[len(body) // 2] ^= 1
    elif damage == "truncate":
        body = body[: len(body) // 2]
    elif damage == "empty":
        body = b""
    elif damage == "text":
        body = b"<html>not found</html>"
    elif damage == "one array":
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(3))
        body = buffer.getvalue()
    else:
        arrays = dict(np.load(path))
        change = {"other shape": lambda a: a[:3], "other type": lambda a: a.astype(np.int8)}[damage]
        body = packed({key: change(array) for key, array in arrays.items() if key != "sha256"})
    path.write_bytes(body)
    assert data.load("mnist").digest() == good
    assert data.load("mnist").digest() == good
    assert data.verify()["mnist"] == "right"
    assert caplog.text.count("is damaged and fetched again") == 1


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    """A cache file whose own digest is right, whatever it holds."""
    buffer = io.BytesIO()
    digest = data._sha256(arrays.values()).digest()
    np.savez(buffer, sha256=np.frombuffer(digest, np.uint8), **arrays)
    return buffer.getvalue()


def test_no_flipped_bit_of_the_cache_goes_unnoticed_or_breaks_the_loading(mirrored):
    good = data.load("mnist").digest()
    path, spec = data.cache_folder() / "mnist.npz", data.registry()["mnist"]
    body = path.read_bytes()
    places = [*range(300), *range(300, len(body), 97), *range(len(body) - 400, len(body))]
    harmless = 0
    for place in places:
        for bit in (1, 8, 32, 128):
            path.write_bytes(body[:place] + bytes([body[place] ^ bit]) + body[place + 1 :])
            arrays, said = data._read_cache(path, spec)
            if arrays is None:
                assert said
            else:  # a date or a comment of the archive: the arrays must be the same
                harmless += 1
                assert data._dataset("mnist", "real", spec, arrays).digest() == good
    assert harmless < len(places)  # of four times as many


def test_verify_finds_what_the_cache_cannot_know(mirrored):
    loaded = data.load("mnist")
    path = data.cache_folder() / "mnist.npz"
    arrays = {key: np.load(path)[key] for key in data._shapes(data.registry()["mnist"])}
    arrays["test_labels"] = arrays["test_labels"] ^ 1
    path.write_bytes(packed(arrays))
    assert data.verify()["mnist"] == "WRONG: t10k-labels-idx1-ubyte"
    assert loaded.sizes["test"] == 10


def test_two_processes_at_once_download_once(mirrored):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(3), context.Queue()

    def work() -> None:
        barrier.wait()
        answers.put(data.load("mnist").digest())

    workers = [context.Process(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    digests = {answers.get(timeout=30) for _ in workers}
    for worker in workers:
        worker.join()
    assert digests == {data.load("mnist").digest()}
    downloads = {path: count for path, count in mirrored.asked.items() if not path.endswith(".gz")}
    assert set(downloads.values()) == {1}


def in_child(work) -> str:
    """Run `work` in a forked child and return what it said; its damage stays there."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=lambda: answers.put(work()))
    child.start()
    answer = answers.get(timeout=30)
    child.join()
    return answer


def said_while_loading() -> str:
    """Load MNIST and return its source and what was logged."""
    log = io.StringIO()
    logging.getLogger("recipes.data").addHandler(logging.StreamHandler(log))
    return f"{data.load('mnist').source}: {log.getvalue()}"


def test_a_read_only_cache_folder_costs_only_the_caching(mirrored, monkeypatch):
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    monkeypatch.setenv("COOKBOOK_DATA", str(folder))

    def work() -> str:
        if os.geteuid() == 0:  # permissions do not bind root
            os.setuid(65534)
        return said_while_loading()

    try:
        said = in_child(work)
        assert said.startswith("real: ")
        assert "cannot be written (Permission denied): set COOKBOOK_DATA" in said
        assert not list(folder.iterdir())
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_no_space_left_costs_only_the_caching(mirrored):
    def work() -> str:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # the kernel refuses larger files
        return said_while_loading()

    said = in_child(work)
    assert said.startswith("real: ")
    assert "mnist.npz cannot be written: File too large; it is kept for this run only" in said
    assert [path.name for path in data.cache_folder().iterdir()] == ["mnist.lock"]


def test_what_a_killed_process_left_is_swept_up(mirrored):
    data.cache_folder().mkdir()
    left_over = data.cache_folder() / ".mnist.npz.abc.npz"
    left_over.touch()
    data.load("mnist")
    assert not left_over.exists()


def test_a_file_system_without_locks_will_do(mirrored, monkeypatch, caplog):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert data.load("mnist", "auto").source == "real"
    assert "cannot be locked (No locks available)" in caplog.text


@pytest.mark.parametrize("obstacle", ["the folder is a file", "the file is a folder"])
def test_a_cache_that_is_no_cache_costs_only_the_caching(mirrored, caplog, obstacle):
    if obstacle == "the folder is a file":
        data.cache_folder().write_text("")
    else:
        (data.cache_folder() / "mnist.npz").mkdir(parents=True)
    assert data.load("mnist").source == "real"
    assert "cannot be written" in caplog.text
    assert "damaged" not in caplog.text


# ---- the command line


def test_list_where_and_verify(python, tmp_path):
    environment = os.environ | {"COOKBOOK_DATA": str(tmp_path), "COOKBOOK_MIRROR": "/nowhere"}
    for command in ("list", "where", "verify"):
        done = python("-m", "recipes.data", command, env=environment)
        assert done.returncode == 0, done.stderr
        for name in CLASSES:
            assert name in done.stdout
    assert "/nowhere" in python("-m", "recipes.data", "where", env=environment).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["fetch", "moon"], "moon"), (["fetch"], "name"), (["frob"], "frob"), ([], "list")],
)
def test_bad_commands_get_one_line(python, arguments, said):
    done = python("-m", "recipes.data", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_fetch_without_data_is_the_environments_fault(python, tmp_path):
    proxy = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    environment = os.environ | proxy | {"COOKBOOK_DATA": str(tmp_path), "COOKBOOK_MIRROR": ""}
    done = python("-m", "recipes.data", "fetch", "mnist", env=environment)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Connection refused" in done.stderr
