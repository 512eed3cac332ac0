"""Questions: how one is read, what is computed for it, and how it is answered."""
