"""The base model: its files read, loaded, batched and made fast. Nothing here trains."""
