"""Everything that touches Ray: the session, the searcher, the trainable, the scheduler, the final job."""
