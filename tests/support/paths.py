"""Where the tests' files lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
DATA = TESTS / "data"
PHOTOS = ROOT / "examples" / "photos"
# Programs that tests start as processes of their own, with PYTHONPATH=ROOT.
PROGRAMS = TESTS / "support" / "programs"
