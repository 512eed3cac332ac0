"""General vision-language models that read pictures, as generators; see models/protocols.py."""
