"""The JSON bodies that webhooks get: Slack's, Microsoft Teams', or every field by its name.

slack: `{"text": ...}`, which Slack, Mattermost, Rocket.Chat and Google Chat take. teams: a message with one Adaptive
Card, as Teams' workflow "When a Teams webhook request is received" takes it
(learn.microsoft.com/microsoftteams/platform/webhooks-and-connectors/how-to/connectors-using). json: all fields of the
report, and `text`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pipeline.job_spec.notify import WebhookFormat

_SLACK_HOSTS = ("hooks.slack.com", "hooks.slack-gov.com", "chat.googleapis.com")
# Workflows of Power Automate (two generations of hosts), and Office 365 connectors.
_TEAMS_HOSTS = (".logic.azure.com", ".powerplatform.com", ".webhook.office.com")


@dataclass(frozen=True)
class Report:
    """What a notification says: a text for people, and the same by field for programs.

    title: its first line. fields: values that JSON can hold.
    """

    text: str
    fields: Mapping[str, object] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The first line of the text."""
        return self.text.partition("\n")[0]


def build_body(report: Report, url: str, chosen: WebhookFormat) -> dict[str, object]:
    """Build the body of a webhook's request.

    Args:
        url: the webhook's; its host decides where `chosen` is "auto", and any unknown host gets "json".
    """
    match _format_of(url) if chosen == "auto" else chosen:
        case "slack":
            return {"text": _escaped(report.text)}
        case "teams":
            return _build_card(report)
        case _:
            return {**report.fields, "text": report.text}


def _format_of(url: str) -> WebhookFormat:
    host = (urlsplit(url).hostname or "").lower()
    if host in _SLACK_HOSTS:
        return "slack"
    return "teams" if host.endswith(_TEAMS_HOSTS) else "json"


def _escaped(text: str) -> str:
    # docs.slack.dev/messaging/formatting-message-text: `<` begins a link.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _build_card(report: Report) -> dict[str, object]:
    first, *others = report.text.split("\n")
    blocks: list[dict[str, object]] = [
        {"type": "TextBlock", "text": first, "weight": "bolder", "size": "medium", "wrap": True}
    ]
    blocks += [{"type": "TextBlock", "text": line, "wrap": True, "spacing": "small"} for line in others if line]
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "msteams": {"width": "Full"},
        "body": blocks,
    }
    attachment = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
    return {"type": "message", "attachments": [attachment]}
