"""Training on two CPU processes: the gradients and the weights of one process with the doubled batch."""

import os
import signal
import socket

import pytest
import safetensors.torch
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from equidyn.core.errors import InputError
from equidyn.tasks import TrajectoryTask
from equidyn.train import read_recipe
from equidyn.train.fit import EpochSampler
from equidyn.train.module import TrainingModule


@pytest.fixture(autouse=True)
def _no_endless_wait():
    """Processes that wait for each other fail a test instead of holding it up for ever."""

    def stop(*_):
        raise TimeoutError("processes wait for each other")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(240)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Loss(nn.Module):
    """What the trainer distributes: a module that gives the loss alone."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, batch):
        return sum(self.module.task.loss(self.module.model(batch), batch).values())


def gradients(loss, module, batch):
    for _ in range(2):  # a parameter left without gradient would stop the second step
        module.zero_grad()
        loss(batch).backward()
    return {name: p.grad for name, p in module.model.named_parameters() if p.grad is not None}


def build(content):
    torch.manual_seed(0)
    recipe = read_recipe(content)
    module = TrainingModule(recipe.build_model(), TrajectoryTask(), recipe.train, steps_per_epoch=1)
    return module, recipe.build_data().part("train")


def worker(rank, contents, port, out):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    found = []
    for content in contents:
        module, part = build(content)
        parallel = DistributedDataParallel(Loss(module), find_unused_parameters=True)
        found.append(gradients(parallel, module, part.__getitems__(list(range(rank, 16, 2)))))
    torch.save(found, out / f"{rank}.pt")
    os._exit(0)  # taking the group down can wait for a process that has gone already


def test_gradients_of_two_processes_are_those_of_the_whole_batch(content, tmp_path):
    one_step = {"system": "egnn", "model": {"node_dim": 1, "edge_dim": 2, "hidden_dim": 8, "num_layers": 2}}
    contents = [content, content | one_step]  # the last features of EGNN are not used: parameters without gradients
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(worker, (contents, port, tmp_path), nprocs=2)
    halves = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True)
    for content, (first, second) in zip(contents, halves, strict=True):
        module, part = build(content)
        whole = gradients(Loss(module), module, part.__getitems__(list(range(16))))
        assert first.keys() == second.keys() == whole.keys()
        scale = max(float(g.abs().max()) for g in whole.values())
        for name, gradient in whole.items():
            assert torch.equal(first[name], second[name])
            assert (first[name] - gradient).abs().max() < 1e-6 * scale, name


def test_two_processes_train_as_one_with_the_doubled_batch(content, tiny_train):
    options = {"epochs": 2, "eval_every": 1, "schedule": "cosine", "warmup": 0.5, "clip": 1.0, "ema": 0.5}
    one = tiny_train("one", batch_size=8, precision="64", **options)
    two = tiny_train("two", batch_size=4, precision="64", devices=2, **options)
    assert sorted(os.listdir(two)) == sorted(os.listdir(one))
    assert os.listdir(two / "checkpoints") == ["last.ckpt"]
    kept = [safetensors.torch.load_file(folder / "model.safetensors") for folder in (one, two)]
    for name, value in kept[0].items():
        if (
            "conv" not in name
        ):  # the imaginary part of mode 0 has no effect: its gradient is rounding, which Adam scales
            assert torch.allclose(value, kept[1][name], rtol=0, atol=1e-9), name
    read = lambda folder: [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]  # noqa: E731
    for a, b in zip(read(one), read(two), strict=True):
        assert a[:2] == b[:2]
        assert list(map(float, a[4:])) == pytest.approx(list(map(float, b[4:])), rel=1e-6)


def test_an_error_in_a_process_is_one_line(content, tiny_train, monkeypatch):
    def fit(*_args, **_more):
        text = (
            "-- Process 1 terminated\nTraceback:\n  ...\nequidyn.core.errors.InputError: the loss is bad, in epoch 1\n"
        )
        raise multiprocessing.ProcessRaisedException(text, 1, 123)

    monkeypatch.setattr("lightning.pytorch.Trainer.fit", fit)
    with pytest.raises(InputError, match=r"^the loss is bad, in epoch 1$"):
        tiny_train(devices=2)


def test_processes_share_an_epoch(monkeypatch):
    whole = list(EpochSampler(11, seed=1))
    parts = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        sampler = EpochSampler(11, seed=1, processes=3)
        parts.append(list(sampler))
        assert len(parts[-1]) == len(sampler) == 3
    assert [i for step in zip(*parts, strict=True) for i in step] == whole[:9]


def test_batches_must_fit_each_process(tiny_train):
    with pytest.raises(InputError, match="batch_size, in tiny, expected 1 to 8, got 9"):
        tiny_train(devices=2, batch_size=9)
