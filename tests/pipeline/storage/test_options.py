"""`storage.options`: credentials and options that the program sets itself are refused, everything else is passed on."""

import pytest

from pipeline.errors import SpecError
from pipeline.job_spec.job import load_spec

PLAIN = {"input.uri": "in", "output.uri": "out"}


@pytest.mark.parametrize(
    "path",
    [
        "s3.key",
        "s3.secret",
        "s3.token",
        "s3.client_kwargs.aws_access_key_id",
        "s3.client_kwargs.aws_secret_access_key",
        "s3.client_kwargs.aws_session_token",
        "s3.s3_additional_kwargs.SSECustomerKey",
        "s3.password",
        "s3.username",
        "gs.token",
        "abfs.account_key",
        "abfs.sas_token",
        "abfs.connection_string",
        "abfs.client_secret",
        "abfs.credential",
        "https.headers.Authorization",
        "https.headers.X-Api-Key",
        "https.client_kwargs.cookies",
        "https.client_kwargs.auth",
    ],
)
def test_credentials_are_refused_by_name_and_not_repeated(path: str) -> None:
    with pytest.raises(SpecError, match=rf"storage\.options: {path} is a credential") as caught:
        load_spec(None, {**PLAIN, f"storage.options.{path}": "value-that-must-not-appear"})
    assert "value-that-must-not-appear" not in str(caught.value)


@pytest.mark.parametrize(
    "value", ["AKIAIOSFODNN7EXAMPLE", "https://user:hunter2@proxy", "https://hunter2@proxy", "http://x/?sig=hunter2"]
)
def test_a_value_that_looks_like_a_credential_is_refused(value: str) -> None:
    with pytest.raises(SpecError, match=r"s3\.client_kwargs\.proxy looks like a credential") as caught:
        load_spec(None, {**PLAIN, "storage.options.s3.client_kwargs.proxy": value})
    assert value not in str(caught.value)


def test_a_secret_of_the_environment_is_refused_whatever_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMIK7MDENG")
    with pytest.raises(SpecError, match=r"s3\.harmless looks like a credential"):
        load_spec(None, {**PLAIN, "storage.options.s3": {"harmless": ["a", "wJalrXUtnFEMIK7MDENG"]}})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (True, "a section for each scheme"),
        ({"requester_pays": True}, "requester_pays must be a scheme"),
        ({"S3 ": {}}, "'S3 ' is not a scheme"),
        ({"file": {}}, "local files have no options"),
        ({"s3": {"anon": True}}, "s3.anon is set by htc itself; set `storage: {anonymous: true}`"),
        ({"s3": {"config_kwargs": {"retries": {"mode": "standard"}}}}, r"retries is set by htc itself; set storage\.p"),
        ({"s3": {"session": object()}}, "s3.session is set by htc itself"),
        ({"s3": {"default_block_size": object()}}, "s3.default_block_size must be text, a number"),
    ],
)
def test_invalid_and_reserved_options_are_refused_with_the_way_out(options: object, sentence: str) -> None:
    with pytest.raises(SpecError, match=f"storage.options: .*{sentence}"):
        load_spec(None, {**PLAIN, "storage.options": options})


def test_plain_options_are_passed_on_unchanged() -> None:
    options = {
        "s3": {"requester_pays": True, "profile": "nightly", "client_kwargs": {"region_name": "eu-central-1"}},
        "gs": {"project": "photos", "endpoint_url": "http://127.0.0.1:4443"},
        "abfs": {"account_name": "photos", "tenant_id": "00000000-0000-0000-0000-000000000000"},
        "https": {"block_size": 0, "client_kwargs": {"trust_env": True}},
    }
    spec = load_spec(None, {**PLAIN, "storage.options": options})
    assert spec.storage.options == options
    assert spec.to_dict()["storage"]["options"] == options
