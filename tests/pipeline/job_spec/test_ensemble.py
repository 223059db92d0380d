"""Ensembles in the spec: three ways to write them, one form in run.json, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import SpecError
from pipeline.job_spec.ensemble import read_member
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.weights.fingerprint import compute_fingerprint, joint_config, resolve_preset
from pipeline.weights.naming import model_name

URIS: dict[str, object] = {"input.uri": "in", "output.uri": "out"}
TWO = ["demo", {"preset": "htc_r50_fpn", "weights": "untrained", "weight": 2}]
PLAIN = {"preset": "htc_lite0_fpn", "weights": "untrained"}


def spec_with(**values: Any) -> JobSpec:
    return load_spec(None, URIS | {key.replace("__", "."): value for key, value in values.items()})


def test_three_ways_to_write_it_are_one_in_the_record() -> None:
    ways = [
        spec_with(ensemble=TWO),
        spec_with(model=TWO),
        spec_with(ensemble={"members": TWO}),
        spec_with(model__ensemble__members=["demo", "htc_r50_fpn=untrained*2"]),
    ]
    (recorded,) = {json.dumps(spec.to_dict()["model"], sort_keys=True) for spec in ways}
    model = json.loads(recorded)
    assert (model["preset"], model["weights"]) == ("htc_lite0_fpn+htc_r50_fpn", "ensemble")
    assert model["ensemble"] == {
        "members": [
            {"preset": "htc_lite0_fpn", "weights": "demo", "weight": 1.0},
            {"preset": "htc_r50_fpn", "weights": "untrained", "weight": 2.0},
        ],
        "fusion": "nms",
        "spread": False,
    }
    again = JobSpec.model_validate_json(json.dumps(ways[0].to_dict()))
    assert again.to_dict() == ways[0].to_dict()


def test_an_ensemble_of_one_network_is_that_network() -> None:
    plain = spec_with(model__preset="htc_r50_fpn", model__weights="untrained")
    alone = spec_with(ensemble=["htc_r50_fpn=untrained*3"])
    assert alone.to_dict() == plain.to_dict()
    assert alone.identity() == plain.identity()
    assert spec_with(ensemble={"members": ["demo"], "fusion": "soft_nms"}).model.ensemble is not None


def test_flags_are_for_all_members_also_of_a_list(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("model: [demo, htc_r50_fpn=untrained]\n")
    spec = load_spec(
        file, URIS | {"model.score_threshold": 0.5, "model.augment": "flip", "model.ensemble.spread": True}
    )
    assert spec.model.ensemble is not None
    assert spec.model.ensemble.spread
    assert [member.score_threshold for member in spec.model.members] == [0.5, 0.5]
    assert [len(joint_config(member).views) for member in spec.model.members] == [2, 2]


@pytest.mark.parametrize(
    ("text", "member"),
    [
        ("htc_r50_fpn", {"preset": "htc_r50_fpn"}),
        ("best.safetensors*0.5", {"weights": "best.safetensors", "weight": 0.5}),
        ("htc_r50_fpn=s3://bucket/a=b.pth", {"preset": "htc_r50_fpn", "weights": "s3://bucket/a=b.pth"}),
        ("runs/a=b.pth", {"weights": "runs/a=b.pth"}),
        ("odd*name.pth", {"weights": "odd*name.pth"}),
    ],
)
def test_a_member_in_a_word(text: str, member: dict[str, object]) -> None:
    assert read_member(text) == member


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ensemble": []}, "members must be a list of 1 to 16"),
        ({"ensemble": [{"weight": 2}]}, "members.0: a member names its preset"),
        (
            {"ensemble": [{"preset": "htc_r50_fpn", "weight": 0}, "demo"]},
            "members.0.weight must be a number above 0, not 0",
        ),
        ({"ensemble": [{"preset": "htc_r50_fpn", "wait": 1}, "demo"]}, "did you mean model.ensemble.members.0.weight"),
        ({"ensemble": ["htc_r5_fpn=coco"]}, "did you mean 'htc_r50_fpn'"),
        ({"ensemble": ["dem"]}, "did you mean demo"),
        ({"ensemble": ["torchvision:maskrcnn"]}, "torchvision:maskrcnn cannot be a member"),
        ({"ensemble": [{"factory": "a.b:c"}]}, "a.b:c cannot be a member"),
        ({"ensemble": TWO, "model": TWO}, "named twice"),
        ({"ensemble": TWO, "model.preset": "htc_r50_fpn"}, "names one network"),
        ({"ensemble": {"members": TWO, "fusion": "mean"}}, 'fusion must be "nms", "soft_nms" or "wbf"'),
        ({"ensemble": {"members": TWO, "fusion": "wbf"}, "model.suppression": "soft_linear"}, "suppression is for"),
        ({"ensemble": 3}, "must be a section"),
        # Flags without --member.
        (
            {"model.ensemble.fusion": "wbf", "model.weights": "demo"},
            "ensemble has fusion (--fusion), and names no network",
        ),
        ({"model.ensemble.spread": True}, "ensemble has spread (--spread), and names no network"),
        ({"ensemble": {}}, "ensemble is empty, and names no network"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(None, URIS | values)
    assert words in str(caught.value)


def test_the_identity_has_presets_votes_and_fusion_and_nothing_without_an_ensemble() -> None:
    identity = spec_with(ensemble={"members": TWO, "fusion": "wbf", "spread": True}).identity()
    assert {key: value for key, value in identity.items() if "ensemble" in key} == {
        "model.ensemble.fusion": "wbf",
        "model.ensemble.members.0": "htc_lite0_fpn, weight 1",
        "model.ensemble.members.1": "htc_r50_fpn, weight 2",
    }
    assert not any("ensemble" in key for key in spec_with().identity())


def test_the_fingerprint_is_of_the_members_their_votes_and_the_fusion() -> None:
    def fingerprint(**section: Any) -> Any:
        return compute_fingerprint(spec_with(ensemble={"members": [PLAIN, PLAIN], **section}).model)

    plain = fingerprint()
    assert [member.preset for member in plain.members] == ["htc_lite0_fpn", "htc_lite0_fpn"]
    assert plain == fingerprint(spread=True)
    voting = fingerprint(members=[PLAIN, {**PLAIN, "weight": 2}])
    assert len({each.config_sha256 for each in (plain, voting, fingerprint(fusion="wbf"))}) == 3
    assert plain.weights_sha256 == voting.weights_sha256
    recorded = plain.to_dict()
    assert json.loads(json.dumps(recorded)) == recorded
    assert "members" not in compute_fingerprint(spec_with().model).to_dict()
    assert model_name(plain.preset, "ensemble", plain.weights_sha256) == (
        f"htc_lite0_fpn+htc_lite0_fpn@{plain.weights_sha256[:8]}"
    )


def test_the_preset_of_each_member_is_that_of_its_file() -> None:
    from htc_model.weights.model_zoo import bundled_weights

    spec = spec_with(ensemble=[str(bundled_weights()), "demo"])
    assert spec.model.preset == "htc_r50_fpn+htc_lite0_fpn"
    resolved = resolve_preset(spec.model)
    assert resolved.preset == "htc_lite0_fpn+htc_lite0_fpn"
    assert joint_config(resolved).classes == ("person",)


def test_messages_call_each_member_by_another_name() -> None:
    ensemble = spec_with(ensemble=["demo", "a/best.safetensors", "b/best.safetensors"]).model.ensemble
    assert ensemble is not None
    assert ensemble.labels == (
        "htc_lite0_fpn",
        "htc_r50_fpn (best.safetensors) (members.1)",
        "htc_r50_fpn (best.safetensors) (members.2)",
    )


def test_flags_name_members_fusion_and_spread() -> None:
    from jobs.cli.options import JobFlags, load_job_spec

    flags = JobFlags(members=["demo", "htc_r50_fpn=untrained*2"], fusion="wbf", spread=True)
    ensemble = load_job_spec(None, flags, input_uri="/in", output_uri="/out").model.ensemble
    assert ensemble is not None
    assert (ensemble.fusion, ensemble.spread) == ("wbf", True)
    assert [(each.preset, each.weights, each.weight) for each in ensemble.members] == [
        ("htc_lite0_fpn", "demo", 1.0),
        ("htc_r50_fpn", "untrained", 2.0),
    ]
    # What the command line gives where the flag is left out.
    assert dict(JobFlags(members=[]).spec_values()) == {}
