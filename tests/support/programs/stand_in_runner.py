"""A firing's process that runs nothing: python stand_in_runner.py FOLDER LOCK RUN.

It records that it was started, and ends as complete when there is a file FOLDER/go, or as interrupted on SIGTERM.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    folder = Path(sys.argv[1])
    ends: list[str] = []
    signal.signal(signal.SIGTERM, lambda *_: ends.append("interrupted"))
    with (folder / "starts.txt").open("a", encoding="ascii") as starts:
        starts.write("started\n")
    (folder / "process.txt").write_text(str(os.getpid()), encoding="ascii")
    while not ends:
        if (folder / "go").exists():
            ends.append("complete")
        time.sleep(0.02)
    ending = {"outcome": ends[0], "reason": "", "exit_code": int(ends[0] != "complete"), "counts": {"images": 3}}
    (folder / "ending.json.part").write_text(json.dumps(ending), encoding="ascii")
    (folder / "ending.json.part").replace(folder / "ending.json")


if __name__ == "__main__":
    main()
