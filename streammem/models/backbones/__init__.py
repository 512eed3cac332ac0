"""Adapters of vision encoders, language models and sentence encoders, and their weights."""
