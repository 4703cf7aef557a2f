"""Idle pick-up: from right before the enqueue to the first instruction of the task; and tasks that sleep."""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import common


def pick_up(samples):
    """Return the milliseconds that each of some tasks waited for an idle worker."""
    import tasks

    path = Path(tempfile.mkdtemp(prefix="taskq-bench-")) / "stamps"
    process = common.worker("--threads", "4")
    try:
        tasks.stamp.enqueue(str(path))
        until = time.monotonic() + 30
        while not path.exists() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(1)
        sent = []
        for _ in range(samples):
            time.sleep(random.uniform(0.05, 0.1))
            sent.append(time.time_ns())
            tasks.stamp.enqueue(str(path))
        until = time.monotonic() + 10
        while len(path.read_text().split()) < samples + 1 and time.monotonic() < until:
            time.sleep(0.05)
    finally:
        common.stop(process)
    started = [int(line) for line in path.read_text().split()][1:]
    if len(started) != samples:
        raise SystemExit(f"{len(started)} of {samples} tasks ran")
    return sorted((there - here) / 1e6 for here, there in zip(sent, started, strict=True))


def naps(admin, count, slots):
    """Return the seconds that tasks of 50 ms took on a number of slots, from the first start to the last end."""
    import tasks

    common.empty(admin)
    tasks.nap.enqueue_many((i,) for i in range(count))
    process = common.worker("--threads", str(slots))
    try:
        until = time.monotonic() + 120
        while admin.execute(f"SELECT count(*) FROM {common.TASK}").fetchone()[0]:
            if time.monotonic() > until:
                raise SystemExit("the naps did not end")
            time.sleep(0.02)
    finally:
        common.stop(process)
    row = admin.execute(
        f"SELECT extract(epoch FROM max(finished_at) - min(started_at)) FROM {common.FINISHED}"
    ).fetchone()
    return float(row[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--naps", type=int, default=2000)
    parser.add_argument("--slots", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    admin = common.setup()
    waits = pick_up(options.samples)
    cut = statistics.quantiles(waits, n=100)
    print(f"\nIdle pick-up (ms, {options.samples} samples)\n  p50 {cut[49]:.2f}  p95 {cut[94]:.2f}  p99 {cut[98]:.2f}")
    ideal = options.naps * 0.05 / options.slots
    taken = [naps(admin, options.naps, options.slots) for _ in range(options.rounds)]
    median = statistics.median(taken)
    print(
        f"\n{options.naps} tasks of 50 ms on {options.slots} threads\n  {median:.2f} s, ideal {ideal:.2f} s, "
        f"ratio {median / ideal:.2f}  ({min(taken):.2f} - {max(taken):.2f} s)"
    )


if __name__ == "__main__":
    main()
