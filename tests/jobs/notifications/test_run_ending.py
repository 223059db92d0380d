"""Which ends of a run are reported, in which body."""

import pytest

from jobs.notifications.bodies import Report, build_body
from jobs.notifications.run_ending import ending_of_summary
from pipeline.runs.summary import RunSummary
from tests.jobs.notifications.test_announcer import summary


def test_a_run_that_was_complete_before_is_not_reported_again() -> None:
    assert ending_of_summary(summary(session_images=0)) is None
    assert ending_of_summary(summary(session_images=0, exit_code=3, reason="its input has changed")) is None
    nothing_new = ending_of_summary(summary(images=0, images_done=0, session_images=0, statuses={}))
    assert nothing_new is not None
    assert nothing_new.exit_code == 0


@pytest.mark.parametrize(
    ("url", "keys"),
    [
        ("https://hooks.slack.com/services/T/B/x", {"text"}),
        ("https://acme.webhook.office.com/webhookb2/x", {"type", "attachments"}),
        ("https://prod-1.westeurope.logic.azure.com:443/workflows/x", {"type", "attachments"}),
        ("https://hooks.slack.com.example.org/x", {"event", "text"}),
        ("http://10.0.0.1:9000/x", {"event", "text"}),
    ],
)
def test_the_host_of_the_url_decides_the_body(url: str, keys: set[str]) -> None:
    report = Report("FAILED\nwhy", {"event": "failure"})
    assert set(build_body(report, url, "auto")) == keys
    assert set(build_body(report, url, "json")) == {"event", "text"}


def test_what_other_parts_add_to_a_summary_is_reported() -> None:
    class Fuller(RunSummary):
        def to_dict(self) -> dict[str, object]:
            return super().to_dict() | {"bottleneck": {"sentence": "The model waited."}, "stopped_by": "max_cost"}

    values = {name: getattr(summary(), name) for name in RunSummary.__dataclass_fields__}
    ending = ending_of_summary(Fuller(**{**values, "status": "interrupted", "exit_code": 1}))
    assert ending is not None
    assert (ending.bottleneck, ending.event) == ("The model waited.", "early_stop")
