"""The HTTP server: many sessions and memories over one model. Nothing here is needed elsewhere."""
