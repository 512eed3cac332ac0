"""The text tracks of an HLS stream: which there are, and their segments as they come.

    for track in text_playlists("http://host/live.m3u8", "live"):
        for segment in segments(track, "live", stopping, ended): ...   # bytes, or what is wrong

FFmpeg reads pictures and sound of HLS. Its reader gives cues of WebVTT without their place on the
clock of the pictures, so these are read here. What a server sends is untrusted: see `fetching.py`.

Source: RFC 8216, HTTP Live Streaming, 4.3 and 6.3.
"""

import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urljoin

from streammem.errors import SourceError
from streammem.video.fetching import fetch_small, host_of

MAX_PLAYLIST_BYTES, MAX_SEGMENT_BYTES = 4 << 20, 1 << 20
MAX_TRACKS = 100
FIRST_S = 60.0  # of a live playlist: FFmpeg begins with the third but last segment of pictures
LOOK_EVERY_S = (0.5, 10.0)  # half a segment's length, within these
WAIT_SLICE_S = 0.05
_ATTRIBUTE = re.compile(r'([A-Z0-9-]+)=("[^"]*"|[^",]*)')


@dataclass(frozen=True, slots=True)
class TextPlaylist:
    """A text track of an HLS stream.

    Attributes:
        name: as the stream calls it, printable.
        language: as the stream states it; empty without one.
        forced: whether it holds only what is said in a foreign language.
        default: whether players show it unasked.
        url: of its playlist.
        home: the host that the user named, see ``fetching.fetch_small``.
    """

    name: str
    language: str
    forced: bool
    default: bool
    url: str
    home: str


@dataclass(frozen=True, slots=True)
class _Media:
    """A media playlist.

    Attributes:
        first: sequence number of the first segment.
        addresses: of its segments, as they stand there.
        target_s: the longest segment's seconds.
        ended: whether no more come.
        jump: number of its first segment after which the clock is another one; none without.
        fault: why its segments cannot be read; empty if they can.
    """

    first: int
    addresses: tuple[str, ...]
    target_s: float
    ended: bool
    jump: int | None = None
    fault: str = ""


def text_playlists(url: str, name: str) -> list[TextPlaylist]:
    """Return the text tracks that a stream's main playlist names; none where it names no others.

    Args:
        url: of the playlist, as the user named it, with credentials if it needs them.
        name: what messages call the stream.

    Raises:
        SourceError: it cannot be fetched.
    """
    home = host_of(url)
    main = fetch_small(url, f"{name}: its playlist", MAX_PLAYLIST_BYTES, home)
    found = dict[tuple[str, str], TextPlaylist]()  # those of a second group are the same again
    for line in main.content.decode("utf-8", "replace").splitlines():
        if not line.startswith("#EXT-X-MEDIA:"):
            continue
        fields = {key: value.strip('"') for key, value in _ATTRIBUTE.findall(line)}
        address = fields.get("URI", "")
        if fields.get("TYPE") != "SUBTITLES" or not address or len(found) >= MAX_TRACKS:
            continue
        label = "".join(c for c in fields.get("NAME", "")[:60] if c.isprintable())
        language = "".join(c for c in fields.get("LANGUAGE", "")[:20] if c.isprintable())
        track = TextPlaylist(
            label,
            language,
            fields.get("FORCED") == "YES",
            fields.get("DEFAULT") == "YES",
            _joined(main.url, address),
            home,
        )
        found.setdefault((label, language), track)
    return list(found.values())


def segments(
    track: TextPlaylist,
    name: str,
    stopping: Callable[[], bool],
    ended: Callable[[], bool],
    *,
    endless: bool,
) -> Iterator[bytes | float | str]:
    """Give the segments of a text track in their order; of one that goes on, from its newest on.

    Args:
        track: see ``text_playlists``.
        name: what messages call the stream.
        stopping: whether to give up.
        ended: whether the pictures have ended, so that nothing more is to be waited for.
        endless: it goes on until then even where the playlist ends: the pictures of a live stream
            are some segments behind, and a server may begin a new one.

    Yields:
        The content of a segment; seconds of its longest segment, where all that is there was given
        and more may come; and what is wrong. It waits between two looks.
    """
    what = f"{name}: its subtitles"
    following: int | None = None  # sequence number
    while not stopping():
        # 1. A look; where the pictures had ended before it, it is the last one.
        is_last = ended()
        try:
            found = fetch_small(track.url, what, MAX_PLAYLIST_BYTES, track.home, stopping)
            media = _media(found.content)
        except SourceError as error:
            yield str(error)
            media = _Media(0, (), 2 * LOOK_EVERY_S[1], ended=False)
        if media.fault:
            yield f"{what} {media.fault}; they are not read"
            return
        # 2. Its new segments.
        last = media.first + len(media.addresses)
        if following is None and media.addresses:
            num_newest = max(3, math.ceil(FIRST_S / max(1.0, media.target_s)))
            following = max(media.first, last - num_newest) if endless else media.first
        elif following is not None and media.addresses and last < following:
            following = media.first  # it begins anew
        if following is not None and following < media.first:
            yield f"{what} went on faster than they are read; {media.first - following} parts lack"
            following = media.first
        for number in range(last if following is None else following, last):
            if stopping():
                return
            if not endless and media.jump is not None and number >= media.jump:
                yield f"{what} jump to another clock in the middle; the rest is not read"
                return
            try:
                url = _joined(found.url, media.addresses[number - media.first])
                yield fetch_small(url, what, MAX_SEGMENT_BYTES, track.home, stopping).content
            except SourceError as error:
                yield f"{error}; some are missing"
                if ended():  # nothing more is waited for
                    return
        following = last if media.addresses else following
        if media.ended and not endless:
            return
        # 3. A pause.
        yield media.target_s
        if is_last:
            return
        shortest, longest = LOOK_EVERY_S
        until = time.monotonic() + min(max(shortest, media.target_s / 2), longest)
        while time.monotonic() < until and not (stopping() or ended()):
            time.sleep(WAIT_SLICE_S)
            yield media.target_s


def _joined(base: str, address: str) -> str:
    """Return an address that stands in a playlist; what cannot be read is refused when fetched."""
    try:
        return urljoin(base, address)
    except ValueError:
        return address


def _media(content: bytes) -> _Media:
    first, target_s, ended, jump, fault, addresses = 0, 10.0, False, None, "", list[str]()
    for line in map(str.strip, content.decode("utf-8", "replace").splitlines()):
        tag, _, value = line.partition(":")
        if tag == "#EXT-X-MEDIA-SEQUENCE" and value.isdecimal():
            first = int(value[:18])
        elif tag == "#EXT-X-TARGETDURATION" and value.isdecimal():
            target_s = float(value[:6])
        elif tag == "#EXT-X-ENDLIST":
            ended = True
        elif tag == "#EXT-X-DISCONTINUITY" and addresses and jump is None:
            jump = len(addresses)
        elif tag == "#EXT-X-KEY" and "METHOD=NONE" not in value:
            fault = "are encrypted"
        elif tag == "#EXT-X-BYTERANGE":
            fault = "are parts of larger files"
        elif tag == "#EXT-X-MAP":
            fault = "lie in MP4"
        elif line and not line.startswith("#"):
            addresses.append(line)
    jump = None if jump is None else first + jump
    return _Media(first, tuple(addresses), target_s, ended, jump, fault)
