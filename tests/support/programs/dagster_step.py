"""Materializes the asset of docs/orchestrators.md with Dagster's own `materialize`: dagster_step.py HTC PHOTOS.

HTC is the command, as JSON; PHOTOS takes the place of the page's bucket.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


def main(command: list[str], photos: str) -> None:
    # This folder holds no modules of Dagster's.
    sys.path[0] = str(ROOT)
    import dagster

    page = (ROOT / "docs" / "orchestrators.md").read_text()
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "import dagster" in code]
    example = example.replace("s3://my-bucket", photos).replace("delay=600)", "delay=0)")
    example = example.replace("    partitions_def", f"    command={command!r},\n    partitions_def")
    names: dict[str, Any] = {}
    exec(example, names)
    asset = names["street_masks"]
    done = dagster.materialize([asset], partition_key="2026-11-20", raise_on_error=False)
    events = [event.event_type_value for event in done.all_events]
    found = {
        "success": done.success,
        "retries": events.count("STEP_UP_FOR_RETRY"),
        "metadata": [
            {key: value.value for key, value in each.metadata.items()}
            for each in done.asset_materializations_for_node("street_masks")
        ],
        "failure": [
            event.step_failure_data.user_failure_data.description
            for event in done.all_events
            if event.event_type_value == "STEP_FAILURE"
        ],
    }
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
