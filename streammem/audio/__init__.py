"""What is said: subtitles, and speech that is recognised."""
