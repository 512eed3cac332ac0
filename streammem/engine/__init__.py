"""The stream itself: a session, and the threads that watch a source through it."""
