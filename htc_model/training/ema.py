"""Exponential moving average of the weights, which detects better than the weights of any single step."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """An exponential moving average of a network's state.

    The decay grows with the steps, min(decay, (1 + n) / (10 + n)), so that the random start soon has no weight.

    Args:
        model: its state is copied.
        decay: in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Add one step's weights to the average; integers (counters) are copied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in model.state_dict().items():
            average = self.state[name]
            if average.is_floating_point():
                average.lerp_(tensor.detach(), 1 - decay)
            else:
                average.copy_(tensor)

    def state_dict(self) -> dict[str, object]:
        """Return everything that a resumed run needs."""
        return {"updates": self.updates, "state": self.state}

    def load_state_dict(self, saved: Mapping[str, object]) -> None:
        """Restore what `state_dict` returned."""
        state, updates = saved["state"], saved["updates"]
        if not isinstance(state, dict) or not isinstance(updates, int):
            raise TypeError("not the saved state of a weight average")
        self.updates = updates
        for name, tensor in state.items():
            if isinstance(tensor, Tensor):
                self.state[name].copy_(tensor)
