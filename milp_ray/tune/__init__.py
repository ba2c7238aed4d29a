"""Everything that touches Ray: session, queue of proposals, searcher, trainable, scheduler, final stage."""
