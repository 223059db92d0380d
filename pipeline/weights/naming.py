"""A model's name in the tables: its preset, and of one's own weights the file and its hash as well."""

import hashlib
from functools import cache

from htc_model.weights.model_zoo import bundled_weights, find_by_sha256
from pipeline.job_spec.ensemble import ENSEMBLE
from pipeline.job_spec.model_reference import FACTORY_WEIGHTS_WORDS
from pipeline.job_spec.parsing import WEIGHTS_WORDS
from pipeline.storage.uris import base_name, without_query

# Of 64 hex digits; as many as MMDetection puts into its files' names.
_HASH_DIGITS = 8


def model_name(preset: str, weights: str, weights_sha256: str) -> str:
    """Name a model for the column `model`.

    The bundled and the published weights are known by their preset, also where they are given as a file. Of others the
    preset says little: two trainings on different classes share it. They are named by file and hash as well.

    An ensemble has the presets of its members and the hash of their weights together.

    Args:
        preset: of the network, of all members with "+" between, or the factory of a model of one's own.
        weights: `model.weights` of the spec: a word, a path or a URI; "ensemble" of an ensemble.
        weights_sha256: 64 hex digits of the file; not read for a word.

    Returns:
        such as "htc_r50_fpn", "htc_lite0_fpn:best.safetensors@1a2b3c4d", or "htc_r50_fpn+htc_r101_fpn@1a2b3c4d".
    """
    if weights == ENSEMBLE:
        return f"{preset}@{weights_sha256[:_HASH_DIGITS]}"
    if weights in (*WEIGHTS_WORDS, *FACTORY_WEIGHTS_WORDS) or _is_common(weights_sha256):
        return preset
    return f"{preset}:{base_name(without_query(weights))}@{weights_sha256[:_HASH_DIGITS]}"


def _is_common(weights_sha256: str) -> bool:
    return find_by_sha256(weights_sha256) is not None or weights_sha256 == _bundled_sha256()


@cache
def _bundled_sha256() -> str:
    with bundled_weights().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
