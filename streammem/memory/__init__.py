"""What was seen: the bridge that writes memory, the cache in RAM, the store on disk."""
