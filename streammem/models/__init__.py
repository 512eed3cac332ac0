"""Models: what a session asks of one, how one is opened, and the ones that there are."""
