"""Proposals ahead of need: the queue, who computes them (threads, actors), and what they cost."""
