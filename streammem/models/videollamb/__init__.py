"""Published video language models that run behind our sessions, from their own weights."""
