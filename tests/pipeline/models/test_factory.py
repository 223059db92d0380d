"""How a factory is named, found, imported and called; what is wrong is one sentence with the way out."""

from pathlib import Path

import pytest
from torch import nn

from jobs.cli.options import model_options_of
from pipeline.errors import ModelError, SpecError
from pipeline.job_spec.job import load_spec
from pipeline.job_spec.model import ModelSection
from pipeline.models.factory import find_factory, make_model, search_path
from tests.support.fakes.own_models import Regions

MODULE = "tests.support.fakes.own_models"


def section(function: str, **values: object) -> ModelSection:
    return ModelSection.model_validate({"factory": f"{MODULE}:{function}", **values})


def test_a_factory_gets_its_options_and_its_model_the_settings_of_the_spec() -> None:
    model = make_model(section("load", options={"has_frames": False}, score_threshold=0.5, max_detections=7))
    assert isinstance(model.model, Regions)
    assert not model.model.has_frames
    assert (model.score_threshold, model.max_detections) == (0.5, 7)
    assert (model.name, model.classes, model.category_ids) == ("regions", ("bright", "dark"), (1, 2))


def test_weights_are_handed_on_where_the_spec_names_them(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.touch()
    assert make_model(section("load_weights")).name == "regions with none"
    assert make_model(section("load_weights", weights="untrained")).name == "regions with untrained"
    assert make_model(section("load_weights", weights=str(file))).name == f"regions with {file}"
    with pytest.raises(ModelError, match=r"takes no weights; leave model\.weights"):
        make_model(section("load", weights="untrained"))


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        (f"{MODULE}:laod", r"own_models\.py\) has no laod; did you mean load\?"),
        (f"{MODULE}:no_function", "is not callable: it is of type int"),
        ("no_such_package.module:load", "there is no module no_such_package, neither installed nor in"),
        ("not a name:load", "write package.module:function"),
        ("torchvision:maskrcnn_resnet50_fpn_v3", r"did you mean torchvision:maskrcnn_resnet50_fpn_v2\?"),
        ("no_such_name", "No installed package registers a model 'no_such_name'"),
    ],
)
def test_a_name_that_leads_nowhere_says_where_it_ends(reference: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        find_factory(reference)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("raise_error", r"raised RuntimeError: no licence, in .*own_models\.py, line \d+; `htc model check"),
        (
            "call_exit",
            r"raised SystemExit: 0 \(which ends a program\), in .*own_models\.py, line \d+; `htc model check ",
        ),
        ("need_a_package", "needs the package a_package_that_is_not_there, which is not installed here"),
        ("return_nothing", "returned a NoneType, which has no `name`; a model has name, classes, pixels and infer"),
    ],
)
def test_a_factory_that_fails_is_named(function: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        make_model(section(function))


def test_an_option_that_it_does_not_take_is_named() -> None:
    with pytest.raises(ModelError, match=r"takes no option falt; did you mean fault\?"):
        make_model(section("load", options={"falt": "raises"}))


def test_a_module_is_found_in_the_current_folder_and_a_misspelt_one_is_suggested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*search_path()[:-1]])
    (tmp_path / "my_models_of_today.py").write_text("def load(): return 1\n")
    (tmp_path / "my_broken_models.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "my_wrong_models.py").write_text("def load(:\n")
    assert find_factory("my_models_of_today:load")() == 1
    with pytest.raises(ModelError, match=r"did you mean my_models_of_today\?"):
        find_factory("my_model_of_today:load")
    with pytest.raises(ModelError, match="needs the package a_package_that_is_not_there"):
        find_factory("my_broken_models:load")
    with pytest.raises(ModelError, match=r"cannot be imported: SyntaxError: .*my_wrong_models\.py, line 1"):
        find_factory("my_wrong_models:load")


def test_a_library_s_own_model_is_sent_to_its_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    class Foreign(nn.Module):
        __module__ = "torchvision.models.detection.mask_rcnn"

    monkeypatch.setattr(f"{MODULE}.return_nothing", Foreign)
    with pytest.raises(ModelError, match="named with --model torchvision:NAME"):
        make_model(section("return_nothing"))


def spec(**values: object) -> ModelSection:
    return load_spec(None, {"input.uri": "in", "output.uri": "out", **values}).model


def test_model_names_a_factory_where_a_preset_is_named() -> None:
    model = spec(**{"model.preset": "torchvision:maskrcnn_resnet50_fpn", "model.options.min_size": 64})
    assert (model.factory, model.preset) == ("torchvision:maskrcnn_resnet50_fpn",) * 2
    assert (model.weights, model.options) == ("default", {"min_size": 64})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"model.weights": "coco"}, "coco weights are for presets"),
        ({"model.weights": "demo"}, "demo weights are for presets"),
        ({"model.weights": "pretrained"}, r"must be default \(the factory's own\), untrained, or the path"),
        ({"model.augment": "flip"}, "augment is for networks of the presets"),
        ({"model.suppression": "soft_linear"}, "suppression is for networks of the presets"),
        ({"model.factory": "other:load"}, "preset and factory exclude each other"),
        ({"model.options": {"a": float("nan")}}, "a must be a finite number"),
    ],
)
def test_what_presets_have_is_refused_for_models_of_one_s_own(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        spec(**{"model.preset": "my_models:load", **values})


def test_options_need_a_factory() -> None:
    with pytest.raises(SpecError, match="options are those of a factory"):
        spec(**{"model.preset": "htc_r50_fpn", "model.options": {"a": 1}})


def test_a_flag_replaces_the_file_s_model_and_its_options(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("input: {uri: in}\noutput: {uri: out}\nmodel: {factory: 'my_models:load', options: {a: 1, b: 2}}\n")
    assert load_spec(file).model.options == {"a": 1, "b": 2}
    assert load_spec(file, {"model.options.b": 3}).model.options == {"a": 1, "b": 3}
    assert load_spec(file, {"model.preset": "my_models:load"}).model.options == {"a": 1, "b": 2}
    other = load_spec(file, {"model.preset": "my_models:load_other"}).model
    assert (other.factory, other.options) == ("my_models:load_other", {})
    preset = load_spec(file, {"model.preset": "htc_r50_fpn"}).model
    assert (preset.factory, preset.options, preset.weights) == (None, {}, "coco")


def test_a_spec_of_a_factory_loads_again_from_what_it_dumps() -> None:
    model = spec(**{"model.preset": "my_models:load", "model.options.a": [1, "x"]})
    assert ModelSection.model_validate(model.model_dump(mode="json")) == model
    assert ModelSection.model_validate(model.model_dump(mode="json", exclude_unset=True)) == model


def test_options_on_the_command_line_are_read_as_yaml() -> None:
    given = ["a=1", "b=[1, x]", "c.d=true", "e=", "f=text", "g=a=b"]
    values = {key.removeprefix("model.options."): value for key, value in model_options_of(given)}
    assert values == {"a": 1, "b": [1, "x"], "c.d": True, "e": None, "f": "text", "g": "a=b"}
    assert spec(**{"model.preset": "my_models:load", "model.options.c.d": True}).options == {"c": {"d": True}}
    for wrong in ("a", "=1", "a.=1"):
        with pytest.raises(SpecError, match="--model-option takes KEY=VALUE"):
            list(model_options_of([wrong]))
    with pytest.raises(SpecError, match="The value of --model-option a is not valid YAML"):
        list(model_options_of(["a=[1"]))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("raise SystemExit", r"SystemExit \(which ends a program\)"),
        ("raise SystemExit(0)", r"SystemExit: 0 \(which ends a program\)"),
        ("raise SystemExit('bye')", r"SystemExit: bye \(which ends a program\)"),
        ("raise GeneratorExit", "GeneratorExit"),
    ],
)
def test_a_script_that_ends_the_program_when_it_is_imported_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*search_path()[:-1]])
    (tmp_path / "my_script.py").write_text(f"def load(): return 1\n{line}\n")
    with pytest.raises(
        ModelError, match=rf"my_script:load cannot be imported: {reason}; see .*my_script\.py, line 2\.$"
    ):
        find_factory("my_script:load")
