"""The job spec: defaults, flags over YAML, and messages for mistakes."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import SpecError
from pipeline.job_spec.job import JobSpec, load_spec

TWO_URIS: dict[str, object] = {"input.uri": "/photos", "output.uri": "/tables"}


def write_spec(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path | None, overrides: dict[str, object] | None = None) -> str:
    with pytest.raises(SpecError) as caught:
        load_spec(path, overrides)
    return str(caught.value)


def test_two_uris_are_enough() -> None:
    spec = load_spec(None, TWO_URIS)
    assert spec.input.uri == "/photos"
    assert (spec.model.preset, spec.model.weights) == ("htc_lite0_fpn", "demo")
    assert (spec.compute.shard_images, spec.retry.max_attempts, spec.retry.max_error_rate) == ("auto", 4, 0.05)


@pytest.mark.parametrize(
    ("named", "preset", "weights"),
    [
        ({}, "htc_lite0_fpn", "demo"),
        ({"model.preset": "htc_lite0_fpn"}, "htc_lite0_fpn", "demo"),
        ({"model.preset": "htc_r101_fpn"}, "htc_r101_fpn", "coco"),
        ({"model.weights": "demo"}, "htc_lite0_fpn", "demo"),
        ({"model.weights": "coco"}, "htc_r50_fpn", "coco"),
        ({"model.weights": "/weights/own.safetensors"}, "htc_r50_fpn", "/weights/own.safetensors"),
    ],
)
def test_preset_and_weights_imply_each_other(named: dict[str, object], preset: str, weights: str) -> None:
    model = load_spec(None, {**TWO_URIS, **named}).model
    assert (model.preset, model.weights) == (preset, weights)


@pytest.mark.parametrize(
    ("retry", "floor"),
    [
        ({}, 5),
        ({"retry.max_error_rate": 0.2}, 5),
        ({"retry.max_error_rate": 0.0}, 0),
        ({"retry.max_error_rate": 0.0, "retry.max_errors": 3}, 3),
        ({"retry.max_errors": 0}, 0),
    ],
)
def test_a_few_images_may_fail_unless_none_may(retry: dict[str, object], floor: int) -> None:
    spec = load_spec(None, {**TWO_URIS, **retry})
    assert spec.retry.max_errors == floor
    assert JobSpec.model_validate(spec.to_dict()) == spec


def test_the_documented_yaml_is_accepted(tmp_path: Path) -> None:
    path = write_spec(
        tmp_path,
        """
