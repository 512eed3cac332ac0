"""General vision-language models that read pictures, as generators."""
