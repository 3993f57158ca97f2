import numpy as np
import pytest
import torch

from fedllm.config import RoundsSection
from fedllm.errors import CheckpointError, TrainingError
from fedllm.models.manifest import AdapterManifest
from fedllm.training.optimizers import Optimizer
from fedllm.training.server_optimizer import ServerOptimizer

MANIFEST = AdapterManifest.of([("a.lora_A", (3, 2), "lora"), ("head.weight", (4,), "head")])
START = np.linspace(-1, 1, 10, dtype=np.float32)


def updates(count):
    return np.random.default_rng(0).normal(size=(count, 10))


def server(**keys):
    return ServerOptimizer(RoundsSection(**keys), MANIFEST)


def test_average_with_rate_one_is_fedavg():
    update = updates(1)[0]
    result = server().apply(START, update)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, START + update, rtol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "oracle"),
    [
        ("average", torch.optim.SGD),
        ("momentum", lambda groups: torch.optim.SGD(groups, momentum=0.8)),
        ("adam", lambda groups: torch.optim.Adam(groups, betas=(0.8, 0.999))),
    ],
)
def test_optimizers_follow_torch_with_minus_the_update_as_gradient(optimizer, oracle):
    ours = server(optimizer=optimizer, learning_rate=0.1, head_learning_rate=0.3, momentum=0.8)
    lora, head = (torch.nn.Parameter(torch.tensor(part)) for part in (START[:6], START[6:]))
    theirs = oracle([{"params": [lora], "lr": 0.1}, {"params": [head], "lr": 0.3}])
    adapter = START
    for update in updates(5):
        adapter = ours.apply(adapter, update)
        lora.grad, head.grad = (
            torch.tensor(-part, dtype=torch.float32) for part in (update[:6], update[6:])
        )
        theirs.step()
    expected = torch.cat([lora, head]).detach().numpy()
    np.testing.assert_allclose(adapter, expected, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["average", "momentum", "adam", "muon"])
def test_a_resumed_server_goes_on_exactly(optimizer):
    whole, adapter = server(optimizer=optimizer, learning_rate=0.1), START
    for update in updates(4):
        adapter = whole.apply(adapter, update)
    first = server(optimizer=optimizer, learning_rate=0.1)
    resumed = server(optimizer=optimizer, learning_rate=0.1)
    other = START
    for update in updates(4)[:2]:
        other = first.apply(other, update)
    resumed.load(first.state())
    for update in updates(4)[2:]:
        other = resumed.apply(other, update)
    assert np.array_equal(adapter, other)


def test_state_is_a_copy():
    one = server(optimizer="adam")
    one.apply(START, updates(1)[0])
    state = one.state()
    one.apply(START, updates(1)[0])
    assert state["steps"][0] == 1.0


@pytest.mark.parametrize("damage", ["missing", "length", "nan"])
def test_damaged_states_are_refused(damage):
    state = server(optimizer="adam").state()
    if damage == "missing":
        del state["square"]
    elif damage == "length":
        state["mean"] = np.zeros(3)
    else:
        state["mean"][0] = np.nan
    with pytest.raises(CheckpointError):
        server(optimizer="adam").load(state)


def test_vectors_that_are_not_finite_or_too_short_are_refused():
    for bad in (np.full(10, np.nan), np.full(10, np.inf), np.zeros(9)):
        with pytest.raises(TrainingError):
            server().apply(START, bad)
        with pytest.raises(TrainingError):
            server().apply(bad.astype(np.float32), np.zeros(10))
    with pytest.raises(TrainingError, match="not finite"):
        server(learning_rate=1e38).apply(START, np.full(10, 1e10))


def test_zero_gradient_moves_nothing():
    for kind in ("sgd", "momentum", "adam"):
        assert np.array_equal(Optimizer(kind, np.ones(3)).step(np.ones(3), np.zeros(3)), np.ones(3))
