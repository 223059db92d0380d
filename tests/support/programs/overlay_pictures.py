"""Remake the pictures of docs/show.md and the README: `python -m tests.support.programs.overlay_pictures --write`.

Two runs with the bundled model, over the bundled photos and over those with annotations, and `htc show`; a minute on
two cores. Without --write the pictures go to a temporary folder, whose name is printed.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.paths import PHOTOS, ROOT

TARGET = ROOT / "docs" / "overlays"
ANNOTATED = ROOT / "examples" / "training" / "three_classes"
README_PHOTOS = ("000000079031", "000000097278", "000000237071", "000000389812")


def htc(*arguments: str) -> None:
    """Run one command."""
    subprocess.run([sys.executable, "-m", "jobs", *arguments], check=True, cwd=ROOT)


def show(output: Path, folder: Path, picture: str, name: str, *flags: str) -> None:
    """Draw one picture, and give it a name in the folder."""
    made = folder / "made" / name
    htc("show", str(output), "--to", str(made), "--format", "jpeg", *flags)
    shutil.move(made / picture, folder / f"{name}.jpg")


def make_pictures(folder: Path) -> list[Path]:
    """Make all pictures in a folder."""
    photos, annotated = folder / "photos", folder / "annotated"
    htc("run", str(PHOTOS), str(photos), "--weights", "demo")
    htc("run", str(ANNOTATED / "images"), str(annotated), "--weights", "demo")
    for stem in README_PHOTOS:
        show(photos, folder, f"{stem}.jpg", stem, "--uri", f"{stem}.jpg", "--size", "480")
    one = ("--uri", "000000319492.jpg")
    show(photos, folder, "000000319492.jpg", "by-instance", *one, "--colour-by", "instance", "--size", "560")
    show(photos, folder, "000000319492.jpg", "thumbnail", *one, "--size", "200")
    show(photos, folder, "sheet-01.jpg", "sheet", "--sheet", "--size", "140")
    show(photos, folder, "sheet-01.jpg", "crops", "--crops", "--sheet", "--size", "140", "--min-score", "0.8")
    truth = ("--truth", str(ANNOTATED / "val.json"), "--size", "420")
    show(annotated, folder, "000000060623.jpg", "truth", *truth, "--uri", "000000060623.jpg")
    (folder / "gone.jpg").write_bytes(_picture_of_a_gone_image(folder))
    return sorted(folder.glob("*.jpg"))


def _picture_of_a_gone_image(folder: Path) -> bytes:
    """Segment one photo, remove it, and draw it."""
    photos, output, made = folder / "gone_photos", folder / "gone", folder / "made" / "gone"
    photos.mkdir()
    photo = photos / f"{README_PHOTOS[0]}.jpg"
    shutil.copy(PHOTOS / photo.name, photo)
    htc("run", str(photos), str(output), "--weights", "demo")
    photo.unlink()
    command = ["show", str(output), "--to", str(made), "--format", "jpeg", "--size", "320"]
    done = subprocess.run([sys.executable, "-m", "jobs", *command], check=False, cwd=ROOT)
    if done.returncode != 1:
        raise SystemExit(f"htc show of an image that is gone ended with {done.returncode} and not with 1")
    return (made / photo.name).read_bytes()


def main() -> None:
    """Make the pictures, and put them into docs/overlays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the pictures in docs/overlays")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="overlays-"))
    pictures = make_pictures(folder)
    if not options.write:
        print(f"{len(pictures)} pictures in {folder}")
        return
    TARGET.mkdir(exist_ok=True)
    for old in TARGET.glob("*.jpg"):
        old.unlink()
    for picture in pictures:
        shutil.move(picture, TARGET / picture.name)
        print(f"{TARGET / picture.name}: {(TARGET / picture.name).stat().st_size:,} bytes")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