name: street-scenes
input: {uri: s3://bucket/images/, glob: "**/*.jpg"}
output: {uri: s3://bucket/masks/}
storage: {endpoint_url: null, anonymous: false}
model: {preset: htc_r50_fpn, weights: coco, score_threshold: 0.05, max_detections: 100, precision: auto}
compute: {workers: auto, gpus_per_worker: auto, cpus_per_worker: auto, batch_size: auto, shard_images: 256}
retry: {max_attempts: 4, max_error_rate: 0.05}
select: {mode: incremental, retry: transient, where: SELECT uri FROM images, max_deleted_share: 0.5}
""",
    )
    spec = load_spec(str(path))
    assert (spec.name, spec.input.uri, spec.input.glob) == ("street-scenes", "s3://bucket/images/", "**/*.jpg")
    assert JobSpec.model_validate(spec.to_dict()) == spec


def test_flags_override_yaml_and_none_is_no_flag(tmp_path: Path) -> None:
    path = write_spec(tmp_path, "input: {uri: /a}\noutput: {uri: /b}\nmodel: {score_threshold: 0.5}\ncompute:\n")
    flags = {"output.uri": "/c", "model.score_threshold": None, "compute.batch_size": "8", "compute.workers": "auto"}
    spec = load_spec(path, flags)
    assert (spec.output.uri, spec.model.score_threshold) == ("/c", 0.5)
    assert (spec.compute.batch_size, spec.compute.workers) == (8, "auto")


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = load_spec(None, {"input.uri": "a b#%20", "output.uri": "./out/", "model.weights": "w.pth"})
    assert spec.input.uri == f"{tmp_path}/a b#%20"
    assert spec.output.uri == f"{tmp_path}/out"
    assert spec.model.weights == f"{tmp_path}/w.pth"


def test_remote_uris_stay_as_they_are() -> None:
    spec = load_spec(None, {"input.uri": "s3://b/x/../y%20z/", "output.uri": "gs://b/out"})
    assert (spec.input.uri, spec.output.uri) == ("s3://b/x/../y%20z/", "gs://b/out")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("modle: {preset: htc_r50_fpn}", ["modle", "did you mean model?"]),
        ("model: {presett: htc_r50_fpn}", ["model.presett", "did you mean model.preset?"]),
        ("batch_size: 4", ["batch_size", "did you mean compute.batch_size?"]),
        ("model: htc_r50_fpn", ["model must be a section with the keys preset", "'htc_r50_fpn'"]),
        ("model: {score_threshold: 1.5}", ["model.score_threshold must be a number from 0 to 1", "1.5"]),
        ("model: {precision: fp16}", ["model.precision must be", '"bf16"', "fp16"]),
        ("compute: {workers: '4:2'}", ["compute.workers must be", "4:2"]),
        ("compute: {workers: '0:2'}", ["compute.workers must be", "0:2"]),
        ("compute: {workers: many}", ["compute.workers must be", "many"]),
        ("compute: {workers: true}", ["compute.workers must be", "true"]),
        ("compute: {shard_images: 0}", ["compute.shard_images must be", "0"]),
        ("retry: {max_error_rate: lots}", ["retry.max_error_rate must be", "lots"]),
        ("retry: {max_errors: -1}", ["retry.max_errors must be", "-1"]),
        ("name: a/b", ["name must be letters"]),
        ("model: {preset: htc_r50_fnp}", ["htc_r50_fpn"]),
        ("model: {weights: cocoo}", ["model.weights", "did you mean coco?"]),
        ("select: {mode: inc}", ["select.mode must be", '"incremental"', "inc"]),
        ("select: {mode: incremental, max_deleted_share: 2}", ["select.max_deleted_share must be a share", "2"]),
        ("select: {where: SELECT 1}", ["select", "`where` needs `mode: incremental`"]),
        ("select: {retry: failed}", ["`retry: failed` needs `mode: incremental`"]),
    ],
)
def test_the_message_names_the_mistake_and_the_way_out(tmp_path: Path, line: str, named: list[str]) -> None:
    message = refusal(write_spec(tmp_path, f"input: {{uri: /a}}\noutput: {{uri: /b}}\n{line}\n"))
    assert "\n" not in message
    for words in named:
        assert words in message


@pytest.mark.parametrize("key", ["input.uri", "output.uri", "model.weights", "storage.endpoint_url"])
def test_credentials_in_a_url_are_refused_and_not_repeated(key: str) -> None:
    words = refusal(None, {**TWO_URIS, key: "https://somebody:hush@127.0.0.1:8333/x.pth"})
    assert words.startswith(f"{key}: credentials are not written into a spec")
    assert "hush" not in words
    load_spec(None, {**TWO_URIS, key: "https://127.0.0.1:8333/a:b@c.pth"})


@pytest.mark.parametrize("key", ["key", "secret", "token", "client_kwargs"])
def test_the_storage_section_has_no_place_for_credentials(key: str) -> None:
    assert f"storage.{key} is not a key" in refusal(None, {**TWO_URIS, f"storage.{key}": "x"})


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    message = refusal(write_spec(tmp_path, "input: {url: /a}\nmodel: {max_detections: -1}\n"))
    for words in ("4 problems", "input.uri is missing", "did you mean input.uri?", "output.uri is missing", "-1"):
        assert words in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("input: {uri: [", "not valid YAML in line"),
        ("- a\n- b\n", "must hold keys and values"),
        ("input: {uri: /a}\ninput: {uri: /b}\n", "input appears twice"),
        ("a: !!python/object/apply:os.system [true]\n", "not valid YAML"),
        ("[" * 3000, "nested too deeply"),
    ],
)
def test_bad_yaml_is_refused(tmp_path: Path, text: str, words: str) -> None:
    assert words in refusal(write_spec(tmp_path, text))


def test_missing_and_binary_spec_files_are_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.yaml")
    assert "cannot be read" in refusal(tmp_path)
    binary = tmp_path / "job.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refusal(binary)


def test_identity_ignores_how_the_work_is_distributed() -> None:
    base = load_spec(None, TWO_URIS)
    spread = load_spec(None, {**TWO_URIS, "compute.workers": 3, "retry.max_attempts": 9, "compute.batch_size": 2})
    other = load_spec(None, {**TWO_URIS, "model.score_threshold": 0.3})
    assert base.identity() == spread.identity()
    assert base.identity() != other.identity()


def test_identity_holds_the_selection_and_not_its_limits() -> None:
    incremental = {**TWO_URIS, "select.mode": "incremental"}
    base = load_spec(None, incremental).identity()
    assert base == load_spec(None, {**incremental, "select.max_deleted_share": 0.9}).identity()
    for key, value in (("select.where", "SELECT 1"), ("select.retry", "failed"), ("select.mode", "full")):
        assert base != load_spec(None, {**incremental, key: value}).identity()
    assert not [key for key in load_spec(None, TWO_URIS).identity() if key.startswith("select")]


def test_loading_a_spec_imports_no_heavy_package() -> None:
    code = (
        "import sys\nfrom pipeline.job_spec.job import load_spec\n"
        "load_spec(None, {'input.uri': 'a', 'output.uri': 'b'})\n"
        "heavy = {'torch', 'ray', 'pyarrow', 'fsspec', 'duckdb'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
