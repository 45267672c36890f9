"""Federated averaging against closed forms, against TensorFlow Federated, and as a command."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes import federated_averaging as fa
from recipes.files import shipped

COMMAND = [sys.executable, "-m", "recipes.federated_averaging"]


def some_client(count: int, seed: int = 0) -> fa.Examples:
    rng = np.random.default_rng(seed)
    return fa.Examples(rng.random((count, 784), np.float32), rng.integers(0, 10, count, np.uint8))


def some_model(seed: int = 0) -> fa.Model:
    rng = np.random.default_rng(seed)
    return fa.Model(
        rng.normal(size=(784, 10)).astype(np.float32) / 10, rng.normal(size=10).astype(np.float32)
    )


# ---- the protocol's parts, against closed forms


def test_a_clients_first_step_from_zeros_is_the_closed_form():
    # At zero every class has probability 1/10, so the gradient is X^T (1/10 - onehot) / B.
    client = some_client(8)
    update = fa.client_update(fa.initial_model(), client, fa.Config(batch_size=8, learning_rate=0.5))
    error = np.full((8, 10), 0.1)
    error[np.arange(8), client.labels] -= 1
    assert update.model.weights == pytest.approx(-0.5 * client.pixels.T @ error / 8, abs=1e-6)
    assert update.model.bias == pytest.approx(-0.5 * error.mean(axis=0), abs=1e-6)
    assert update.examples == 8
    assert update.loss / 8 == pytest.approx(np.log(10), abs=1e-6)


def test_a_clients_step_is_the_numerical_gradient():
    client, model, config = some_client(5), some_model(), fa.Config(batch_size=5, learning_rate=1.0)
    step = model.bias - fa.client_update(model, client, config).model.bias
    for label in range(10):
        shift = np.zeros(10)
        shift[label] = 1e-4
        losses = [
            fa.evaluate(fa.Model(model.weights.astype(float), model.bias + sign * shift), client)[1]
            for sign in (1, -1)
        ]
        assert step[label] == pytest.approx((losses[0] - losses[1]) / 2e-4, abs=1e-4)


def test_a_client_does_not_change_what_the_server_sent():
    model = some_model()
    before = [array.copy() for array in model]
    fa.client_update(model, some_client(40), fa.Config())
    assert all((now == then).all() for now, then in zip(model, before, strict=True))


def test_the_last_small_batch_is_averaged_over_its_own_size():
    client, config = some_client(33), fa.Config(batch_size=32)
    first = fa.client_update(fa.initial_model(), fa.Examples(*(a[:32] for a in client)), config)
    last = fa.client_update(first.model, fa.Examples(*(a[32:] for a in client)), config)
    both = fa.client_update(fa.initial_model(), client, config)
    assert (both.model.weights == last.model.weights).all()
    assert both.correct == first.correct + last.correct


def test_two_local_epochs_are_two_passes():
    client = some_client(50)
    once = fa.client_update(fa.initial_model(), client, fa.Config())
    again = fa.client_update(once.model, client, fa.Config())
    both = fa.client_update(fa.initial_model(), client, fa.Config(local_epochs=2))
    assert (both.model.weights == again.model.weights).all()
    assert both.loss == pytest.approx(once.loss + again.loss)


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_average_is_weighted_by_examples(counts, random):
    models = [some_model(random.randrange(2**31)) for _ in counts]
    updates = [fa.Update(model, n, 0, 0.0) for model, n in zip(models, counts, strict=True)]
    expected = sum(n * m.weights.astype(float) for m, n in zip(models, counts, strict=True)) / sum(counts)
    assert fa.server_update(updates).weights == pytest.approx(expected, abs=1e-6)
    random.shuffle(updates)
    assert fa.server_update(updates).weights == pytest.approx(expected, abs=1e-6)


def test_one_client_alone_is_plain_sgd():
    client, config = some_client(70), fa.Config()
    (first, second) = (step for step, _ in zip(fa.federated_rounds([client], config), range(2), strict=False))
    alone = fa.client_update(fa.initial_model(), client, config)
    assert (first.model.weights == alone.model.weights).all()
    assert (second.model.weights == fa.client_update(alone.model, client, config).model.weights).all()


def test_with_one_batch_a_client_federated_averaging_is_centralised_gradient_descent():
    # FedSGD: the mean of the clients' full-batch steps is the step on the pooled batch.
    clients = [some_client(12, seed=1), some_client(30, seed=2)]
    pooled = fa.Examples(*map(np.concatenate, zip(*clients, strict=True)))
    config = fa.Config(batch_size=100, learning_rate=0.1)
    federated, alone = next(fa.federated_rounds(clients, config)), next(fa.federated_rounds([pooled], config))
    assert federated.model.weights == pytest.approx(alone.model.weights, abs=1e-6)
    assert federated.train_loss == pytest.approx(alone.train_loss)


def test_a_client_without_examples_is_refused():
    with pytest.raises(ValueError, match="no examples"):
        fa.client_update(fa.initial_model(), some_client(0), fa.Config())


def test_log_softmax_survives_large_logits():
    assert fa.log_softmax(np.float32([[1e4, 0.0, -1e4]])).tolist() == [[0.0, -1e4, -2e4]]


@pytest.mark.parametrize("before", [fa.initial_model(), some_model()], ids=["zeros", "trained"])
def test_an_update_of_one_image_gives_the_image_away(before):
    for seed in range(10):
        client = some_client(1, seed)
        after = fa.client_update(before, client, fa.Config(learning_rate=0.5, local_epochs=2)).model
        pixels, label = fa.image_from_update(before, after)
        assert label == client.labels[0]
        assert pixels == pytest.approx(client.pixels[0], abs=1e-3)  # float32, at worst


def test_an_update_of_many_images_does_not():
    client = some_client(32)
    after = fa.client_update(fa.initial_model(), client, fa.Config()).model
    pixels, _ = fa.image_from_update(fa.initial_model(), after)
    assert np.abs(client.pixels - pixels).mean(axis=1).min() > 0.1


def test_two_clients_have_no_secrets_from_each_other():
    # The average of two gives each the other's model: twice the average less one's own.
    clients = [some_client(40, seed=1), some_client(40, seed=2)]
    updates = [fa.client_update(fa.initial_model(), client, fa.Config()) for client in clients]
    average = fa.server_update(updates)
    assert 2 * average.weights - updates[0].model.weights == pytest.approx(updates[1].model.weights, abs=1e-6)


# ---- the source chapter's figures, on real data


def test_the_first_rounds_in_file_order(real_fashion_mnist):
    result = fa.run(fa.Config(data="real", rounds=3))
    assert result.train_accuracy == pytest.approx([0.743367, 0.806983, 0.821250], abs=5e-7)
    assert result.train_loss == pytest.approx([0.820889, 0.591461, 0.542566], abs=2e-6)
    assert result.test_accuracy[0] == pytest.approx(0.7872, abs=5e-5)


CHAPTER = ("0.743650", "0.820713")  # it printed 0.74365 and 0.82071316


def figures(result: fa.Result) -> tuple[str, str]:
    """Training accuracy and loss of the first round, to six digits."""
    return f"{result.train_accuracy[0]:.6f}", f"{result.train_loss[0]:.6f}"


def test_the_first_round_in_the_chapters_order(real_fashion_mnist):
    result = fa.run(fa.Config(data="real", order="chapter"))
    assert figures(result) == CHAPTER
    assert result.test_accuracy[0] == pytest.approx(0.7888, abs=5e-5)


def test_the_chapters_order_is_a_permutation_of_the_training_set():
    order = np.load(shipped("datasets", "fashion-mnist-tfds-1.3.2-order.npy"))
    assert order.shape == (2, 30_000)
    assert (np.sort(order, axis=None) == np.arange(60_000)).all()


# ---- TensorFlow Federated


def test_tff_and_the_reference_reach_the_same_weights():
    # Clients of different sizes, so that the weighting counts, and a last batch that is not full.
    clients = [some_client(100, seed=1), some_client(260, seed=2)]
    config = fa.Config(local_epochs=2, learning_rate=0.1)
    with contextlib.closing(fa.tff_rounds(clients, config)) as rounds:
        for tff, reference in zip(rounds, fa.federated_rounds(clients, config), strict=False):
            assert np.abs(tff.model.weights - reference.model.weights).max() < 1e-5
            assert np.abs(tff.model.bias - reference.model.bias).max() < 1e-5
            assert tff.train_accuracy == pytest.approx(reference.train_accuracy, abs=1e-6)
            assert tff.train_loss == pytest.approx(reference.train_loss, rel=1e-5)
            if reference.train_loss < 1.9:
                break
    assert workers_of(os.getpid()) == []


@pytest.mark.parametrize(("order", "expected"), [("chapter", CHAPTER), ("file", ("0.743367", "0.820889"))])
def test_tff_gives_the_figures_in_both_orders(real_fashion_mnist, order, expected):
    reference = fa.run(fa.Config(data="real", order=order))
    result = fa.run(fa.Config(data="real", order=order, engine="tff"))
    assert figures(result) == figures(reference) == expected
    assert result.test_accuracy == reference.test_accuracy
    assert np.abs(result.weights - reference.weights).max() < 1e-5
    assert np.abs(result.bias - reference.bias).max() < 1e-5


def workers_of(pid: int) -> list[psutil.Process]:
    """The TFF servers below a process."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == "worker_binary" and alive(child):
                found.append(child)
    return found


