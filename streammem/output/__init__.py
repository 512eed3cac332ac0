"""Events as text, subtitles, JSON lines and pictures; files that rotate; the terminal."""
