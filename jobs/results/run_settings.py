"""Settings that change results, by the records of two runs."""

from typing import TYPE_CHECKING

from pipeline.job_spec.job import CHOICE_KEYS
from pipeline.job_spec.model import ModelSection

if TYPE_CHECKING:
    from pipeline.output.run_record import RunRecord

_THRESHOLD = "model.score_threshold"
# The model's name holds it.
_NAMED_OTHERWISE = frozenset({"model.preset"})


def other_settings(one: "RunRecord", other: "RunRecord") -> list[str]:
    """Return the spec keys that results depend on and in which two runs differ, each with both values."""
    keys = sorted(
        key
        for key in {*one.identity, *other.identity}
        if key not in CHOICE_KEYS | _NAMED_OTHERWISE and one.identity.get(key) != other.identity.get(key)
    )
    return [f"{key} ({_shown(one, key)}, {_shown(other, key)})" for key in keys]


def score_threshold(record: "RunRecord") -> float:
    """Return the score below which a run kept no instance."""
    return float(record.identity.get(_THRESHOLD, ModelSection.model_fields["score_threshold"].default))


def _shown(record: "RunRecord", key: str) -> str:
    # A key that is absent has its default.
    return str(record.identity.get(key, "default"))
