"""`htc model`: what `--model` takes on this machine, and the conformance test of one's own models."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.terminal.console import say, write_json, write_line, write_table
from pipeline.errors import ImageError, ModelError, SpecError
from pipeline.job_spec.parsing import WEIGHTS_WORDS, set_dotted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MARKS = {"pass": "ok", "fail": "FAILED", "skipped": "skipped"}


def report_models(*, is_json: bool = False) -> None:
    """Write the presets, the adapters' models, and those that packages register, each with what is wrong with it."""
    from htc_model.config import PRESETS
    from pipeline.models.adapters import ADAPTERS
    from pipeline.models.entry_points import list_registered

    rows = [(name, "masks" if config.has_masks else "boxes only", "preset") for name, config in PRESETS.items()]
    problems: dict[str, str] = {}
    for prefix, adapter in ADAPTERS.items():
        try:
            rows += [(f"{prefix}:{name}", note, prefix) for name, note in adapter.load().list_models()]
        except ModelError as error:
            problems[f"{prefix}:NAME"] = str(error)
    registered = list_registered()
    rows += [(each.name, each.factory, each.package) for each in registered if not each.problem]
    problems |= {each.name: each.problem for each in registered if each.problem}
    if is_json:
        models = [{"model": name, "note": note, "from": source} for name, note, source in rows]
        write_json({"models": models, "problems": problems, "registered": [asdict(each) for each in registered]})
        return
    write_table(["model", "finds", "from"], rows)
    write_line("Any other: package.module:function, installed or in the current folder; htc model check tries it.")
    for sentence in problems.values():
        say(sentence)


def report_check(
    model: str, weights: str, options: Mapping[str, object], image: Path | None, *, is_json: bool = False
) -> int:
    """Try a model, and write a line for each check; returns 1 if one failed, else 0.

    Args:
        options: by the spec's dotted keys.
        image: a file; None for images that are computed.

    Raises:
        SpecError: the model is a preset or a word for its weights, or the image cannot be read.
    """
    from htc_model.config import PRESETS
    from pipeline.models.conformance import check_model

    if model in PRESETS:
        raise SpecError(
            f"{model} is a preset, which this program's own tests check; `htc plan --model {model}` loads it."
        )
    if model in WEIGHTS_WORDS:
        raise SpecError(
            f"{model} is a word for weights of a preset, not a model; `htc plan --weights {model}` loads them."
        )
    tree: dict[str, Any] = {}
    for key, value in options.items():
        set_dotted(tree, key, value)
    report = check_model(
        model,
        weights=weights,
        options=tree.get("model", {}).get("options", {}),
        image=None if image is None else _read_image(image),
    )
    if is_json:
        write_json(report.to_dict())
        return 1 if report.failures else 0
    rows = [(each.name, _MARKS[each.outcome], each.note) for each in report.checks]
    if report.images_per_s is not None:
        rows.append(("speed", "", f"{report.images_per_s:.2f} images/s, one by one, on {report.device}"))
    write_table(["check", "outcome", "what was found"], rows)
    if report.failures:
        if len(report.checks) > 1:
            say(f"{report.model} does not keep to the protocol of models; see docs/models/any_model.md.")
        return 1
    write_line(f"{report.model} can be used: htc run INPUT OUTPUT --model {model}")
    return 0


def _read_image(path: Path) -> "NDArray[np.uint8]":
    from pipeline.inputs.decode import decode_image
    from pipeline.job_spec.job import ImagesSection

    try:
        return decode_image(path.read_bytes(), max_pixels=ImagesSection().max_pixels)
    except OSError as error:
        raise SpecError(f"The image {path} cannot be read: {error.strerror or error}.") from error
    except ImageError as error:
        raise SpecError(f"The image {path} cannot be read: {error.reason}.") from error
