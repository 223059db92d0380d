"""Mutation testing of the modules in which a silent mistake would lose rows or masks: how many mutants the tests kill.

Usage: python benchmarks/mutants.py [--run] [MODULE ...]      (pip install "mutmut>=3.8" first; config: [tool.mutmut])

With --run, mutmut creates and tests the mutants (about a second each on one core); without it, the verdicts of the last
run are read. Prints killed of tested by module, then every survivor by name (`mutmut show NAME` prints its change), and
one JSON line last. The exit status is 1 if a module is below 90 %.
"""

import argparse
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

MUTMUT = str(Path(sys.executable).with_name("mutmut"))
LEAST_SHARE = 0.9
# A mutant that hangs or crashes its test process counts as detected, too.
KILLED = {"killed", "timeout", "segfault", "suspicious"}
VERDICT = re.compile(r"\s*(?P<module>\w+\.\w+)\.\S*?(?P<mutant>__mutmut_\d+): (?P<verdict>.+)")


def verdicts() -> list[tuple[str, str, str]]:
    """Return module, name and verdict of every tested mutant."""
    listed = subprocess.run([MUTMUT, "results", "--all", "true"], capture_output=True, text=True, check=True).stdout
    found = [(match, line.strip().split(":")[0]) for line in listed.splitlines() if (match := VERDICT.match(line))]
    return [
        (match["module"], name, match["verdict"].strip())
        for match, name in found
        if match["verdict"].strip() != "not checked"
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "modules", nargs="*", help="such as pipeline.driver.shard_queue; by default all that are configured"
    )
    parser.add_argument("--run", action="store_true", help="make and test the mutants first")
    options = parser.parse_args()
    if options.run:
        names = [f"{module}*" for module in options.modules]
        subprocess.run([MUTMUT, "run", "--max-children", "2", *names], check=False, stdout=subprocess.DEVNULL)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    survivors = []
    for module, name, verdict in verdicts():
        if options.modules and module not in options.modules:
            continue
        counts[module]["killed" if verdict in KILLED else "survived"] += 1
        if verdict not in KILLED:
            survivors.append(f"{name} ({verdict})")
    for module, count in sorted(counts.items()):
        print(f"{module}: {count['killed']} of {count.total()} killed, {count['killed'] / count.total():.1%}")
    for name in survivors:
        print(f"  {name}")
    shares = {module: round(count["killed"] / count.total(), 4) for module, count in sorted(counts.items())}
    print(json.dumps({"benchmark": "mutants", "killed_share": shares, "survivors": len(survivors)}))
    return 0 if shares and min(shares.values()) >= LEAST_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
