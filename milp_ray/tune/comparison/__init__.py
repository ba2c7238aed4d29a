"""The workers of a comparison: what they do, and how they are kept at work."""
