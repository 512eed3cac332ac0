"""Reads subtitles: SubRip, WebVTT and ASS files, and the text tracks inside a video file.

    cues = parse(Path("film.en.srt").read_bytes(), "film.en.srt")
    cues.notes[0]            # Note(start=1.0, end=2.5, text="Good morning.")
    cues.faults              # what could not be read, each with its line
    tracks_of("film.mp4")    # the files beside it and the tracks in it, the best first

Nothing is left out without a fault that names its line. The format is told by the content, since
many files carry another format's suffix.
"""

import html
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from os.path import isfile  # False of what can be no path, as a long URL
from pathlib import Path

import av
from av.container import InputContainer

from streammem.errors import SourceError
from streammem.types import Note

SUFFIXES = (".srt", ".vtt", ".ass", ".ssa")
MAX_FILE_BYTES = 32 << 20
MAX_NOTE_CHARS = 500  # a longer cue becomes several, so that a memory can hold each
_VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .wmv .flv .mpg .mpeg .ts .mts .m2ts .3gp .ogv".split()  # noqa: SIM905
)
_PICTURES = frozenset({"dvbsub", "dvdsub", "pgssub", "xsub"})
CLOSED_CAPTIONS = "cc_dec"  # FFmpeg's decoder of EIA-608
UNKNOWN_S = 2.0  # that a cue is shown whose end is not known
MAX_CAPTION_S = 30.0  # a longer closed caption was never taken away
SAME_TEXT_GAP_S = 0.05  # equal cues this near are one: layers, and captions that roll up
_ABOUT = {"forced", "sdh", "cc", "hi", "default", "full", "dubtitle"}  # suffixes beside a language

# ISO 639-1, 639-2 and English names that files and containers use for one language.
_LANGUAGES = (
    "ar ara arabic", "bg bul bulgarian", "cs ces cze czech", "da dan danish",
    "de deu ger german", "el ell gre greek", "en eng english", "es spa spanish",
    "et est estonian", "fa fas per persian", "fi fin finnish", "fr fra fre french",
    "he heb hebrew", "hi hin hindi", "hr hrv croatian", "hu hun hungarian", "id ind indonesian",
    "it ita italian", "ja jpn japanese", "ko kor korean", "lt lit lithuanian", "lv lav latvian",
    "nl nld dut dutch", "no nor nb nob norwegian", "pl pol polish", "pt por portuguese",
    "ro ron rum romanian", "ru rus russian", "sk slk slo slovak", "sl slv slovenian",
    "sr srp serbian", "sv swe swedish", "th tha thai", "tr tur turkish", "uk ukr ukrainian",
    "vi vie vietnamese", "zh zho chi chinese",
)  # fmt: skip
_LANGUAGE = {name: names.split()[0] for names in _LANGUAGES for name in names.split()}
# What text in a language is written in where it is not Unicode.
_ENCODINGS = {
    "ar": "cp1256", "bg": "cp1251", "cs": "cp1250", "el": "cp1253", "et": "cp1257",
    "fa": "cp1256", "he": "cp1255", "hr": "cp1250", "hu": "cp1250", "ja": "cp932", "ko": "cp949",
    "lt": "cp1257", "lv": "cp1257", "pl": "cp1250", "ro": "cp1250", "ru": "cp1251",
    "sk": "cp1250", "sl": "cp1250", "sr": "cp1251", "th": "cp874", "tr": "cp1254", "uk": "cp1251",
    "vi": "cp1258", "zh": "gb18030",
}  # fmt: skip

