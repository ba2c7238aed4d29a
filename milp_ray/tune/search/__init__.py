"""The search as a Ray Tune run: ledger, searcher, trainables, scheduler, watchdog, metrics."""
