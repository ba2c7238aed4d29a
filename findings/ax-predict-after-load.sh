#!/usr/bin/env bash
# ax-platform 1.3.1: `Client.predict` refuses after `load_from_json_file`, and says that more trials
# are needed.
#
# One would guess: a saved client is what it was, so a client that predicted does so after it was
# loaded.
# What happens: the fitted model is not saved, and predict does not fit one: it raises
# UnsupportedError, "try running more trials to progress to a predictive GenerationNode", though
# none is missing. Any analysis with a model (compute_analyses), or get_next_trials, fits it as a
# side effect, and then the same call answers.
# Why it matters here: milp_ray saves every search as an Ax experiment, for people who ask Ax about
# it.
#
# Seen on 2026-11-29:
#   ax-platform 1.3.1
#   before saving:          predicts
#   after loading:          UnsupportedError
#   after an analysis:      predicts
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check torch==2.13.0 botorch==0.18.1 ax-platform==1.3.1
cat >look.py <<'PYTHON'
import importlib.metadata
import sys
import warnings

warnings.simplefilter("ignore")
from ax.analysis.plotly.cross_validation import CrossValidationPlot
from ax.api.client import Client
from ax.api.configs import RangeParameterConfig


def look(client):
    try:
        client.predict([{"x": 0.3}])
    except Exception as error:
        return type(error).__name__
    return "predicts"


client = Client()
client.configure_experiment(parameters=[RangeParameterConfig(name="x", bounds=(0, 1), parameter_type="float")])
client.configure_optimization("-loss")
client.configure_generation_strategy(
    method="fast", initialization_budget=0, allow_exceeding_initialization_budget=True
)
for step in range(8):
    index = client.attach_trial({"x": step / 8})
    client.complete_trial(index, raw_data={"loss": (step / 8 - 0.4) ** 2})
client.get_next_trials(max_trials=1)
found = [look(client)]
client.save_to_json_file("saved.json")
loaded = Client.load_from_json_file("saved.json")
found.append(look(loaded))
loaded.compute_analyses([CrossValidationPlot(metric_names=["loss"])], display=False)
found.append(look(loaded))
print("ax-platform", importlib.metadata.version("ax-platform"))
for when, what in zip(("before saving:", "after loading:", "after an analysis:"), found):
    print(f"{when:23s} {what}")
sys.exit(found != ["predicts", "UnsupportedError", "predicts"])
PYTHON
venv/bin/python look.py 2>/dev/null