_TIME = r"(?:(\d{1,6}):)?(\d{1,3}):(\d{1,2})(?:[,.:](\d{1,9}))?"
_CUE = re.compile(rf"\s*{_TIME}\s*--?\s?>\s*{_TIME}(?:\s.*)?", re.ASCII)
_LOCAL, _STAMP = re.compile(rf"LOCAL:{_TIME}", re.ASCII), re.compile(r"MPEGTS:(\d{1,18})", re.ASCII)
_ASS_TIME = re.compile(_TIME, re.ASCII)
_VOICE = re.compile(r"<v(?:\.[^\s<>]*)?\s+([^\s<>][^<>]*)>", re.IGNORECASE)
_TAG = re.compile(
    r"</?(?:b|i|u|s|em|strong|font|span|p|br|c|v|ruby|rt|lang)(?:[.\s/][^<>]*)?>|<[\d:.]+>",
    re.IGNORECASE,
)
# Quotation marks around the whole cue, as exports have them; not those of “Yes,” he said, “now.”
_QUOTED = re.compile(r"“([^“]+|[^“”]*“.*)”")
_OVERRIDE = re.compile(r"\{\\[^{}]*\}")
_ASS_FIELDS = "layer start end style name marginl marginr marginv effect text".split()  # noqa: SIM905


@dataclass(frozen=True, slots=True)
class Cues:
    """What was read of one subtitle track.

    Attributes:
        notes: in order of their start, then of their end; each text one line without markup.
        faults: what was left out or guessed, each in one line.
    """

    notes: tuple[Note, ...]
    faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Track:
    """A subtitle track that a video file has.

    Attributes:
        name: for messages: the file's name, or ``subtitle track N of film.mkv``.
        language: ISO 639-1 where it is known, as it stands there otherwise; empty without one.
        forced: whether it holds only what is said in a foreign language.
        read: reads it; raises ``SourceError`` where it cannot be opened. Nothing of one that comes
            while it is watched.
        cues: of a track that is not a file of its own: gives its notes one by one, in its order,
            and what is wrong with it; it opens the file with its first step. It is given functions
            that return whether to give up, and whether the pictures have ended.
        is_text: whether it can be read; pictures of text, and teletext, cannot.
    """

    name: str
    language: str
    forced: bool
    read: Callable[[], Cues] = lambda: Cues(())
    is_text: bool = True
    cues: Callable[..., Iterator[Note | str | float]] = lambda *_: iter(())


def parse(data: bytes, name: str, language: str = "") -> Cues:
    """Read a subtitle file.

    Args:
        data: its bytes, in any encoding and with any line ends.
        name: what faults call it.
        language: of the text, if known: tells the encoding of what is not Unicode.
    """
    text, faults = _decoded(data, name, language)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "").split("\n")
    if lines[0].strip().startswith("WEBVTT"):
        found = _read_vtt(lines)
    elif any(line.startswith(("[Script Info]", "[Events]", "Dialogue:")) for line in lines):
        found = _read_ass(lines)
    else:
        found = _read_srt(lines)
    notes: list[Note] = []
    for line, start, end, said in found:
        if end is None:
            faults.append(f"{name}, line {line}: {said}")
        elif end < start:
            faults.append(f"{name}, line {line}: ends before it begins; the cue is left out")
        elif said:
            notes += split_long(start, end, said)
    if not notes and not faults:
        faults.append(f"{name}: has no cue in it; is it SubRip, WebVTT or ASS?")
    return Cues(_in_order(notes), tuple(faults))


def parse_segment(data: bytes, name: str) -> tuple[float, Cues]:
    """Read a WebVTT segment of HLS.

    Args:
        data: its bytes, in UTF-8.
        name: what faults call it.

    Returns:
        The stamp of the pictures, in seconds, at the segment's own time 0; and its cues, in that
        time. A segment without a cue has no fault.

    Source: RFC 8216, HTTP Live Streaming, 3.5: without a header the two begin together.
    """
    text = data.decode("utf-8-sig", "replace")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if not lines[0].startswith("WEBVTT"):
        return 0.0, Cues((), (f"{name}: a part of its subtitles is no WebVTT; it is left out",))
    head = next((line for line in lines[:20] if line.startswith("X-TIMESTAMP-MAP=")), "")
    local, stamp = _LOCAL.search(head), _STAMP.search(head)
    shift = int(stamp[1]) / 90_000 if stamp else 0.0
    shift -= _seconds(local.groups()) if local else 0.0
    notes, faults = list[Note](), list[str]()
    for line, start, end, said in _read_vtt(lines):
        if end is None or end < start:
            faults.append(f"{name}, line {line} of a part of its subtitles: is left out")
        elif said:
            notes += split_long(start, end, said)
    return shift, Cues(_in_order(notes), tuple(faults))


