"""Video-LLaMA behind our sessions, from its own weights, with its audio branch or without."""
