"""The networks that an audit trains: the targets, and references that are trained as the target was.

References come in pairs that halve the records by the toss of a coin a record: one is trained on the
heads, the other on the tails, so that each record has as many references that were trained on it as such
that were not. They train in parallel, one a core; what each answers is written to a file as it ends, so
that a run that was stopped goes on.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from recipes import progress, training, weights
from recipes.files import written_whole
from recipes.membership_inference import attacks, posterior
from recipes.membership_inference.config import COMMAND, Training
from recipes.membership_inference.fitting import Examples, Fit, fit

VERSION = 1
"""Of the training: whoever changes what comes of it adds one, so that older files are not taken up."""


@dataclass(frozen=True)
class Plan:
    """What networks are trained on, how, and what they are asked afterwards."""

    network: nn.Module
    """The architecture; each network draws weights of its own."""
    examples: Examples
    """The records (N)."""
    population: Examples
    """Records that no network is trained on (P)."""
    how: Training
    kept: Examples | None = None
    """What early stopping looks at."""
    mirror: bool = True
    """Ask about mirror images, too."""
    seed: int = 0

    @functools.cached_property
    def digest(self) -> bytes:
        """SHA-256 of all of it."""
        digest = hashlib.sha256(
            repr((VERSION, self.how, self.mirror, self.seed, repr(self.network))).encode()
        )
        digest.update(_answers(anew(self.network, 0).eval(), self.examples[0][:20]).tobytes())
        for inputs, labels in filter(None, (self.examples, self.population, self.kept)):
            digest.update(np.ascontiguousarray(inputs))
            digest.update(np.ascontiguousarray(labels.astype(np.int64)))
        return digest.digest()


@dataclass(frozen=True)
class Job:
    """One network to train."""

    name: str
    """Such as `overfitted_3`: of its file."""
    plan: Plan
    trained_on: np.ndarray
    """`[N]` bool."""
    number: int
    """Makes its seed; 0 for a target."""
    keep_weights: bool = False

    @functools.cached_property
    def file_name(self) -> str:
        """Two networks that were not trained alike have different ones."""
        digest = hashlib.sha256(self.plan.digest + np.packbits(self.trained_on).tobytes())
        digest.update(repr((self.number, self.keep_weights)).encode())
        return f"{self.name}_{digest.hexdigest()[:12]}.safetensors"


@dataclass(frozen=True)
class Trained:
    """A network that was trained: what it answers, and what it cost."""

    trained_on: np.ndarray
    """`[N]` bool."""
    confidences: np.ndarray
    """`[V, N]` float32: phi of each record's label, for V views of the record."""
    population: np.ndarray
    """`[V, P]` float32."""
    deviations: np.ndarray | None
    """`[N]` float32, the posterior's standard deviation of phi; None if the last layer is not nn.Linear."""
    fit: Fit
    train_accuracy: float
    test_accuracy: float
    """On the population."""
    weights: dict[str, torch.Tensor] | None = None


def _answers(network: nn.Module, inputs: np.ndarray) -> np.ndarray:
    """Logits, which tell apart networks that look alike; in double precision, so that they are the same to
    three digits on every machine."""
    try:
        answers = training.predict(network.double(), inputs.astype(np.float64))
    except RuntimeError:  # one that converts to single precision itself
        answers = training.predict(network.float(), inputs)
    return answers.astype(np.float64).round(3) + 0.0  # no -0.0


def halves(records: int, pairs: int, seed: int) -> np.ndarray:
    """What each reference is trained on: `[2 * pairs, N]` bool, each odd row the one before turned over."""
    heads = np.random.default_rng((seed, 1)).random((pairs, records)) < 0.5
    return np.stack([heads, ~heads], axis=1).reshape(2 * pairs, records)


def anew(network: nn.Module, seed: int) -> nn.Module:
    """A copy of a network with new initial weights; PyTorch's global generator is left alone.

    Raises:
        ValueError: a layer does not say how its weights are drawn.
    """
    fresh = copy.deepcopy(network).requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in fresh.named_modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif any(True for _ in module.parameters(recurse=False)):
                raise ValueError(
                    f"layer {name} ({type(module).__name__}) has weights but no reset_parameters(), so that "
                    "no reference network can be drawn: give it one, or take references=0"
                )
    return fresh


def train_all(jobs: Sequence[Job], folders: Sequence[Path] = (), workers: int | None = None) -> list[Trained]:
    """Train the networks that no folder holds yet, in parallel.

    Args:
        jobs: what to train.
        folders: where what was trained is looked for; what is trained now is written to the last one.
        workers: processes, one thread each; None: one a core.

    Raises:
        ValueError: a file is damaged.
    """
    done = [_found(job, folders) for job in jobs]
    missing = [i for i, trained in enumerate(done) if trained is None]
    for job in (jobs[i] for i in missing):
        anew(job.plan.network, 0)  # before hours of work: can it be done at all?
    if folders and missing:
        folders[-1].mkdir(parents=True, exist_ok=True)
    into = folders[-1] if folders else None
    work = in_parallel(_train_one, [(jobs[i], into) for i in missing], workers, "training networks")
    for i, trained in zip(missing, work, strict=True):
        done[i] = trained
    return done