def language_of(name: str) -> str:
    """Return the ISO 639-1 code of a language's code or English name; others stay as they are."""
    name = name.strip().lower().replace("_", "-")
    return _LANGUAGE.get(name) or _LANGUAGE.get(name.partition("-")[0]) or name


def tracks_of(path: str | Path, *, looks_inside: bool = True) -> list[Track]:
    """Return the subtitle tracks of a video file, the best first: beside it, then in it.

    Of each kind the one without a language comes first, then the default one; forced ones, which
    hold only a part of what is said, come last, and then those that cannot be read.

    Args:
        path: of the video.
        looks_inside: open it; not where it is known to hold no tracks of text.
    """
    path, inside = Path(path), list[Track]()

    def opened() -> InputContainer:
        return av.open(f"file:{path}", "r", options={"protocol_whitelist": "file"})

    if looks_inside:
        with suppress(SourceError):  # that it is no video is reported by what opens it as one
            inside = tracks_in(opened, path.name)
    return _best_first([*_beside(path), *inside])


def tracks_in(opened: Callable[[], InputContainer], name: str) -> list[Track]:
    """Return the text tracks of a video that FFmpeg can decode to text, the best first.

    Args:
        opened: opens it.
        name: what messages call it: without credentials.

    Raises:
        SourceError: it cannot be opened.
    """
    tracks = []
    try:
        with opened() as container:
            for number, stream in enumerate(container.streams.subtitles, start=1):
                context = stream.codec_context
                codec = context.name if context else "of a kind without decoder, as teletext"
                is_text = context is not None and context.name not in _PICTURES
                flags = av.stream.Disposition(stream.disposition)
                language = language_of(stream.language or "")
                language = "" if language == "und" else language
                label = f"subtitle track {number} of {name} ({codec})"
                cues = partial(_cues_inside, opened, stream.index, name)
                read = partial(_read_inside, cues, name) if is_text else partial(_no_text, label)
                forced = bool(flags & av.stream.Disposition.forced)
                track = Track(label, language, forced, read, is_text, cues)
                tracks.append((not flags & av.stream.Disposition.default, number, track))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise SourceError(f"{name}: its text tracks cannot be read") from error
    return _best_first([track for *_, track in sorted(tracks, key=lambda item: item[:2])])


def _best_first(tracks: list[Track]) -> list[Track]:
    return sorted(tracks, key=lambda track: (not track.is_text, track.forced))  # stable


# -- files --

_Found = tuple[int, float, float | None, str]
"""A cue: its line, start and end in seconds, its text; without an end a fault in place of text."""


