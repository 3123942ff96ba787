"""The Hugging Face hub: a model id becomes a path in the hub cache, a directory becomes a repository."""
