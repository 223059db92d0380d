"""Verifies a weights file: its hash, and the network that it fits."""

from dataclasses import dataclass
from pathlib import Path

from htc_model.weights.model_zoo import find_by_sha256, sha256_prefix_of


@dataclass(frozen=True)
class WeightsReport:
    """The contents of a weights file.

    path, bytes, sha256 (64 hex digits): of the file.
    expected_prefix: the hash digits in its name, or None. is_hash_right: whether they match; None without them.
    published: the name of the published checkpoint with this hash, or None.
    preset: the preset that it fits, or None. parameters: how many numbers it holds.
    classes: their names, or None if the file does not hold them.
    """

    path: str
    bytes: int
    sha256: str
    expected_prefix: str | None
    is_hash_right: bool | None
    published: str | None
    preset: str | None
    parameters: int
    classes: tuple[str, ...] | None


def verify_file(path: str | Path, preset: str | None = None) -> WeightsReport:
    """Read a weights file completely and describe it.

    Args:
        preset: the network that it must fit, or None to find out which one it fits.

    Raises:
        WeightsError: it cannot be read, or does not fit `preset`.
        ModelConfigError: there is no such preset.
    """
    import torch

    from htc_model.config import load_preset
    from htc_model.network.detector import build_model
    from htc_model.weights.load import check_fit, guess_preset, load_weights

    config = None if preset is None else load_preset(preset)
    loaded = load_weights(path)
    if config is not None:
        with torch.device("meta"):
            check_fit(build_model(config), loaded)
    expected = sha256_prefix_of(Path(path).name)
    published = find_by_sha256(loaded.sha256)
    classes = loaded.metadata.get("classes")
    return WeightsReport(
        path=str(path),
        bytes=Path(path).stat().st_size,
        sha256=loaded.sha256,
        expected_prefix=expected,
        is_hash_right=None if expected is None else loaded.sha256.startswith(expected),
        published=None if published is None else published.name,
        preset=preset or guess_preset(loaded.state),
        parameters=sum(tensor.numel() for tensor in loaded.state.values()),
        classes=None if classes is None else tuple(classes),
    )
