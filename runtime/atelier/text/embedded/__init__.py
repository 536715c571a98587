"""The embedded engine: continuous batching of a transformers model in this process."""
