"""Every path of a run, once: what a run folder holds, and below which names.

    <storage.path>/<study name>/
      study.yaml         the frozen study: paths absolute, user ids replaced by aliases
      run.json           format, fingerprints of users' data and base model, versions of packages
      alias.key          the key of this run's aliases, readable by its owner only
      session.json       which driver's session it is in, or was in last
      lock  lease/       who may write the run
      events/<alias>.jsonl   the event log of a user's search: the truth that a resume replays
      adapters/<alias>/t0007/   adapters of trials on the front, PEFT layout
      checkpoints/<alias>/   states of a user's final training, until it is over
      memories/<alias>/  the final adapter of a user (PEFT layout); memories/population/ is the one
                         that all others start from, where users are divided by user
      scores/<alias>.json    test scores of the three models
      experiments/<alias>.json   the saved Ax experiment
      tables/ plots/     for people: parquet, CSV, PNG
      report.html        for people: the whole run on one page, of a job or on request
      tracking/          files of experiment trackers, and how far each was told
      tune/ train/       Ray Tune's and Ray Train's own files

Where storage.path is a URL, these are names at the URL and paths in a process's mirror of it
(:mod:`milp_ray.storage.mirror`). What the files mean is for their writers.
"""

from __future__ import annotations

from pathlib import Path

from milp_ray.ids import child, trial_label

STUDY, META, KEY, SESSION = "study.yaml", "run.json", "alias.key", "session.json"
LOCK, LEASES = "lock", "lease"
EVENTS, ADAPTERS, CHECKPOINTS, MEMORIES = "events", "adapters", "checkpoints", "memories"
SCORES, EXPERIMENTS, TABLES, PLOTS = "scores", "experiments", "tables", "plots"
TUNE, TUNE_LOG, TRAIN = "tune", "tune.log", "train"
REPORT = "report.html"
TRACKING = "tracking"

FIRST = (STUDY, KEY, META)  # what a run is made of, in this order: the last one makes it a run
# In this order: without run.json the others are nobody's.
DELETED_LAST = (META, KEY, STUDY)
# What creation and a search without any trial write.
OF_UNUSED = frozenset({*FIRST, SESSION, LEASES, LOCK, EVENTS, TUNE, TRAIN})
# Where atomic writes make drafts.
DRAFT_FOLDERS = (f"{ADAPTERS}/u-*", MEMORIES, SCORES, EXPERIMENTS, TABLES, PLOTS, LEASES)
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's; the file of an adapter that is written last


class Layout:
    """The paths of one run.

    Attributes:
        root: its folder; of a run at a URL this process's mirror.

    >>> Layout(Path("runs/demo")).events("u-46uuhep4l4blc").as_posix()
    'runs/demo/events/u-46uuhep4l4blc.jsonl'
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def study_file(self) -> Path:
        """The frozen study."""
        return self.root / STUDY

    @property
    def meta_file(self) -> Path:
        """What the run was begun with; a folder that has one is a run."""
        return self.root / META

    @property
    def key_file(self) -> Path:
        """The key of the run's aliases."""
        return self.root / KEY

    @property
    def session_file(self) -> Path:
        """Which driver's session the run is in."""
        return self.root / SESSION

    def events(self, alias: str) -> Path:
        """The event log of a user's search."""
        return child(self.root, EVENTS, f"{alias}.jsonl")

    def adapters(self, alias: str) -> Path:
        """Adapters of a user's trials, each in a folder called like the trial."""
        return child(self.root, ADAPTERS, alias)

    def adapter(self, alias: str, number: int) -> Path:
        """The adapter of one trial."""
        return child(self.root, ADAPTERS, alias, trial_label(number))

    def checkpoints(self, alias: str) -> Path:
        """Where the states of a user's final training are until it is over."""
        return child(self.root, CHECKPOINTS, alias)

    def memory(self, alias: str) -> Path:
        """A user's memory: the final adapter."""
        return child(self.root, MEMORIES, alias)

    def memory_config(self, alias: str) -> Path:
        """The file that says that a user's memory is there whole."""
        return self.memory(alias) / ADAPTER_CONFIG

    def scores(self, alias: str) -> Path:
        """A user's test scores."""
        return child(self.root, SCORES, f"{alias}.json")

    def experiment(self, alias: str) -> Path:
        """A user's saved Ax experiment."""
        return child(self.root, EXPERIMENTS, f"{alias}.json")

    def table(self, name: str) -> Path:
        """A table without its ending: ``.parquet`` and ``.csv`` stand beside each other."""
        return child(self.root, TABLES, name)

    def plot(self, name: str) -> Path:
        """A plot (PNG)."""
        return child(self.root, PLOTS, f"{name}.png")

    @property
    def report(self) -> Path:
        """The run on one page (HTML)."""
        return self.root / REPORT

    @property
    def tracking(self) -> Path:
        """Files of experiment trackers, and how far each was told."""
        return self.root / TRACKING

    @property
    def tune(self) -> Path:
        """Where Ray Tune keeps its files."""
        return self.root / TUNE

    @property
    def tune_log(self) -> Path:
        """Ray Tune's own errors."""
        return self.tune / TUNE_LOG

    @property
    def train(self) -> Path:
        """Ray Train's own files; what counts is in memories, scores and checkpoints."""
        return self.root / TRAIN
