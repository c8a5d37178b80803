"""Optimizers by name, and Muon against its definition."""

import copy

import pytest
import torch
from torch.optim import Optimizer

from serving.bundle import Geometry
from training.learning.optimizers import Muon, make_optimizer, orthogonalise, restore_optimizer, set_rate
from training.networks import Network, build
from training.recipe import NetworkRecipe, TrainingRecipe

GEOMETRY = Geometry(height=32, width=32, channels=3)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "muon"])
def test_every_trainable_parameter_is_in_one_group(name: str) -> None:
    """Frozen filters are excluded; weights decay, biases and norms do not; the head has its own rate."""
    network = build(NetworkRecipe(name="fast"), GEOMETRY, 10)
    recipe = TrainingRecipe(optimizer=name, weight_decay=0.01, bias_rate_factor=64, head_rate_factor=2)
    weights, biases, head = make_optimizer(network, recipe).param_groups
    counted = sum(value.numel() for group in (weights, biases, head) for value in group["params"])
    assert counted == network.parameter_count()
    assert [group["weight_decay"] for group in (weights, biases, head)] == [0.01, 0.0, 0.01]
    assert [group["rate_factor"] for group in (weights, biases, head)] == [1.0, 64.0, 2.0]
    assert all(value.dim() == 1 for value in biases["params"])
    assert [value.shape for value in head["params"]] == [(10, 256)]


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (16, 40)])
def test_an_orthogonalised_matrix_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    """They end between 0.3 and 1.3, and the singular vectors are unchanged."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalise(matrix)
    along = torch.diagonal(left.T @ result @ right.T)
    assert float(values.max() / values.min()) > 1.8
    assert 0.3 < float(along.min()) <= float(along.max()) < 1.3
    off_diagonal = left.T @ result @ right.T - torch.diag(along)
    assert float(off_diagonal.abs().max()) < 1e-4


def test_muon_moves_filters_by_the_orthogonal_update_and_the_rest_as_sgd() -> None:
    """One step of each kind, computed directly."""
    random = torch.Generator().manual_seed(0)
    filters = torch.nn.Parameter(torch.randn((4, 3, 3, 3), generator=random))
    bias = torch.nn.Parameter(torch.randn(4, generator=random))
    filters.grad, bias.grad = torch.randn((4, 3, 3, 3), generator=random), torch.ones(4)
    scaled = filters.detach() * 2 / filters.detach().norm()
    expected = scaled - 0.1 * orthogonalise(filters.grad.view(4, 27)).view_as(filters)
    moved = bias.detach() - 0.1 * 1.6
    Muon([{"params": [filters, bias]}], rate=0.1, momentum=0.6).step()
    assert torch.allclose(filters, expected, atol=1e-5)
    assert torch.allclose(bias, moved)


@pytest.mark.parametrize("name", ["sgd", "muon"])  # torch's Adam has a form for a recording on GPUs alone
def test_capturable_optimizers_give_the_same_weights(name: str) -> None:
    """Tensor rates give the same weights; the saved state of either form loads into the other."""
    recipe = TrainingRecipe(optimizer=name, weight_decay=0.01, bias_rate_factor=4, head_rate_factor=2)
    plain, recorded = (_stepped(recipe, recorded=recorded) for recorded in (False, True))
    for _ in range(2):
        for one, other in zip(plain.network.parameters(), recorded.network.parameters(), strict=True):
            assert torch.allclose(one, other, atol=1e-5)
        assert all(isinstance(group["lr"], torch.Tensor) for group in recorded.optimizer.param_groups)
        assert not any(isinstance(group["lr"], torch.Tensor) for group in plain.optimizer.param_groups)
        states = [copy.deepcopy(each.optimizer.state_dict()) for each in (recorded, plain)]
        for each, state in zip((plain, recorded), states, strict=True):
            restore_optimizer(each.optimizer, state)
            each.step(0.02)


class _Stepped:
    """A small network and its optimizer, with gradients that are the same each time."""

    def __init__(self, network: Network, optimizer: Optimizer) -> None:
        self.network = network
        self.optimizer = optimizer

    def step(self, rate: float) -> None:
        """One step."""
        random = torch.Generator().manual_seed(0)
        for value in self.network.parameters():
            value.grad = torch.randn(value.shape, generator=random)
        set_rate(self.optimizer, rate)
        self.optimizer.step()


def _stepped(recipe: TrainingRecipe, *, recorded: bool) -> _Stepped:
    torch.manual_seed(0)
    network = build(NetworkRecipe(name="lenet5"), Geometry(height=28, width=28, channels=1), 10)
    made = _Stepped(network, make_optimizer(network, recipe, capturable=recorded))
    for rate in (0.01, 0.03):
        made.step(rate)
    return made
