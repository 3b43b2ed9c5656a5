"""The upper level of RedCore: weights of the reconstruction losses that follow relative advantage."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.methods.redcore.config import RedCoreConfig

_LEAST = 0.1


class SelfBalance(nn.Module):
    """Weights β on the unit sphere that grow for modalities whose reconstruction loss is above the mean.

    The rule is an integrator: constant losses end in one modality taking all, however close they are.  Its inputs
    carry no gradient, and its state is part of checkpoints.

    Args:
        count: Modalities M.
        config: ρ, η and its growth, update period.

    Attributes:
        average: `[M]` running averages of the losses, from 0.
        beta: `[M]` weights; ones until the first update, of norm 1 from then on.
        iteration: Scalar int64, updates seen.
        samples: Scalar int64, training samples seen.
        epoch_size: Training samples per epoch, for `growth_unit=epochs`.
    """

    average: Tensor
    beta: Tensor
    iteration: Tensor
    samples: Tensor

    def __init__(self, count: int, config: RedCoreConfig) -> None:
        super().__init__()
        self._config = config
        self.epoch_size = 1
        self.register_buffer("average", torch.zeros(count))
        self.register_buffer("beta", torch.ones(count))
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))
        self.register_buffer("samples", torch.zeros((), dtype=torch.int64))

    @property
    def step_size(self) -> float:
        """η now: it has grown once at the start and once per completed period."""
        config = self._config
        if config.growth_unit == "epochs":
            periods = int(self.samples) // (config.growth_every * self.epoch_size)
        else:
            periods = int(self.iteration) // config.growth_every
        return config.step_size * config.step_growth ** (periods + 1)

    @torch.no_grad()
    def update(self, losses: Tensor, batch_size: int) -> Tensor:
        """Takes note of a step's losses and moves the weights when it is time.

        Args:
            losses: `[M]` reconstruction losses; exactly 0 leaves a modality's average as it is.
            batch_size: Samples of the step.

        Returns:
            β `[M]` for this step, a copy.
        """
        config, losses = self._config, losses.detach().float()
        moved = (1.0 - config.average_rate) * self.average + config.average_rate * losses
        self.average.copy_(torch.where(losses == 0, self.average, moved))
        mean = self.average.mean()
        if int(self.iteration) % config.update_every == 0 and mean > 0:
            advantage = (mean - self.average) / mean
            beta = (self.beta - self.step_size * advantage).clamp(min=_LEAST)
            self.beta.copy_(beta / torch.linalg.vector_norm(beta))
        self.iteration += 1
        self.samples += batch_size
        return self.beta.clone()
