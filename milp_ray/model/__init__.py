"""The base model: what is read of it, how it is loaded, batched and made fast. Nothing here trains."""
