"""The bottleneck is what the models waited for, with the remedy."""

import pytest

from pipeline.messages import CAUSES
from pipeline.runs.bottleneck import IN_WORDS, find_bottleneck, shares_in_words, shares_of


@pytest.mark.parametrize(
    ("seconds", "name", "words"),
    [
        ({"infer": 93.0, "read": 5.0, "start_up": 2.0}, "model", ["busy 93% of the time", "more workers or GPUs"]),
        ({"infer": 62.0, "read": 38.0}, "read", ["waited 38% of the time for reads", "storage.read_concurrency"]),
        ({"infer": 30.0, "read": 20.0, "decode": 50.0}, "decode", ["50%", "decoded", "compute.cpus_per_worker"]),
        ({"infer": 60.0, "upload": 40.0}, "upload", ["40%", "GPU"]),
        ({"infer": 50.0, "encode": 50.0}, "encode", ["masks", "compute.mask_processes"]),
        ({"infer": 50.0, "write": 50.0}, "write", ["tables to be written", "compute.shard_images"]),
        ({"infer": 50.0, "no_shard": 50.0}, "no_shard", ["without a shard", "listing file"]),
        ({"infer": 50.0, "tail": 50.0}, "tail", ["last shards", "shards smaller"]),
        ({"infer": 20.0, "start_up": 80.0}, "start_up", ["80%", "more images per run"]),
        # A start that is long beside short losses, and one beside a longer loss.
        ({"infer": 60.0, "read": 10.0, "start_up": 30.0}, "start_up", ["30%"]),
        ({"infer": 20.0, "read": 50.0, "start_up": 30.0}, "read", ["50%"]),
        # Without its start, a quarter of the time.
        ({"infer": 60.0, "read": 20.0, "start_up": 20.0}, "read", ["20%"]),
        ({"infer": 65.0, "read": 15.0, "start_up": 20.0}, "model", ["65%"]),
        ({"start_up": 5.0}, "start_up", ["100%"]),
    ],
)
def test_the_bottleneck_is_named_with_its_share_and_the_remedy(
    seconds: dict[str, float], name: str, words: list[str]
) -> None:
    found = find_bottleneck(seconds)
    assert found is not None
    assert found.name == name
    for word in words:
        assert word in found.sentence
    assert found.sentence.endswith(".")
    assert found.share == pytest.approx(seconds.get("infer" if name == "model" else name, 0.0) / sum(seconds.values()))


def test_nothing_is_named_before_any_time_has_passed() -> None:
    assert find_bottleneck({}) is None
    assert find_bottleneck(dict.fromkeys(CAUSES, 0.0)) is None
    assert shares_of({}) == {}


def test_the_shares_are_of_the_whole_time() -> None:
    shares = shares_of({"infer": 6.0, "read": 3.0, "start_up": 1.0})
    assert sum(shares.values()) == pytest.approx(1.0)
    assert list(shares_in_words(shares)) == ["model busy 60%", "waiting for reads 30%", "starting 10%"]
    assert set(IN_WORDS) == set(CAUSES)
