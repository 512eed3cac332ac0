"""Pictures are as a player shows them: the main stream, upright, in shape, in ordinary light."""

import http.server
import io
import threading
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from streammem.video import open_source
from streammem.video.pixels import to_sdr
from tests.video.clips import X264, encode, picture, plainly_decoded
from tests.video.test_joins import delayed

UPRIGHT = {
    1: lambda p: p,
    2: np.fliplr,
    3: lambda p: np.rot90(p, 2),
    4: np.flipud,
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p.swapaxes(0, 1), 2),
    8: lambda p: np.rot90(p, 1),
}


def photo(pixels, orientation, kind="JPEG"):
    """A photo with EXIF data, as cameras write it."""
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112], exif[0x010F] = orientation, "maker"
    Image.fromarray(pixels).save(out, kind, exif=exif, quality=95)
    return out.getvalue()


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("name", ["photo.jfif", "film.mjpeg", "film.bin", "photo.webp"])
def test_exif_data_does_not_keep_a_picture_from_being_read_upright(tmp_path, orientation, name):
    kind = "WEBP" if name == "photo.webp" else "JPEG"
    num_pictures = 5 if name.startswith("film") else 1
    content = photo(picture(0), orientation, kind)
    (tmp_path / name).write_bytes(content * num_pictures)
    frames = list(open_source(tmp_path / name))
    assert len(frames) == num_pictures
    wanted = UPRIGHT[orientation](picture(0))
    for frame in frames:
        assert frame.pixels.shape == wanted.shape
        assert np.abs(frame.pixels.astype(int) - wanted).mean() < 25  # colours of 4:2:0
        wrong = wanted[::-1, ::-1].astype(int)
        assert np.abs(frame.pixels - wrong).mean() > 50


@pytest.mark.parametrize(
    ("aspect", "shown"),
    [
        ((64, 45), (1024, 576)),
        ((16, 15), (768, 576)),
        ((1, 1), (720, 576)),
        ((1, 2), (720, 1152)),
        ((1000, 1), (720, 576)),  # cannot be meant
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_pixels_that_are_not_square_are_shown_in_shape(tmp_path, aspect, shown, suffix):
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=X264)
        stream.width, stream.height, stream.pix_fmt = 720, 576, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(*aspect)
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(picture(number, 720, 576), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frame = next(iter(open_source(path)))
    assert frame.pixels.shape == (shown[1], shown[0], 3)
    small = next(iter(open_source(path, max_side=320)))
    assert max(small.pixels.shape) == 320
    assert small.pixels.shape[1] / small.pixels.shape[0] == pytest.approx(
        shown[0] / shown[1], rel=0.01
    )


def with_streams(path, sizes, lengths, codecs=None, default=None):
    """Write a file with several video streams; stream k shows pictures from 1000 k on."""
    with av.open(str(path), "w") as container:
        streams = []
        for k, (width, height) in enumerate(sizes):
            codec = (codecs or {}).get(k, "libx264")
            stream = container.add_stream(
                codec, rate=25, options=X264 if codec == "libx264" else {}
            )
            stream.width, stream.height = width, height
            stream.pix_fmt = {"libx264": "yuv420p", "mjpeg": "yuvj420p"}[codec]
            streams.append(stream)
        for k, stream in enumerate(streams):
            if default is not None:
                stream.disposition = int(k == default)
        for number in range(max(lengths)):
            for k, stream in enumerate(streams):
                if number < lengths[k]:
                    pixels = picture(1000 * k + number, *sizes[k])
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("mkv", {"codecs": {0: "mjpeg"}, "default": 1, "lengths": [3, 60]}),
        ("mp4", {"codecs": {0: "mjpeg"}, "lengths": [1, 60]}),
        ("mkv", {"codecs": {0: "mjpeg"}, "lengths": [1, 60]}),
        ("mkv", {"codecs": {0: "mjpeg"}, "lengths": [60, 60]}),
        ("mkv", {"default": 1, "lengths": [60, 60]}),
        ("ts", {"lengths": [60, 60], "sizes": [(64, 48), (128, 96)]}),
    ],
)
def test_the_main_video_stream_is_read(tmp_path, suffix, options):
    sizes = options.pop("sizes", [(64, 48), (64, 48)])
    path = with_streams(tmp_path / f"a.{suffix}", sizes, **options)
    frames = list(open_source(path))
    assert len(frames) == 60
    wanted = picture(1000, *sizes[1]).astype(int)
    assert np.abs(frames[0].pixels - wanted).mean() < 40


def test_the_first_of_equal_streams_is_read(tmp_path):
    path = with_streams(tmp_path / "a.mp4", [(64, 48)] * 2, [60, 60])
    assert np.array_equal(next(iter(open_source(path))).pixels, plainly_decoded(path)[0].pixels)


