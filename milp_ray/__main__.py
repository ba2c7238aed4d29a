"""``python -m milp_ray``."""

from milp_ray.cli import app

if __name__ == "__main__":
    app(prog_name="milp-ray")
