"""The comparison of methods on the same users, cell by cell: `milp-ray compare`."""
