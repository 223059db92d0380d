"""Where notifications about runs go: a webhook whose URL stays out of the spec, and a program of the operator's."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline.settings import Section
from pipeline.storage.uris import absolute_uri

RunEvent = Literal["end", "failure"]


def _variable_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        # The value is not quoted: it is probably the URL, which is a secret.
        raise ValueError("this is the name of an environment variable that holds the URL, not the URL itself")
    return name


def _plain_path(path: str) -> str:
    if "://" in path:
        raise ValueError("this is the path of a file that holds the URL, not the URL itself")
    return absolute_uri(path)


def _words(command: list[str]) -> list[str]:
    if not command or not command[0].strip():
        raise ValueError('give the program and its arguments as a list, such as ["/usr/local/bin/page-me", "--night"]')
    return command


class NotifyTargets(Section):
    """Where notifications go.

    webhook_url_env, webhook_url_file: the environment variable or file with the URL that gets Slack-compatible JSON.
        The URL is a secret (anyone who knows it can write to the channel), so it is not part of a spec or schedule.
    exit_hook: a program and its arguments, run without a shell; the variables HTC_* describe the event.
    """

    webhook_url_env: Annotated[str, AfterValidator(_variable_name)] | None = Field(
        default=None, description="the name of an environment variable"
    )
    webhook_url_file: Annotated[str, AfterValidator(_plain_path)] | None = Field(
        default=None, description="the path of a file"
    )
    exit_hook: Annotated[list[str], AfterValidator(_words)] | None = Field(
        default=None, description="a list: a program and its arguments"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_url(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            # Checked here, because the general message would quote the value, which may be the URL.
            raise ValueError("this is a section with the keys " + ", ".join(cls.model_fields))
        if {"webhook", "webhook_url"} & set(values):
            raise ValueError(
                "a webhook's URL is a secret and must not be in a spec or schedule; put it into an environment "
                "variable or a file, and name that as webhook_url_env or webhook_url_file"
            )
        return values

    @model_validator(mode="after")
    def _one_url(self) -> Self:
        if self.webhook_url_env and self.webhook_url_file:
            raise ValueError("webhook_url_env and webhook_url_file are two places for one URL; keep one")
        return self


class NotifySection(NotifyTargets):
    """Where a run's driver reports its end, and which ends.

    events: "end" is a complete run, "failure" a run that is incomplete or could not begin.
    """

    events: list[RunEvent] = Field(default=["end", "failure"], description='a list of "end" and "failure"')
