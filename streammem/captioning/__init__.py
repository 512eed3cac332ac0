"""Captions: what may be claimed of a picture, and in whose words."""
