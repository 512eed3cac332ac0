"""Many files and many memories: they are indexed by several processes, and asked together."""
