"""Finds operations whose result or shape the host must read from the device."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# By the name of the operator, without its overload.
READING_OPERATORS = {
    "_local_scalar_dense",  # item, bool, int, float
    "nonzero",
    "nonzero_static",
    "argwhere",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "repeat_interleave.Tensor",
    "equal",
    "is_nonzero",
    "nms",  # torchvision's: its result has as many elements as boxes stay
}
# A copy from the host's memory: `torch.tensor`, `new_tensor` of Python numbers.
UPLOADING_OPERATORS = {"lift_fresh"}


def reads_host(operator: Any, args: Sequence[Any]) -> bool:
    """Return whether an operator makes the host wait for the device's values."""
    name = str(operator).removeprefix("aten.").removeprefix("torchvision.").removesuffix(".default")
    if name in READING_OPERATORS or name.partition(".")[0] in READING_OPERATORS - {"repeat_interleave.Tensor"}:
        return True
    is_index = name.startswith(("index.", "index_put", "_index_put"))
    return is_index and any(
        isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1] or ()
    )


class OperatorCounter(TorchDispatchMode):
    """Counts operators as they reach a device, by name; `reads` and `uploads` are those that involve the host."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = str(func)
        self.operators[name] += 1
        if reads_host(func, args):
            self.reads[name] += 1
        if name.split(".")[1] in UPLOADING_OPERATORS:
            self.uploads[name] += 1
        return func(*args, **(kwargs or {}))


class HostTensors(TorchDispatchMode):
    """Collects operators that take or give a tensor in the host's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        if any(tensor.device.type == "cpu" for tensor in tensors):
            self.found[str(func)] += 1
        return result