def test_an_avif_that_moves_is_read_whole_and_a_still_one_as_a_picture(tmp_path):
    images = [Image.fromarray(picture(20 * k)) for k in range(6)]
    images[0].save(tmp_path / "a.avif", save_all=True, append_images=images[1:], duration=100)
    images[0].save(tmp_path / "still.avif")
    assert len(list(open_source(tmp_path / "a.avif"))) == 6
    (still,) = open_source(tmp_path / "still.avif")
    assert still.duration == 1.0


def test_of_an_hls_stream_the_best_variant_is_read_and_the_others_are_not_fetched(
    tmp_path,
):
    lines = ["#EXTM3U"]
    for name, size in (("low", (64, 48)), ("high", (256, 192))):
        parts = ["#EXTM3U", "#EXT-X-TARGETDURATION:2"]
        for number in range(4):
            first = 50 * number
            path = encode(tmp_path / "part.ts", options=X264, frames=50, size=size, first=first)
            delayed(path, 2.0 * number).rename(tmp_path / f"{name}{number}.ts")
            parts += ["#EXTINF:2.0,", f"{name}{number}.ts"]
        (tmp_path / f"{name}.m3u8").write_text("\n".join([*parts, "#EXT-X-ENDLIST", ""]))
        rate, form = size[0] * 1000, f"{size[0]}x{size[1]}"
        lines += [f"#EXT-X-STREAM-INF:BANDWIDTH={rate},RESOLUTION={form}", f"{name}.m3u8"]
    (tmp_path / "master.m3u8").write_text("\n".join([*lines, ""]))
    fetched = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args):
            fetched.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        frames = list(open_source(f"http://127.0.0.1:{server.server_address[1]}/master.m3u8"))
        server.shutdown()
        thread.join()
    assert len(frames) == 200 and frames[0].pixels.shape == (192, 256, 3)
    # To know what a variant holds, its beginning must be read.
    assert {"/high3.ts", "/low0.ts"} <= set(fetched)
    assert not {"/low1.ts", "/low2.ts", "/low3.ts"} & set(fetched)


def signal_of(nits, transfer):
    """The signal that a screen shows as this light. Source: ITU-R BT.2100."""
    if transfer == "pq":
        y = (nits / 10_000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375
    light = (nits / 1000) ** (1 / 1.2)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    bright = a * np.log(np.maximum(12 * light - b, 1e-9)) + c
    return np.where(light <= 1 / 12, np.sqrt(3 * light), bright)


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_light_up_to_most_of_white_is_kept_and_more_stays_below_it(transfer):
    shown = np.arange(256)
    nits = 203 * (shown / 255) ** 2.4
    signal = np.rint(65535 * signal_of(nits, transfer)).astype(np.uint16)
    pixels = to_sdr(np.repeat(signal[None, :, None], 3, axis=2), transfer, wide=True)[0]
    assert np.ptp(pixels.astype(int), axis=1).max() <= 1  # grey stays grey
    kept = shown <= 230
    assert np.abs(pixels[kept, 0].astype(int) - shown[kept]).max() <= 2
    assert 235 <= pixels[255, 0] <= 255
    brighter = np.rint(65535 * signal_of(np.array([203.0, 400, 900]), transfer)).astype(np.uint16)
    levels = to_sdr(np.repeat(brighter[None, :, None], 3, axis=2), transfer, wide=True)[0, :, 0]
    assert levels[0] < levels[1] <= levels[2] <= 255


@pytest.mark.parametrize(("transfer", "number"), [("pq", 16), ("hlg", 18)])
def test_a_film_of_high_dynamic_range_looks_as_its_ordinary_version_does(
    tmp_path, transfer, number
):
    y, x = np.mgrid[0:96, 0:128]
    wanted = np.stack([x * 1.6, y * 2.0, 200 - x], axis=2).clip(0, 220)
    light = (wanted / 255) ** 2.4
    wide = (
        light
        @ np.linalg.inv(
            [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
        ).T
    )
    if transfer == "pq":
        signal = signal_of(203 * wide, "pq")
    else:  # the scene's light, without the screen's gamma on luminance
        luminance = (wide @ [0.2627, 0.6780, 0.0593])[..., None] * 0.203
        scene = 0.203 * wide * np.maximum(luminance, 1e-9) ** (1 / 1.2 - 1)
        signal = signal_of(1000 * scene**1.2, "hlg")
    rgb = np.rint(65535 * signal.clip(0, 1)).astype(np.uint16)
    path = tmp_path / "hdr.mp4"
    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast", "x265-params": "log-level=0:crf=4:range=limited"}
        options["x265-params"] += f":colorprim=9:transfer={number}:colormatrix=9"
        stream = container.add_stream("libx265", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p10le"
        frame = av.VideoFrame.from_ndarray(rgb, "rgb48le")
        frame = frame.reformat(format="yuv420p10le", dst_colorspace=9, dst_color_range=1)
        frame.color_trc, frame.color_primaries, frame.colorspace = number, 9, 9
        for _ in range(3):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    shown = next(iter(open_source(path))).pixels.astype(int)
    assert np.abs(shown - wanted).mean() < 4
