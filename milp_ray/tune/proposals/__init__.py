"""Proposals ahead of need: the queue, the proposers (threads, actors), and what proposing costs."""
