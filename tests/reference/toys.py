"""Models and tasks small enough that their curvature can be written down, and plain losses for the slow twins."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class Pictures(nn.Module):
    """Convolutions with every kind of padding, a linear layer that is used twice, and a classifier's head."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Conv2d(2, 3, 3, stride=2, padding="valid")
            self.second = nn.Conv2d(3, 4, (2, 3), padding="same", dilation=(1, 2))
            self.third = nn.Conv2d(4, 4, 3, padding=(1, 2), stride=(2, 1))
            self.twice = nn.Linear(4, 4)
            self.out = nn.Linear(4, 3)
        self.double().eval()

    def forward(self, images: Tensor) -> Tensor:
        hidden = nn.functional.relu_(self.first(images))
        hidden = torch.tanh(self.third(torch.tanh(self.second(hidden))))
        hidden = torch.tanh(self.twice(hidden.flatten(2).transpose(1, 2)))
        return self.out(torch.tanh(self.twice(hidden)).mean(1))


class PictureTask:
    """Cross-entropy of batches (images [N, 2, H, W], labels [N])."""

    def example_loss(self, model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(model(images), labels, reduction="none")


def pictures(count: int = 5) -> tuple[Tensor, Tensor]:
    """Random images and labels."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 2, 9, 8, dtype=torch.float64, generator=generator)
    return images, torch.arange(count) % 3


def network(*widths: int, activation: type[nn.Module] = nn.Identity, bias: bool = False) -> nn.Sequential:
    """Linear layers of these widths with an activation between them, random, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        modules: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            modules += [nn.Linear(inputs, outputs, bias=bias), activation()]
    return nn.Sequential(*modules[:-1]).double().eval()


class SquaredError:
    """Loss Σ (y − ŷ)² of batches (x [N, I], y [N, O]); measured is the sum of the prediction.

    Labels that a Gaussian model of variance ½ draws have the second moment of ŷ ± √½, which `sampled_loss` takes.
    """

    def example_loss(self, model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return (y - model(x)).square().sum(dim=1)

    def measurement(self, model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(batch[0]).sum(dim=1)

    def sampled_loss(self, model: Any, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        predicted = model(batch[0])
        signs = 2 * torch.randint(2, predicted.shape, generator=generator).to(predicted.dtype) - 1
        return self.pushed(predicted, signs)

    def pushed(self, predicted: Tensor, signs: Tensor) -> Tensor:
        """The loss of pseudo-targets ŷ + √½ · signs."""
        return (predicted.detach() + 0.5**0.5 * signs - predicted).square().sum(dim=1)


def sign_patterns(outputs: int) -> Tensor:
    """Rows of ±1 whose mean outer product is the identity: all of them, [2^O, O]."""
    return 2.0 * torch.cartesian_prod(*[torch.arange(2)] * outputs).reshape(-1, outputs).double() - 1


def plain_loss(model: Any, batch: Any) -> Tensor:
    """The example loss of a language model or a classifier from the model's own logits."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    if logits.ndim == 2:
        return nn.functional.cross_entropy(logits, batch.label, reduction="none")
    losses = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), batch.labels[:, 1:], reduction="none")
    return losses.sum(dim=1)
