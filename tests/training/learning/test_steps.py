"""The mathematics of a training step."""

import pytest
import torch
from torch.nn import functional

from serving.bundle import Geometry
from training.learning.optimizers import set_rate
from training.learning.steps import (
    Objective,
    class_weights,
    measure,
    train_step,
)
from training.networks import Network, build
from training.recipe import NetworkRecipe

GEOMETRY = Geometry(height=12, width=12, channels=1)


def test_class_weights_give_every_class_equal_weight() -> None:
    """Weight times count is the same for each class, and the mean over all images is 1."""
    labels = torch.tensor([0] * 30 + [1] * 10)
    weights = class_weights(labels, 2)
    assert float(weights[0]) * 30 == pytest.approx(float(weights[1]) * 10)
    assert float(weights[labels].mean()) == pytest.approx(1)


@pytest.fixture
def network() -> Network:
    """A small network in training mode."""
    torch.manual_seed(0)
    return build(NetworkRecipe(), GEOMETRY, 2).train()


@pytest.fixture
def images() -> torch.Tensor:
    """Eight random images."""
    return torch.randint(
        0, 256, (8, 12, 12, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


LABELS = torch.arange(8) % 2


def test_steps_lower_the_loss_on_one_batch(network: Network, images: torch.Tensor) -> None:
    """A network can memorise eight images."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = [
        float(train_step(network, optimizer, images, LABELS, Objective(), batch=8)[0]) for _ in range(60)
    ]
    assert losses[-1] < 0.1 < losses[0]
    loss, accuracy = measure(network, images, LABELS)
    assert (loss < 0.1, accuracy) == (True, 1.0)


def test_the_loss_is_torchs_own(network: Network, images: torch.Tensor) -> None:
    """Plain, smoothed and mixed targets give what torch's cross-entropy gives, before the step."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    logits = network(images)[0].detach()
    shares = torch.full((8, 2), 0.5)
    for objective, targets, expected in (
        (Objective(), LABELS, functional.cross_entropy(logits, LABELS)),
        (
            Objective(label_smoothing=0.2),
            LABELS,
            functional.cross_entropy(logits, LABELS, label_smoothing=0.2),
        ),
        (Objective(), shares, functional.cross_entropy(logits, shares)),
    ):
        loss, _ = train_step(network, optimizer, images, targets, objective, batch=8)
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)


def test_the_accuracy_of_a_step_is_that_of_its_forward_pass(network: Network, images: torch.Tensor) -> None:
    """Of mixed targets the larger share counts."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    predicted = network(images)[0].detach().argmax(dim=1)
    targets = torch.where(torch.arange(8) < 6, predicted, 1 - predicted)
    _, accuracy = train_step(network, optimizer, images, targets, Objective(), batch=8)
    assert float(accuracy) == 0.75
    mixed = 0.7 * functional.one_hot(targets, 2) + 0.3 / 2
    _, accuracy = train_step(network, optimizer, images, mixed, Objective(), batch=8)
    assert float(accuracy) == 0.75


def test_class_weights_scale_each_images_loss(network: Network, images: torch.Tensor) -> None:
    """The loss is the sum of weighted losses over the number of images."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    weights = torch.tensor([0.5, 1.5])
    single = functional.cross_entropy(network(images)[0].detach(), LABELS, reduction="none")
    loss, _ = train_step(network, optimizer, images, LABELS, Objective(class_weights=weights), batch=8)
    assert float(loss) == pytest.approx(float((single * weights[LABELS]).mean()), rel=1e-5)


def test_long_gradients_are_scaled_down(network: Network, images: torch.Tensor) -> None:
    """At rate 1 plain SGD moves the weights by the gradient, at most by the limit."""
    before = torch.cat([value.detach().flatten().clone() for value in network.parameters()])
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    train_step(network, optimizer, images, LABELS, Objective(max_gradient_norm=1e-3), batch=8)
    after = torch.cat([value.detach().flatten() for value in network.parameters()])
    assert float((after - before).norm()) == pytest.approx(1e-3, rel=1e-2)


def test_bfloat16_changes_the_loss_a_little(network: Network, images: torch.Tensor) -> None:
    """The forward pass is rounded; the weights and the loss are not."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    wide, _ = train_step(network, optimizer, images, LABELS, Objective(), batch=8)
    narrow, _ = train_step(network, optimizer, images, LABELS, Objective(autocast=torch.bfloat16), batch=8)
    assert narrow.dtype == torch.float32
    assert float(narrow) != float(wide)
    assert float(narrow) == pytest.approx(float(wide), rel=2e-2)


def test_each_group_of_parameters_has_its_part_of_the_rate() -> None:
    """Rates are the recipe's times the group's factor."""
    value = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [value], "rate_factor": 0.25}], lr=1.0)
    set_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.125
