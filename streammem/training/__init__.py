"""Training of the learned parts by recipes (see ``run.py``)."""
