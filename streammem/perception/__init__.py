"""Perception: which frames are encoded, and where scenes begin and end."""