def in_parallel(
    work: Callable[..., Any], arguments: Sequence[tuple], workers: int | None = None, what: str = ""
) -> Iterator:
    """Call a function with each of some arguments, in processes with one thread each; results in order.

    Args:
        work: what to call; it may be defined in a notebook. Large arrays are shared, not copied.
        arguments: one tuple a call.
        workers: processes; None: one a core.
        what: what they do, for a progress bar.
    """
    from multiprocessing import resource_tracker

    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky import get_reusable_executor

    resource_tracker.ensure_running()  # as it unblocks interrupts when it starts
    workers = min(workers or len(os.sched_getaffinity(0)), max(1, len(arguments)))
    with warnings.catch_warnings(), parallel_config("loky", n_jobs=workers, inner_max_num_threads=1):
        warnings.filterwarnings("ignore", "A worker stopped")  # having grown: another takes its place
        calls = (delayed(_in_a_worker)(work, *one) for one in arguments)
        try:
            with _interrupts_blocked():  # the workers start here, and end when we say so
                done = Parallel(return_as="generator", mmap_mode="c")(calls)
            yield from progress.bar(done, what, unit="network", total=len(arguments))
        except BaseException:
            get_reusable_executor().shutdown(kill_workers=True)  # else they would end their work first
            raise


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C waits until the end of the block, and does not reach processes that are started in it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_a_worker(work: Callable[..., Any], *arguments: Any) -> Any:
    os.environ["TQDM_DISABLE"] = "1"  # one process draws
    tqdm.set_lock(threading.RLock())  # its own lock is for several processes, and outlives a killed one
    return work(*arguments)


def _train_one(job: Job, folder: Path | None) -> Trained:
    torch.set_num_threads(1)
    plan = job.plan
    seed = int(np.random.SeedSequence((plan.seed, 2, job.number)).generate_state(1)[0]) >> 1
    inputs, labels = plan.examples
    network = anew(plan.network, seed)
    begin = time.process_time()
    fitted = fit(network, (inputs[job.trained_on], labels[job.trained_on]), plan.how, seed, plan.kept)
    asked = [confidences(network, examples, plan.mirror) for examples in (plan.examples, plan.population)]
    trained = Trained(
        job.trained_on,
        *asked,
        posterior.deviations(network, inputs, labels, job.trained_on, seed=seed),
        Fit(fitted.epochs, fitted.epsilon, fitted.statement, time.process_time() - begin),
        training.accuracy(network, inputs[job.trained_on], labels[job.trained_on]),
        training.accuracy(network, *plan.population),
        {k: v.contiguous() for k, v in network.state_dict().items()} if job.keep_weights else None,
    )
    if folder:
        _write(folder / job.file_name, trained)
    return trained


def confidences(network: nn.Module, examples: Examples, mirror: bool) -> np.ndarray:
    """phi of each record's label as the record is, and mirrored along its last axis: `[V, N]` float32."""
    inputs, labels = examples
    views = [inputs, np.ascontiguousarray(inputs[..., ::-1])] if mirror else [inputs]
    asked = [attacks.confidences(training.predict(network, view), labels) for view in views]
    return np.stack(asked).astype(np.float32)


# --- files ------------------------------------------------------------------------------------------


def _write(path: Path, trained: Trained) -> None:
    arrays = {"confidences": trained.confidences, "population": trained.population}
    if trained.deviations is not None:
        arrays["deviations"] = trained.deviations
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    weights = {f"weights.{name}": value for name, value in (trained.weights or {}).items()}
    numbers = {
        **asdict(trained.fit),
        "train_accuracy": trained.train_accuracy,
        "test_accuracy": trained.test_accuracy,
    }
    with written_whole(path) as temporary:
        save_file({**tensors, **weights}, temporary, {"trained": json.dumps(numbers)})


def _found(job: Job, folders: Sequence[Path]) -> Trained | None:
    for folder in folders:
        if weights.is_there(folder / job.file_name, COMMAND):
            return _read(folder / job.file_name, job)
    return None


def _read(path: Path, job: Job) -> Trained:
    try:
        with safe_open(path, "pt") as file:
            numbers = json.loads(file.metadata()["trained"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        weights = {
            name.removeprefix("weights."): value
            for name, value in tensors.items()
            if name.startswith("weights.")
        }
        accuracies = numbers.pop("train_accuracy"), numbers.pop("test_accuracy")
        deviations = tensors.get("deviations")
        return Trained(
            job.trained_on,
            tensors["confidences"].numpy(),
            tensors["population"].numpy(),
            None if deviations is None else deviations.numpy(),
            Fit(**numbers),
            *accuracies,
            weights or None,
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: remove it, and it is made anew ({error})") from error
