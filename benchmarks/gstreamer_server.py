"""GStreamer's RTSP server as a camera of one colour after another; for tests.

It runs by itself, with the Python that has GStreamer's bindings (Debian: python3-gi,
gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-base, -good, -bad and -ugly), which is rarely the
one that has streammem: ``/usr/bin/python3 benchmarks/gstreamer_server.py PORT``.
"""

import sys

COLOURS = (4, 6, 5, 3)  # videotestsrc's patterns: red, blue, green, white
SCENE_MS = 1500
PIPELINE = (
    "( videotestsrc name=source is-live=true pattern=4 "
    "! video/x-raw,width=64,height=48,framerate=10/1 "
    "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=5 "
    "! rtph264pay name=pay0 pt=96 config-interval=-1 )"
)


def main(port: str) -> None:
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer

    Gst.init(None)
    if missing := [n for n in ("x264enc", "rtph264pay") if not Gst.ElementFactory.find(n)]:
        sys.exit(f"GStreamer lacks {', '.join(missing)}")
    server = GstRtspServer.RTSPServer.new()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory.new()
    factory.set_launch(PIPELINE)
    factory.set_shared(True)

    def configured(_: object, media: GstRtspServer.RTSPMedia) -> None:
        source, shown = media.get_element().get_by_name("source"), iter(COLOURS * 1000)

        def change() -> bool:
            source.set_property("pattern", next(shown))
            return True

        GLib.timeout_add(SCENE_MS, change)

    factory.connect("media-configure", configured)
    server.get_mount_points().add_factory("/live", factory)
    if not server.attach(None):
        sys.exit(f"port {port} is taken")
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(sys.argv[1])
