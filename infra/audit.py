"""`make lint`'s look at known vulnerabilities of what is installed; offline it says so and lets the rest pass.

pip-audit ends with 1 both for a finding and for a network that does not answer, so its report decides.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

TIME_LIMIT_S = 180


def read_findings(report: Path) -> list[str] | None:
    """Read pip-audit's JSON report: a line per vulnerability, or None when there is no whole report."""
    try:
        packages = json.loads(report.read_text(encoding="utf-8"))["dependencies"]
    except (OSError, ValueError, KeyError):
        return None
    return [
        f"{package['name']} {package['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or '-'}"
        for package in packages
        for found in package.get("vulns", [])
    ]


def main() -> int:
    """Audit this interpreter's packages; 1 when one is known to be vulnerable."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "audit.json"
        command = [sys.executable, "-m", "pip_audit", "--format", "json", "--output", str(report)]
        try:
            done = subprocess.run(
                [*command, "--progress-spinner", "off", "--timeout", "15"],
                capture_output=True,
                text=True,
                check=False,
                timeout=TIME_LIMIT_S,
            )
            said = done.stderr.strip().splitlines()
        except subprocess.TimeoutExpired:
            said = [f"no answer within {TIME_LIMIT_S} s"]
        findings = read_findings(report)
    if findings is None:
        sys.stdout.write(
            f"pip-audit: not audited, since its service cannot be asked ({said[-1] if said else 'silent'}).\n"
        )
        return 0
    sys.stdout.write("".join(f"{line}\n" for line in findings) or "pip-audit: no known vulnerabilities.\n")
    return 1 if findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