def alive(process: psutil.Process) -> bool:
    """Whether it runs: one that has ended and waits for its parent to ask does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_no_worker_outlives_a_run_and_a_pipe_ends(root):
    arguments = "--engine tff --data embedded"
    command = f"'{sys.executable}' -m recipes.federated_averaging {arguments} 2>&1 | tail -n 1"
    process = subprocess.Popen(["/bin/sh", "-c", command], cwd=root, stdout=subprocess.PIPE, text=True)
    workers = wait_for_workers(process)
    said, _ = process.communicate(timeout=120)
    assert said.startswith("The clients sent 62,800 bytes")
    assert not any(map(alive, workers))


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_run_that_is_interrupted_leaves_no_worker(root, by):
    process = subprocess.Popen(
        [*COMMAND, "--engine", "tff", "--data", "embedded", "--rounds", "50"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    workers = wait_for_workers(process)
    time.sleep(3)
    process.send_signal(by)
    said, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + by
    assert "Traceback" not in said + errors
    assert not any(map(alive, workers))


def wait_for_workers(process: subprocess.Popen) -> list[psutil.Process]:
    for _ in range(600):
        if workers := workers_of(process.pid):
            return workers
        time.sleep(0.1)
    raise AssertionError("no worker_binary was started")


# ---- runs and their results


@pytest.fixture(scope="module")
def embedded() -> fa.Result:
    """Two rounds on the stand-ins."""
    return fa.run(fa.Config(data="embedded", rounds=2))


def test_a_result_has_an_entry_for_every_round(embedded):
    for name in ("train_accuracy", "train_loss", "test_accuracy", "test_loss", "centralised_accuracy"):
        assert len(getattr(embedded, name)) == embedded.rounds == 2
    assert embedded.test_accuracy[1] > embedded.test_accuracy[0] > 0.5
    assert embedded.bytes_up == embedded.bytes_down == 2 * 2 * (784 * 10 + 10) * 4
    assert embedded.data_source == "embedded"
    assert embedded.reconstruction_mse < 1e-10


def test_the_text_and_the_figure_say_where_the_data_came_from(embedded):
    assert "(embedded)" in fa.describe(embedded)
    assert len(fa.describe(embedded).splitlines()) == 5
    axes = fa.plot(embedded).axes[0]
    assert "embedded" in axes.get_title()
    assert [line.get_ydata().tolist() for line in axes.lines] == [
        list(embedded.centralised_accuracy),
        list(embedded.test_accuracy),
    ]


def test_the_largest_steps_stay_finite():
    # The gradient of softmax regression is bounded, so a large rate is useless and does no harm.
    result = fa.run(fa.Config(data="embedded", learning_rate=1000, batch_size=1000))
    assert np.isfinite([result.train_loss[0], result.test_loss[0]]).all()


def test_a_seed_decides_the_shuffle():
    runs = [fa.run(fa.Config(data="embedded", order="shuffled", seed=seed)) for seed in (1, 1, 2)]
    assert (runs[0].weights == runs[1].weights).all()
    assert (runs[0].weights != runs[2].weights).any()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("rounds", 0), ("rounds", 2**63), ("local_epochs", 0), ("batch_size", -1), ("seed", -1)),
        *(("learning_rate", rate) for rate in (0.0, -1.0, 1e-320, 1e308, float("nan"), float("inf"))),
    ],
)
def test_a_bad_config_is_refused_by_name_and_value(field, value):
    with pytest.raises(ValueError, match=re.escape(f"{field} is {value}")):
        fa.Config(**{field: value})


# ---- the command line


def test_json_and_plot_are_written(python, tmp_path):
    done = python(
        *("-m", "recipes.federated_averaging", "--data", "embedded", "--rounds", "2"),
        *("--json", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.png")),
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out.json").read_text())
    assert set(record) == {"config", "result", "environment", "seconds"}
    keys = "engine data_source rounds train_accuracy train_loss test_accuracy bytes_up bytes_down"
    assert set(keys.split()) <= set(record["result"])
    assert record["config"]["rounds"] == record["result"]["rounds"] == 2
    assert record["result"]["data_source"] == "embedded"
    assert record["environment"]["numpy"] == np.__version__
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.png"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--rounds zero", "--rounds"),
        ("--rounds 0", "rounds is 0: it must lie between 1 and 1,000,000"),
        ("--rounds", "--rounds"),
        ("--frobnicate", "--frobnicate"),
        ("--data fake", "'real', 'embedded', 'auto'"),
        ("--profile slow", "'quick', 'full'"),
        ("--engine pytorch", "'reference', 'tff'"),
        ("--learning-rate nan", "learning_rate is nan"),
        ("--json /nowhere/out.json", "/nowhere"),
        ("--json /", "it is a folder"),
        ("--json /dev/stdout", "it is no regular file"),
        ("--json here.json --plot here.json", "name two files"),
        ("--card --rounds 2", "--card"),
        ("--rounds 9223372036854775808", "between 1 and 1,000,000"),
        ("--learning-rate 1e308", "between 1e-9 and 1000"),
        ("--plot out.gif", ".png, .pdf or .svg"),
        ("positional", "positional"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(python, arguments, said):
    done = python("-m", "recipes.federated_averaging", *arguments.split())
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_missing_data_are_the_environments_fault(python, tmp_path):
    proxy = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    environment = os.environ | proxy | {"COOKBOOK_DATA": str(tmp_path), "COOKBOOK_MIRROR": ""}
    (tmp_path / "out.json").write_text("before")
    arguments = ("-m", "recipes.federated_averaging", "--json", str(tmp_path / "out.json"))
    done = python(*arguments, "--data", "real", env=environment)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "fashion-mnist is not available" in done.stderr
    assert (tmp_path / "out.json").read_text() == "before"
    done = python(*arguments, env=environment)  # --data auto
    assert done.returncode == 0
    assert "EMBEDDED STAND-IN DATA" in done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["result"]["data_source"] == "embedded"


def test_a_reader_that_has_seen_enough_ends_the_run_quietly(root):
    command = f"'{sys.executable}' -m recipes.federated_averaging --data embedded | true"
    done = subprocess.run(["/bin/sh", "-c", command], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


def test_the_full_profile_runs_tff():
    assert fa.PROFILES["full"].engine == "tff"
    assert fa.PROFILES["quick"] == fa.Config()


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_do_no_harm(root, tmp_path, redirection):
    out = tmp_path / "out.json"
    command = (
        f"'{sys.executable}' -m recipes.federated_averaging --data embedded --json '{out}' {redirection}"
    )
    done = subprocess.run(["/bin/sh", "-c", command], cwd=root, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode == 0
    assert json.loads(out.read_text())["result"]["rounds"] == 1
    bad = subprocess.run(
        ["/bin/sh", "-c", command.replace("--data embedded", "--rounds 0")],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert bad.returncode == 2
    assert bad.stdout == ""


@pytest.mark.parametrize("flags", ["--help", "--data embedded", "--rounds zero"])
def test_a_terminal_without_unicode_is_told_in_ascii(python, flags):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = python("-m", "recipes.federated_averaging", *flags.split(), env=environment)
    assert done.returncode == (2 if flags == "--rounds zero" else 0)
    assert "codec" not in done.stderr
    assert done.stderr.count("\n") == (1 if flags == "--rounds zero" else 0)


def test_help_describes_every_flag(python):
    said = python("-m", "recipes.federated_averaging", "--help").stdout
    for flag in ("--data", "--engine", "--order", "--rounds", "--profile", "--json", "--plot", "--card"):
        assert flag in said
    assert "models/" in said
