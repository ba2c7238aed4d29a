"""Measuring a model on samples: loss, generation and text metrics. No Ray."""
