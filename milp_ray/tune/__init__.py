"""Everything that touches Ray, in five rooms: cluster, proposals, workers, search, final."""
