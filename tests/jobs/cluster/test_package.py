"""What a job uploads to the cluster: the spec, the code, the command."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from jobs.cli.program import load_program
from jobs.cluster.package import build_entrypoint, requirements, runtime_env_for, spec_text
from jobs.entrypoints.cluster_job import NEEDED, environment_problem
from pipeline.errors import SpecError, WeightsUnavailableError
from pipeline.job_spec.job import JobSpec, load_spec


def spec_of(**overrides: object) -> JobSpec:
    values: dict[str, object] = {"input.uri": "s3://bucket/in", "output.uri": "s3://bucket/out"}
    return load_spec(None, values | {key.replace("__", "."): value for key, value in overrides.items()})


@pytest.mark.parametrize(
    "spec",
    [
        spec_of(),
        spec_of(model__weights="coco"),
        spec_of(model__weights="s3://bucket/my weights.safetensors"),
        spec_of(name="photos", compute__workers="3", input__glob="**/*.jpg", storage__anonymous=True),
        spec_of(input__uri="s3://bucket/a%20b #ü/"),
    ],
)
def test_a_spec_arrives_unchanged(spec: JobSpec, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(spec_text(spec), encoding="utf-8")
    arrived = load_spec(tmp_path / "job.yaml")
    assert arrived == spec
    # A preset that is not set is read from the weights file; setting it would refuse other networks' weights.
    assert ("preset" in arrived.model.model_fields_set) == ("preset" in spec.model.model_fields_set)


def test_the_command_line_of_a_job() -> None:
    assert build_entrypoint("/etc/htc/job.yaml") == "htc run --spec /etc/htc/job.yaml"
    assert build_entrypoint("job.yaml", run="a-1", is_installed=False) == (
        "python -m jobs.entrypoints.cluster_job run --spec job.yaml --run a-1"
    )
    assert shlex.split(build_entrypoint("my job.yaml", fresh=True)) == [
        "htc",
        "run",
        "--spec",
        "my job.yaml",
        "--fresh",
    ]


def test_an_image_gets_the_spec_and_nothing_else() -> None:
    with runtime_env_for(spec_of(), "image", {"AWS_REGION": "eu-central-1"}) as environment:
        files = [path.name for path in Path(environment["working_dir"]).rglob("*")]
        assert files == ["job.yaml"]
        assert set(environment) == {"working_dir", "env_vars"}
        assert environment["env_vars"]["AWS_REGION"] == "eu-central-1"
        # Ray's default of three seconds is too short for a driver that waits for a slow store.
        assert int(environment["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60


def test_a_local_weights_file_is_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "my weights.safetensors"
    weights.write_bytes(b"numbers")
    spec = spec_of(model__weights=str(weights))
    with runtime_env_for(spec, "image", {}) as environment:
        job_folder = Path(environment["working_dir"])
        monkeypatch.chdir(job_folder)
        arrived = load_spec("job.yaml")
        assert arrived.model.weights == str(job_folder / "weights" / "my weights.safetensors")
        assert Path(arrived.model.weights).read_bytes() == b"numbers"
        assert "preset" not in arrived.model.model_fields_set
        monkeypatch.undo()
    with runtime_env_for(spec, "image", {}, is_shared=True) as environment:
        assert load_spec(Path(environment["working_dir"]) / "job.yaml").model.weights == str(weights)
    with pytest.raises(SpecError, match=r"is larger than .*put it into storage that the cluster reaches"):
        runtime_env_for(spec, "image", {}, max_weights_bytes=3).__enter__()
    weights.unlink()
    with pytest.raises(WeightsUnavailableError, match="There is no weights file"):
        runtime_env_for(spec, "image", {}).__enter__()


def test_the_weights_of_all_members_are_uploaded_also_under_one_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "best.safetensors").write_bytes(folder.encode())
    members = ["demo", *(str(tmp_path / folder / "best.safetensors") for folder in ("a", "b"))]
    spec = spec_of(ensemble=members)
    with runtime_env_for(spec, "image", {}) as environment:
        job_folder = Path(environment["working_dir"])
        written = yaml.safe_load((job_folder / "job.yaml").read_text())["model"]["ensemble"]["members"]
        named = [each["weights"] for each in written]
        assert named[0] == "demo"
        assert [(job_folder / name).read_text() for name in named[1:]] == ["a", "b"]
        assert all("preset" not in each for each in written[1:])
        assert all(Path(name).name == "best.safetensors" for name in named[1:])
    with pytest.raises(SpecError, match="with the weights before it"):
        runtime_env_for(spec, "image", {}, max_weights_bytes=1).__enter__()


def test_uploaded_code_has_no_files_that_differ_between_machines() -> None:
    with runtime_env_for(spec_of(), "code", {}) as environment:
        modules = {Path(path).name: Path(path) for path in environment["py_modules"]}
        assert set(modules) == {"htc_batch", "htc_model", "pipeline", "jobs"}
        assert (modules["htc_model"] / "weights" / "bundled" / "htc_lite0_fpn.safetensors").is_file()
        assert not [path for root in modules.values() for path in root.rglob("__pycache__")]
        assert yaml.safe_load((Path(environment["working_dir"]) / "job.yaml").read_text())["input"]["uri"]
        root = Path(environment["working_dir"]).parent
    assert not root.exists()


def test_ray_installs_all_libraries_but_itself() -> None:
    with runtime_env_for(spec_of(), "pip", {}) as environment:
        names = [line.split(">")[0].split("[")[0] for line in environment["pip"]]
    assert "torch" in names
    assert "ray" not in names
    assert "pytest" not in names
    assert environment["pip"] == requirements()


def test_every_library_is_checked_on_the_cluster() -> None:
    names = {re.split(r"[^A-Za-z0-9_-]", line)[0] for line in requirements()}
    # The others are used on the operator's machine only: schedules, the Jobs API, the prompt, the exporter, drift,
    # pages. Without faster-coco-eval, training evaluates by pycocotools.
    operators = {"cronsim", "prometheus-client", "prompt_toolkit", "requests", "sqlalchemy", "tzdata"}
    operators |= {"faster-coco-eval", "jinja2", "scipy"}
    assert names - set(NEEDED.values()) == operators


def test_libraries_that_the_cluster_lacks_are_named() -> None:
    assert environment_problem() == ""
    lacks_one = {**NEEDED, "a_missing_module": "that-library"}
    assert "lacks that-library; submit with --runtime-env pip" in environment_problem(needed=lacks_one)
    lacks_ray = {**NEEDED, "another_missing_module": "ray"}
    assert "is not the one that Ray runs on" in environment_problem(needed=lacks_ray)
    problem = environment_problem(version=(3, 9, 18))
    assert problem == "The cluster runs Python 3.9.18, and htc-batch needs 3.11 or later; use another image."


def test_submit_takes_every_flag_of_run() -> None:
    import jobs.cli.cluster
    import jobs.cli.run  # noqa: F401 - each adds its commands

    commands = load_program().commands
    of_run, of_submit = (
        {option for each in commands[name].params for option in each.opts} for name in ("run", "submit")
    )
    # Input and output are flags of submit; --verbose is about a start on this machine.
    assert of_run - of_submit == {"--verbose", "input_uri", "output_uri"}
    assert {"--input", "--output", "spec"} <= of_submit


def test_a_factory_in_the_current_folder_is_uploaded_and_an_installed_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_models_to_submit.py").write_text("def load(): ...\n")
    (tmp_path / "my_package_to_submit" / "__pycache__").mkdir(parents=True)
    (tmp_path / "my_package_to_submit" / "models.py").write_text("def load(): ...\n")
    uploads = {
        "my_models_to_submit:load": {"my_models_to_submit.py"},
        "my_package_to_submit.models:load": {"my_package_to_submit"},
        "torchvision:maskrcnn_resnet50_fpn": set(),
        "torch.nn:Module": set(),
    }
    for factory, files in uploads.items():
        with runtime_env_for(spec_of(model__preset=factory), "image", {}) as environment:
            folder = Path(environment["working_dir"])
            assert {path.name for path in folder.iterdir()} == {"job.yaml", *files}
            assert not list(folder.rglob("__pycache__"))
    with pytest.raises(SpecError, match="is larger than the 0 MiB that a job can upload"):  # noqa: SIM117
        with runtime_env_for(spec_of(model__preset="my_models_to_submit:load"), "image", {}, max_weights_bytes=3):
            pass
