#!/usr/bin/env bash
# tensorboardX 2.6.5: a second SummaryWriter in the same folder within the same second empties the
# file of the first one.
#
# One would guess: writers never meet, since event files are only ever added to a folder, as
# TensorBoard's own writer does, whose file names hold host, process and a counter.
# What happens: the name is the second and the host, and the file is opened anew. Whatever the first
# writer has written in that second is gone, though it was closed, and nothing is said.
# Why it matters here: Ray Tune's TBXLogger writes by tensorboardX, and so does milp_ray's own
# tracker. A run that is stopped and gone on with at once, or two workers that start together, share
# a folder and a second. milp_ray gives each file a suffix of its own.
#
# Seen on 2026-11-30:
#   tensorboardX 2.6.5, tensorboard 2.20.0
#   two writers, two steps each, one after the other
#     tensorboardX, in one second:   1 file,  steps [3, 4]
#     tensorboardX, a second apart:  2 files, steps [1, 2, 3, 4]
#     tensorboardX, with a suffix:   2 files, steps [1, 2, 3, 4]
#     tensorboard's, in one second:  2 files
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip install -q --disable-pip-version-check tensorboardX==2.6.5 tensorboard==2.20.0 "setuptools<81"
cat >look.py <<'PYTHON'
import os
import sys
import tempfile
import time
import warnings
from importlib.metadata import version

warnings.simplefilter("ignore")
import tensorboardX
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.event_file_writer import EventFileWriter


def start_of_a_second():
    time.sleep(1.05 - time.time() % 1)


def by_tensorboardx(pause, suffixes=("", "")):
    folder = tempfile.mkdtemp()
    start_of_a_second()
    for first, suffix in zip((1, 3), suffixes):
        writer = tensorboardX.SummaryWriter(folder, filename_suffix=suffix)
        for step in (first, first + 1):
            writer.add_scalar("loss", 1.0 / step, step)
        writer.close()
        time.sleep(pause)
    read = EventAccumulator(folder)
    read.Reload()
    return len(os.listdir(folder)), [event.step for event in read.Scalars("loss")]


def by_tensorboard():
    folder = tempfile.mkdtemp()
    start_of_a_second()
    for _ in range(2):
        EventFileWriter(folder).close()
    return len(os.listdir(folder))


print(f"tensorboardX {version('tensorboardX')}, tensorboard {version('tensorboard')}")
print("two writers, two steps each, one after the other")
together, apart, named, others = by_tensorboardx(0), by_tensorboardx(1.2), by_tensorboardx(0, (".a", ".b")), by_tensorboard()
print(f"  tensorboardX, in one second:   {together[0]} file,  steps {together[1]}")
print(f"  tensorboardX, a second apart:  {apart[0]} files, steps {apart[1]}")
print(f"  tensorboardX, with a suffix:   {named[0]} files, steps {named[1]}")
print(f"  tensorboard's, in one second:  {others} files")
every = [1, 2, 3, 4]
sys.exit(not (together == (1, [3, 4]) and apart == named == (2, every) and others == 2))
PYTHON
venv/bin/python look.py
