"""Train and test the chosen memories of every user whose search is over.

    ray job submit --working-dir . -- python jobs/final.py jobs/final.yaml trial.epochs=2

Exit codes: 0 done; 1 failed; 2 the study is wrong; 3 done, but some users or trials failed.
Submitting the same study again resumes it.
"""

from milp_ray.jobs.entry import final

if __name__ == "__main__":
    final()
