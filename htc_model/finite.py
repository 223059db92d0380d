"""Checks for NaN and infinity in activations and weights: comparisons with NaN would drop boxes silently."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["NonFiniteError", "check_finite", "check_predictions", "non_finite_keys", "unusable_keys"]

# A batch norm divides by its square root.
_VARIANCE = "running_var"

# Wider than any box; float32 ends at 3.4e38.
LARGEST_SIDE_PX = 1e6


class NonFiniteError(ArithmeticError):
    """The network computed NaN or infinity; the message names where it was found first, for the user."""


def check_finite(name: str, tensors: Iterable[Tensor]) -> None:
    """Check that every value is a finite number.

    Args:
        name: what the values are, for the message.
        tensors: of any shape and dtype; one flag is fetched from the device for all of them.

    Raises:
        NonFiniteError: a value is NaN or infinite.
    """
    flags = [torch.isfinite(tensor).all() for tensor in tensors]
    if flags and not bool(torch.stack(flags).all()):
        raise NonFiniteError(f"{name} are not finite numbers (NaN or infinity)")


def check_predictions(name: str, logits: Iterable[Tensor], deltas: Iterable[Tensor]) -> None:
    """Check that logits are finite, and that deltas stay finite when multiplied by the size of a box.

    Raises:
        NonFiniteError: a value is NaN, infinite, or so large that decoding it overflows. Clipped to the image, such a
            box would look like one at the image's border.
    """
    check_finite(name, [*logits, *(deltas_of.float() * LARGEST_SIDE_PX for deltas_of in deltas)])


def non_finite_keys(state: Mapping[str, object]) -> tuple[str, ...]:
    """Return the names of tensors with NaN, infinity, or a number too large for float32, in which networks compute."""
    return _flagged(
        {
            key: torch.isfinite(value.detach() if value.is_complex() else value.detach().float()).logical_not_().any()
            for key, value in state.items()
            if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()) and not value.is_meta
        }
    )


def unusable_keys(state: Mapping[str, object]) -> tuple[str, ...]:
    """Return the names from `non_finite_keys`, and those of running variances below zero, whose square root is NaN."""
    negative = _flagged(
        {
            key: (value.detach() < 0).any()
            for key, value in state.items()
            if isinstance(value, Tensor) and key.rpartition(".")[2] == _VARIANCE and not value.is_meta
        }
    )
    unusable = {*negative, *non_finite_keys(state)}
    return tuple(key for key in state if key in unusable)


def _flagged(flags: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Fetch all flags from their device at once, and return the names of those that are set."""
    if not flags:
        return ()
    device = next(iter(flags.values())).device
    fetched = torch.stack([flag.to(device) for flag in flags.values()]).tolist()
    return tuple(key for key, is_set in zip(flags, fetched, strict=True) if is_set)
