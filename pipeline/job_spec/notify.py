"""Where notifications about runs go: channels whose URLs stay out of the spec, and a program of the operator's."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from pipeline.settings import Section
from pipeline.storage.uris import absolute_uri

RunEvent = Literal["start", "end", "failure", "early_stop", "overdue"]
WebhookFormat = Literal["auto", "slack", "teams", "json"]
Channel = Literal["webhook", "apprise", "ping", "pushgateway"]
"""What has a URL of its own; `exit_hook` has none."""


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


UrlVariable = Annotated[str, AfterValidator(_variable_name)] | None
UrlFile = Annotated[str, AfterValidator(_plain_path)] | None


class NotifyTargets(Section):
    """Where notifications go.

    webhook_url_env, webhook_url_file: the environment variable or file with the URL that gets a JSON body by POST.
        The URL is a secret (anyone who knows it can write to the channel), so it is not part of a spec or schedule.
    webhook_format: of the body; "auto" chooses by the URL's host, see `jobs.notifications.bodies`.
    apprise_url_env, apprise_url_file: the same for URLs of apprise (https://github.com/caronc/apprise), one or
        several, separated by spaces or lines: mailto:// for e-mail, and what else it delivers to.
    exit_hook: a program and its arguments, run without a shell; the variables HTC_* describe the event.
    """

    webhook_url_env: UrlVariable = Field(default=None, description="the name of an environment variable")
    webhook_url_file: UrlFile = Field(default=None, description="the path of a file")
    webhook_format: WebhookFormat = Field(default="auto", description='"auto", "slack", "teams" or "json"')
    apprise_url_env: UrlVariable = Field(default=None, description="the name of an environment variable")
    apprise_url_file: UrlFile = Field(default=None, description="the path of a file")
    exit_hook: Annotated[list[str], AfterValidator(_words)] | None = Field(
        default=None, description="a list: a program and its arguments"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_url(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            # Checked here, because the general message would quote the value, which may be the URL.
            raise ValueError("this is a section with the keys " + ", ".join(cls.model_fields))
        for channel in get_args(Channel):
            if {channel, f"{channel}_url"} & set(values):
                article = "an" if channel == "apprise" else "a"
                raise ValueError(
                    f"{article} {channel}'s URL is a secret and must not be in a spec or schedule; put it into an "
                    f"environment variable or a file, and name that as {channel}_url_env or {channel}_url_file"
                )
        return values

    @model_validator(mode="after")
    def _one_url(self) -> Self:
        for channel in get_args(Channel):
            variable, file = self.url_source(channel)
            if variable and file:
                raise ValueError(f"{channel}_url_env and {channel}_url_file are two places for one URL; keep one")
        return self

    def url_source(self, channel: Channel) -> tuple[str | None, str | None]:
        """Return the environment variable and the file that may hold the URL of a channel."""
        return getattr(self, f"{channel}_url_env", None), getattr(self, f"{channel}_url_file", None)

    def has_url(self, channel: Channel) -> bool:
        """Return whether a channel is asked for."""
        return any(self.url_source(channel))


class NotifySection(NotifyTargets):
    """Where a run's driver reports its start and end, and which events.

    events: "start"; "end" is a complete run, "failure" a run that is incomplete or could not begin, "early_stop" a
        failure because the run was stopped early, "overdue" a run that has not ended `overdue_after_s` after it began.
    overdue_after_s: seconds from the run's first beginning, resumed sessions included; None for no such time.
    expect_every_s: a complete run is expected this many seconds after the last one at the latest; for `htc metrics`
        and `htc runs --overdue`, which see also that no run was started. None takes their own default.
    ping_url_env, ping_url_file: the variable or file with the URL of an outside service that expects a sign of life
        (healthchecks.io and others): it gets `/start`, then the URL itself for exit code 0 and `/fail` for others.
    pushgateway_url_env, pushgateway_url_file: the same of a Prometheus Pushgateway, which gets the run's outcome.
    """

    events: list[RunEvent] = Field(
        default=["end", "failure", "overdue"],
        description='a list of "start", "end", "failure", "early_stop" and "overdue"',
    )
    overdue_after_s: float | None = Field(default=None, gt=0, description="seconds, more than 0, or null for none")
    expect_every_s: float | None = Field(default=None, gt=0, description="seconds, more than 0, or null")
    ping_url_env: UrlVariable = Field(default=None, description="the name of an environment variable")
    ping_url_file: UrlFile = Field(default=None, description="the path of a file")
    pushgateway_url_env: UrlVariable = Field(default=None, description="the name of an environment variable")
    pushgateway_url_file: UrlFile = Field(default=None, description="the path of a file")
