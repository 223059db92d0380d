"""A stand-in for `htc` as orchestrators call it: it answers as FAKE_HTC says, and writes its calls to FAKE_HTC_CALLS.

FAKE_HTC is JSON: `exit` and `outcome` of a run, `hangs`, `running` (the id of a job that does the run already).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    words = sys.argv[1:]
    plan = json.loads(os.environ.get("FAKE_HTC", "{}"))
    calls = Path(os.environ["FAKE_HTC_CALLS"])
    spec = next((Path(word).read_text() for word in words if word.endswith("job.yaml")), None)
    with calls.open("a") as file:
        file.write(json.dumps({"words": words, "spec": spec}) + "\n")
    outcome = {"status": "complete", "images": 4, "images_done": 4, "statuses": {"ok": 4}, **plan.get("outcome", {})}
    exit_code = plan.get("exit", 0)
    if words[0] == "run":
        if plan.get("hangs"):
            return hang(calls)
        sys.stderr.write("Run r: 4 images in 1 shard.\n" + plan.get("says", "") + "\n")
        if exit_code in (0, 1):
            sys.stdout.write(json.dumps(outcome, indent=2))
        return int(exit_code)
    if words[0] == "submit":
        if plan.get("running"):
            sys.stderr.write("The job is already working on this run.\n")
            return 1
        sys.stdout.write(json.dumps({"job": "job-1", "phase": "pending"}))
    elif words[0] == "list":
        run = words[words.index("--run") + 1] if "--run" in words else plan.get("run")
        job = {"job": plan["running"], "phase": "running", "run": run, "output": plan["output"]}
        sys.stdout.write(json.dumps([job]))
    elif words[0] == "logs":
        if plan.get("hangs"):
            return hang(calls)
        sys.stdout.write("2 of 4 images\n" + plan.get("says", "done") + "\n")
    elif words[0] == "status":
        phase = "failed" if exit_code else "succeeded"
        sys.stdout.write(json.dumps({"job": {"phase": phase, "exit_code": exit_code}, "run": outcome}))
    return 0


def hang(calls: Path) -> int:
    def end(number: int, frame: object) -> None:
        calls.with_suffix(".ended").touch()
        sys.exit(1)

    signal.signal(signal.SIGINT, end)
    calls.with_suffix(".hangs").touch()
    time.sleep(600)
    return 0


if __name__ == "__main__":
    sys.exit(main())