def _decoded(data: bytes, name: str, language: str) -> tuple[str, list[str]]:
    for mark, encoding in (
        (b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"),
        (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"),
    ):  # fmt: skip
        if data.startswith(mark):
            text = data.decode(encoding, "replace").removeprefix("\ufeff")
            broken = "\ufffd" in text and encoding != "utf-8"
            return text, [f"{name}: is damaged {encoding}"] if broken else []
    # Without a mark every second byte of Latin letters in UTF-16 is 0.
    sample = data[:4096]
    for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros = sample[first::2].count(0)
        if zeros > len(sample) / 6 and zeros > 4 * sample[1 - first :: 2].count(0):
            return data.decode(encoding, "replace"), []
    try:
        return data.decode("utf-8"), []
    except UnicodeDecodeError:
        pass
    guess = _ENCODINGS.get(language, "")
    if not guess:
        # Where most letters are no ASCII it is no Western language: Cyrillic is the likeliest.
        num_high = sum(byte >= 0xC0 for byte in sample)
        num_ascii = sum(chr(byte).isalpha() for byte in sample if byte < 0x80)
        guess = "cp1251" if num_high > num_ascii else "cp1252"
    remark = f"{name}: is not UTF-8 and was read as {guess}; convert it if words are wrong"
    return data.decode(guess, "replace"), [remark]


def _read_srt(lines: list[str]) -> Iterator[_Found]:
    """Read SubRip: text belongs to the time line before it, blank lines in it or not."""
    at, text = 0, list[str]()  # the line of the current cue's times
    counter = 0
    for number, line in enumerate([*lines, "-->"], start=1):
        if "-->" not in line and not _CUE.fullmatch(line):
            text.append(line)
            continue
        # The counter of the next cue stands before its times.
        while text and not text[-1].strip():
            text.pop()
        if text and text[-1].strip().isdecimal() and number <= len(lines):
            follows = int(text[-1]) == counter + 1
            if follows or not at or (len(text) > 1 and not text[-2].strip()):
                counter = int(text.pop())
        if at:
            yield _cue(at, lines[at - 1], text)
        elif any(before.strip() for before in text):
            first = next(i for i, before in enumerate(text, start=1) if before.strip())
            yield first, 0.0, None, f"no times for {text[first - 1].strip()[:40]!r}"
        at, text = number, []


def _read_vtt(lines: list[str]) -> Iterator[_Found]:
    """Read WebVTT: blocks between blank lines. Source: W3C WebVTT, section 4."""
    number, block = 1, list[str]()
    for after, line in enumerate([*lines, ""], start=2):
        if line.strip():
            block.append(line)
            continue
        head = next((i for i, part in enumerate(block[:2]) if "-->" in part), None)
        if head is not None:
            yield _cue(number + head, block[head], block[head + 1 :])
        elif block and not re.match(r"WEBVTT|NOTE\b|STYLE\b|REGION\b", block[0].lstrip("\ufeff")):
            yield number, 0.0, None, f"no times for {block[0].strip()[:40]!r}"
        number, block = after, []


def _cue(number: int, times: str, text: list[str]) -> _Found:
    found = _CUE.fullmatch(times)
    if not found:
        return number, 0.0, None, f"{times.strip()[:60]!r} are no times; the cue is left out"
    said = _VOICE.sub(lambda voice: f"{voice[1].strip()}: ", " ".join(text))
    said = " ".join(html.unescape(_TAG.sub("", _OVERRIDE.sub("", said))).split())
    start, end = _seconds(found.groups()[:4]), _seconds(found.groups()[4:])
    quoted = _QUOTED.fullmatch(said)  # notes are shown in such marks anyway
    return number, start, end, quoted[1].strip() if quoted else said


def _read_ass(lines: list[str]) -> Iterator[_Found]:
    """Read the dialogue of Advanced SubStation Alpha; ``Format`` names its fields."""
    fields, section = _ASS_FIELDS, "[events]"
    for number, line in enumerate(lines, start=1):
        kind, _, value = line.strip().partition(":")
        if line.startswith("["):
            section = line.strip().lower()
        elif kind == "Format" and section == "[events]":
            fields = [name.strip().lower() for name in value.split(",")]
        elif kind == "Dialogue":
            parts = dict(zip(fields, value.split(",", len(fields) - 1), strict=False))
            times = [_ASS_TIME.fullmatch(parts.get(at, "").strip()) for at in ("start", "end")]
            if not (times[0] and times[1]) or "text" not in parts:
                yield number, 0.0, None, f"{line.strip()[:60]!r} is no dialogue; it is left out"
                continue
            start, end = (_seconds(time.groups()) for time in times if time)
            yield number, start, end, _ass_text(parts["text"], parts.get("name", ""))


def _ass_text(text: str, speaker: str = "") -> str:
    said = " ".join(re.sub(r"\\[Nnh]", " ", _without_overrides(text)).split())
    return f"{speaker.strip()}: {said}" if speaker.strip() and said else said


def _without_overrides(text: str) -> str:
    r"""Leave out ``{...}``, and what is drawn from \p1 to \p0; one pass, as files are untrusted."""
    shown, draws = list[str](), False
    *closed, rest = text.split("}")
    for part in closed:
        said, opened, override = part.partition("{")
        if not draws:
            shown.append(said if opened else said + "}")
        for scale in re.findall(r"\\p(\d)", override):
            draws = scale != "0"
    return "".join(shown if draws else [*shown, rest])


def _seconds(parts: Iterable[str | None]) -> float:
    hours, minutes, seconds, fraction = parts
    decimals = float(f"0.{fraction}") if fraction else 0.0
    return int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0) + decimals


def split_long(start: float, end: float, text: str) -> list[Note]:
    """Split a text that is too long for a note at spaces, its time evenly."""
    if len(text) <= MAX_NOTE_CHARS:
        return [Note(start, end, text)]
    parts, rest = [], text
    while rest:
        cut = len(rest)
        if cut > MAX_NOTE_CHARS:
            cut = rest.rfind(" ", 1, MAX_NOTE_CHARS) + 1 or MAX_NOTE_CHARS
        parts.append(rest[:cut].strip())
        rest = rest[cut:]
    step = (end - start) / len(parts)
    return [Note(start + i * step, start + (i + 1) * step, part) for i, part in enumerate(parts)]


def _in_order(notes: Iterable[Note]) -> tuple[Note, ...]:
    """Sort notes; those of one text that touch become one."""
    kept: list[Note] = []
    newest: dict[str, int] = {}  # by text, its place in ``kept``
    for note in sorted(notes, key=lambda note: (note.start, note.end, note.text)):
        place = newest.get(note.text)
        if place is not None and note.start <= kept[place].end + SAME_TEXT_GAP_S:
            before = kept[place]
            kept[place] = Note(before.start, max(before.end, note.end), note.text)
            continue
        newest[note.text] = len(kept)
        kept.append(note)
    return tuple(kept)


# -- tracks --


def _beside(path: Path) -> list[Track]:
    """Return the subtitle files named after a video: ``film.srt``, ``film.en.forced.vtt``."""
    found: list[tuple[bool, str, Track]] = []
    try:
        names = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        return []
    stems = {Path(name).stem for name in names if Path(name).suffix.lower() in _VIDEO_SUFFIXES}
    for name in names:
        stem, suffix = Path(name).stem, Path(name).suffix.lower()
        if suffix not in SUFFIXES or not (stem == path.stem or stem.startswith(f"{path.stem}.")):
            continue
        if stem != path.stem and stem in stems:
            continue  # of another video, whose name only begins like this one's
        about = stem[len(path.stem) + 1 :].lower().split(".") if stem != path.stem else []
        tags = [part for part in about if part not in _ABOUT]
        # A language, and not more: "film.part2.srt" is of another film.
        if len(tags) > 1 or any(not re.fullmatch(r"[a-z]{2,3}([-_]\w{2,8})*", t) and
                                t not in _LANGUAGE for t in tags):  # fmt: skip
            continue
        language = language_of(tags[0]) if tags else ""
        read = partial(read_file, path.parent / name, language)
        found.append((bool(language), name, Track(name, language, "forced" in about, read)))
    return [track for *_, track in sorted(found, key=lambda item: item[:2])]


def is_beside(path: Path, video: Path) -> bool:
    """Return whether a file that is there is taken for subtitles of a video, by its name."""
    if not (isfile(path) and isfile(video) and path.parent.samefile(video.parent)):
        return False
    return any(track.name == path.name for track in _beside(video))


def read_file(path: Path, language: str) -> Cues:
    """Read a subtitle file.

    Args:
        path: of it.
        language: see ``parse``.

    Raises:
        SourceError: it cannot be read, or is larger than MAX_FILE_BYTES.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise SourceError(f"{path.name}: has {size >> 20} MB; no subtitle file is as large")
        return parse(path.read_bytes(), path.name, language)
    except OSError as error:
        if isinstance(error, SourceError):
            raise
        reason = (error.strerror or "unreadable").lower()
        raise SourceError(f"{path.name}: {reason}; check its rights") from error


def _no_text(name: str) -> Cues:
    return Cues((), (f"{name}: is no text that can be read here; pictures and teletext are not",))


def _read_inside(cues: Callable[[], Iterator[Note | str]], name: str) -> Cues:
    found = list(cues())
    notes = [item for item in found if isinstance(item, Note)]
    faults = [item for item in found if isinstance(item, str)]
    if not found:
        faults.append(f"{name}: its subtitle track holds no text; pictures are not read")
    return Cues(_in_order(notes), tuple(faults))


def _cues_inside(
    opened: Callable[[], InputContainer],
    index: int,
    name: str,
    stopping: Callable[[], bool] = lambda: False,
    ended: Callable[[], bool] = lambda: False,
) -> Iterator[Note | str]:
    try:
        with opened() as container:
            stream = container.streams[index]
            for other in container.streams:
                if other.index != index:
                    other.discard = av.stream.Discard.all
            # Time 0 is where players begin, as for pictures.
            zero = max(0, container.start_time or 0) / av.time_base
            rolled = list[str]()
            for packet in container.demux(stream):
                if stopping():
                    return
                yield from _decoded_packet(packet, zero, rolled)
    except (av.FFmpegError, OSError, ValueError) as error:
        yield f"{name}: its subtitle track breaks off ({type(error).__name__})"


def _decoded_packet(packet: av.Packet, zero: float, rolled: list[str]) -> Iterator[Note | str]:
    """Give the notes of a packet of a text track, or what is wrong with it.

    Args:
        packet: the last one is empty.
        zero: seconds of the container's clock at which players begin.
        rolled: lines of closed captions that were shown last, which roll up; changed in place.
    """
    context = packet.stream.codec_context
    captions = context.name == CLOSED_CAPTIONS  # known when they end, which is in a later packet
    if not captions and packet.pts is None:
        return
    start = float((packet.pts or 0) * packet.time_base) - zero if packet.time_base else 0.0
    try:
        sets = context.decode2(packet)
        subtitles = list(sets or ())
    except av.FFmpegError:
        yield f"subtitles at {start:.1f} s: damaged; the cue is left out"
        return
    shown_s = float(packet.duration * packet.time_base) if packet.duration else UNKNOWN_S
    if captions and sets:
        start, shown_s = sets.pts / 1e6 - zero, sets.end_display_time / 1e3
        shown_s = shown_s if 0 < shown_s < MAX_CAPTION_S else UNKNOWN_S
    for subtitle in subtitles:
        if getattr(subtitle, "type", b"") != b"ass":
            continue
        # FFmpeg gives "ReadOrder,Layer,Style,Name,MarginL,MarginR,MarginV,Effect,Text".
        parts = subtitle.ass.decode("utf-8", "replace").split(",", 8)
        if len(parts) < 9:
            continue
        text = parts[8]
        if captions:
            lines = text.split("\\N")
            bare = [_ass_text(line) for line in lines]
            # Lines that stay while a new one comes are given once.
            stay = next((n for n in range(len(bare), 0, -1) if rolled[-n:] == bare[:n]), 0)
            text, rolled[:] = "\\N".join(lines[stay:]), bare
        if said := _ass_text(text, parts[3]):
            yield from split_long(max(0.0, start), max(0.0, start + shown_s), said)
