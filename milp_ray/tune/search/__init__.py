"""The search as a Ray Tune run: searcher, trainables, scheduler, watchdog, exported metrics."""
