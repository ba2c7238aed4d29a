"""Search every user's memory, then train and test the chosen ones.

    ray job submit --working-dir . -- python jobs/search.py jobs/search.yaml trial.epochs=2

Exit codes: 0 done; 1 failed; 2 the study is wrong; 3 done, but some users or trials failed.
Submitting the same study again resumes it.
"""

from milp_ray.jobs.entry import search

if __name__ == "__main__":
    search()
