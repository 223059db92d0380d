"""Installs Debian's chromium where it is missing: `python infra/get_browser.py`, as root.

Tests of pages need it, and are skipped, with the reason, where there is no browser. It is a package of the system, so
nothing is done without root, without apt-get, or where a browser is there already or $HTC_CHROMIUM names one.
"""

import os
import shutil
import subprocess
import sys

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Without a font, letters are boxes.
PACKAGES = ("chromium", "fonts-dejavu-core")
UPDATE_S, INSTALL_S = 90, 240


def why_not() -> str:
    """The reason why nothing is to be done; "" where chromium is missing and may be installed."""
    if named := os.environ.get("HTC_CHROMIUM"):
        return f"HTC_CHROMIUM names {named}."
    if found := next((path for program in PROGRAMS if (path := shutil.which(program))), None):
        return f"{found} is there."
    if shutil.which("apt-get") is None:
        return "There is no browser and no apt-get here; tests of pages are skipped."
    if os.geteuid() != 0:
        return "There is no browser, and only root may install one (package chromium); tests of pages are skipped."
    return ""


def install() -> str:
    """Install the packages; return what failed, "" when nothing did."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # A lock that another apt-get holds is waited for, and no longer than the limit.
    flags = ["-qq", "-o", "DPkg::Lock::Timeout=60", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20"]
    steps = (
        (UPDATE_S, ["update"]),
        (INSTALL_S, ["install", "--yes", "--no-install-recommends", *PACKAGES]),
    )
    for limit_s, words in steps:
        command = ["apt-get", *flags, *words]
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            return f"apt-get {words[0]} did not end within {limit_s} s"
        if done.returncode:
            return f"apt-get {words[0]}: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
    return ""


def main() -> int:
    """Install chromium where that is wanted and possible; always 0, because everything else works without it."""
    reason = why_not()
    if not reason:
        failure = install()
        reason = f"chromium was not installed ({failure}); tests of pages are skipped." if failure else why_not()
    sys.stdout.write(f"{reason}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
