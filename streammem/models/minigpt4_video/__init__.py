"""MiniGPT4-Video behind our sessions, from its own weights; Goldfish is a way to ask it."""
