"""Runs the DAG of docs/orchestrators.md with Airflow's own `dag.test`: airflow_step.py FOLDER HTC PHOTOS, as JSON.

FOLDER becomes AIRFLOW_HOME; HTC is the command, as JSON; PHOTOS takes the place of the page's bucket.
"""

import importlib.util
import json
import logging
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def main(folder: Path, command: list[str], photos: str) -> None:
    os.environ |= {
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
    }
    # This folder holds no modules of Airflow's.
    sys.path[0] = str(ROOT)
    import pendulum
    from airflow.utils.db import initdb

    initdb()
    page = (ROOT / "docs" / "orchestrators.md").read_text()
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "airflow.sdk" in code]
    example = example.replace('Asset("s3://my-bucket', f'Asset("file://{photos}').replace("s3://my-bucket", photos)
    example = example.replace("retries=3,", f"retries=3, command={command!r},")
    # `dag.test` knows only what lies in this folder.
    path = folder / "dags" / "street_scenes.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(example)
    spec = importlib.util.spec_from_file_location("street_scenes", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    logging.disable(logging.CRITICAL)
    run = module.dag.test(logical_date=pendulum.datetime(2026, 11, 20, tz="UTC"))
    (step,) = run.get_task_instances()
    found = {
        "run": str(run.state),
        "task": str(step.state),
        "result": step.xcom_pull(task_ids="segment"),
        "failed": step.xcom_pull(task_ids="segment", key="failed_run"),
    }
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3])
