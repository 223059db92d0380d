"""Mixed precision: which number format a training uses, and the loss scale that half precision needs."""

import contextlib
from contextlib import AbstractContextManager
from typing import Literal

import torch

from htc_model.config import ModelConfigError
from htc_model.training.spec import Precision

Settled = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def settle_precision(precision: Precision, device: torch.device) -> Settled:
    """Replace "auto": bf16 on GPUs that compute with it, fp16 on older ones, fp32 on a CPU.

    Raises:
        ModelConfigError: fp16 on a CPU, or bf16 on a GPU that lacks it.
    """
    is_gpu = device.type == "cuda"
    has_bf16 = not is_gpu or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto":
        return "fp32" if not is_gpu else "bf16" if has_bf16 else "fp16"
    if precision == "fp16" and not is_gpu:
        raise ModelConfigError("precision fp16 needs a GPU; on a CPU take bf16, which has fp32's range, or fp32.")
    if precision == "bf16" and not has_bf16:
        raise ModelConfigError("This GPU does not compute with bf16; set precision to fp16, auto or fp32.")
    return precision


def autocast(precision: Settled, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which a loss is computed; weights, gradients and losses stay in fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, _DTYPES[precision])


def build_scaler(precision: Settled, device: torch.device) -> "torch.amp.GradScaler":
    """Build the loss scale of fp16, whose small gradients would become zero; switched off for the other formats.

    It starts at 65,536, halves after a step whose gradients overflow (which is not taken), and doubles after 2,000
    steps (Micikevicius et al., Mixed Precision Training, arXiv:1710.03740, section 3.2; torch's defaults).
    """
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
