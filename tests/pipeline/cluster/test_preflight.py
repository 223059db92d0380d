"""The preflight check on the nodes: one sentence that names the node, before any worker is started."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.node_calls import MAX_NODES, choose_nodes
from pipeline.cluster.preflight import MARKER, PreflightError, PreflightResult, check_node, check_nodes
from pipeline.errors import StorageError
from pipeline.job_spec.job import JobSpec, load_spec
from pipeline.storage.storage import Storage
from tests.support.fakes.models import write_images


def spec_in(folder: Path, **overrides: object) -> JobSpec:
    write_images(folder / "in", 2)
    values: dict[str, object] = {
        "input.uri": str(folder / "in"),
        "output.uri": str(folder / "out"),
        "model.preset": "htc_lite0_fpn",
        "model.weights": "untrained",
    }
    return load_spec(None, values | {key.replace("__", "."): value for key, value in overrides.items()})


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def check_here(spec: JobSpec) -> PreflightResult:
    """Check with a marker that a driver has written into the output."""
    marker = f"{spec.output.uri}/{MARKER}0"
    Storage(spec.storage).write(marker, b"htc")
    result = check_node(spec, marker)
    Storage(spec.storage).delete(marker)
    return result


def test_a_node_without_problems_leaves_nothing_behind(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    asked: list[JobSpec] = []

    def run_on_nodes(action: Any, given: JobSpec, marker: str, *, notify: Any) -> dict[str, PreflightResult]:
        asked.append(given)
        # Ray pickles arguments and results.
        return pickle.loads(pickle.dumps({"10.0.0.7": action(given, marker)}))  # type: ignore[no-any-return]

    check_nodes(spec, notify=lambda sentence: None, run_on_nodes=run_on_nodes)
    assert asked == [spec]
    assert files_in(tmp_path) == ["in", "in/image-000.png", "in/image-001.png"]


@pytest.mark.parametrize(
    ("overrides", "sentence", "code"),
    [
        ({"input__uri": "/nowhere/photos"}, "The input /nowhere/photos does not exist.", 2),
        ({"model__weights": "/nowhere/w.pth"}, "there is no weights file /nowhere/w.pth.", 2),
        (
            {"model__preset": None, "model__weights": None, "ensemble": ["demo", "/nowhere/w.pth"]},
            "there is no weights file /nowhere/w.pth.",
            2,
        ),
        ({"input__uri": "nostore://bucket/in"}, "scheme", 2),
    ],
)
def test_what_a_node_cannot_reach_is_one_sentence(
    tmp_path: Path, overrides: dict[str, object], sentence: str, code: int
) -> None:
    result = check_here(spec_in(tmp_path, **overrides))
    assert sentence in result.problem
    assert result.exit_code == code


def test_images_that_may_not_be_read_are_distinguished_from_a_bad_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_in(tmp_path)
    refused: list[str] = []

    def refuse(storage: Storage, uri: str, *arguments: object, **keywords: object) -> Any:
        refused.append(uri)
        raise StorageError(f"{uri} may not be read.")

    (tmp_path / "in" / "image-000.png").write_bytes(b"no image at all")
    assert check_here(spec) == PreflightResult()
    fetch = Storage.fetch
    monkeypatch.setattr(
        Storage, "fetch", lambda self, uri, *a, **k: (refuse if "/in/" in uri else fetch)(self, uri, *a, **k)
    )
    result = check_here(spec)
    assert "the input is listed but cannot be read: " in result.problem
    assert result.exit_code == 2
    # Every one of the first: a single forbidden image becomes its row.
    assert len(refused) == 2


def test_an_output_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_in(tmp_path)
    marker = f"{spec.output.uri}/{MARKER}0"
    Storage().write(marker, b"htc")

    def refuse(storage: Storage, uri: str, payload: bytes) -> None:
        raise StorageError(f"{uri} may not be written.")

    monkeypatch.setattr(Storage, "write", refuse)
    result = check_node(spec, marker)
    assert "may not be written" in result.problem
    assert result.exit_code == 1


def test_a_local_output_that_is_another_folder_on_the_node(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    (tmp_path / "out").mkdir()

    def run_on_nodes(action: Any, given: JobSpec, marker: str, *, notify: Any) -> dict[str, PreflightResult]:
        elsewhere = marker.replace("/out/", "/other/")
        return {"10.0.0.7": PreflightResult(), "10.0.0.8": action(given, elsewhere)}

    with pytest.raises(PreflightError) as caught:
        check_nodes(spec, notify=lambda sentence: None, run_on_nodes=run_on_nodes)
    assert str(caught.value) == (
        f"On the cluster's node 10.0.0.8: the output {tmp_path}/out is another folder here than where the driver runs. "
        "A local path must be the same on all nodes of a cluster: use shared storage (s3://...) or a mount."
    )
    assert caught.value.exit_code == 1
    assert files_in(tmp_path / "out") == []


def test_a_node_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = check_here(spec_in(tmp_path))
    assert result == PreflightResult("torch is not installed, which the workers need.", 2)


def node(name: str, **resources: float) -> dict[str, Any]:
    return {"NodeID": name, "NodeManagerAddress": name, "Alive": True, "Resources": resources}


HEAD = {"node:__internal_head__": 1.0}


def test_the_nodes_where_workers_will_run_are_chosen() -> None:
    def chosen(*nodes: dict[str, Any]) -> list[str]:
        return [each["NodeID"] for each in choose_nodes(nodes)]

    head, dead = node("head", CPU=4, **HEAD), node("dead", CPU=4) | {"Alive": False}
    assert chosen(head) == ["head"]
    assert chosen(head, node("b", CPU=4), node("a", CPU=4), dead) == ["a", "b"]
    assert chosen(head, node("a", CPU=4), node("g", CPU=4, GPU=1)) == ["g"]
    assert chosen(node("head", **HEAD)) == ["head"]
    many = [node(f"n{number:03d}", CPU=4) for number in range(100)]
    asked = chosen(*many)
    assert len(set(asked)) == MAX_NODES
    assert (asked[0], asked[-1]) == ("n000", "n093")


def test_a_node_that_lacks_the_model_s_package_is_named(tmp_path: Path) -> None:
    good = spec_in(tmp_path, model__preset="tests.support.fakes.own_models:load", model__weights="default")
    gone = good.model_copy(update={"model": good.model.model_validate({"factory": "no_such_package:load"})})
    asked: list[tuple[str, ...]] = []

    def run_on_nodes(
        action: Any, given: JobSpec, marker: str, folders: tuple[str, ...], *, notify: Any
    ) -> dict[str, PreflightResult]:
        asked.append(folders)
        return {"10.0.0.7": action(good, marker, folders), "10.0.0.8": action(gone, marker, folders)}

    with pytest.raises(PreflightError, match=r"node 10\.0\.0\.8: .*there is no module no_such_package") as caught:
        check_nodes(good, notify=lambda sentence: None, run_on_nodes=run_on_nodes)
    assert caught.value.exit_code == 2
    assert asked[0][-1] == str(Path.cwd())
