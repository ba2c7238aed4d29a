"""Compare methods on the same users, cell by cell.

    ray job submit --working-dir . -- python jobs/compare.py jobs/compare.yaml search.trials=12

Exit codes: 0 done; 1 failed; 2 the comparison is wrong; 3 done, but some users failed. Submitting
the same comparison again goes on with it.
"""

from milp_ray.jobs.entry import compare

if __name__ == "__main__":
    compare()
