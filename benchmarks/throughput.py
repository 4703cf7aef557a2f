"""No-op drain of one and of two worker processes, against claim and move alone on one connection."""

from __future__ import annotations

import argparse
import time

import common


def bare(admin, count):
    """Claim and settle in batches of 500 with nothing in between: what the database gives one connection."""
    from django_taskq import clock
    from django_taskq.store.rows import Ending
    from django_taskq.store.vendors import vendor_for

    common.calm(admin)
    vendor = vendor_for("default")
    began, done, turn = time.monotonic(), 0, 0
    while True:
        turn += 1
        rows = vendor.claim("default", 500, lease=(1 << 32) + turn, now=clock.now())
        if not rows:
            return done / (time.monotonic() - began)
        now = clock.timestamp()
        plain = (None,) * 6
        with vendor.atomic():
            vendor.finish([Ending(row.key, row.lease, 3, 0, now, now, *plain) for row in rows])
        done += len(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    admin = common.setup()

    def measure(name):
        common.empty(admin)
        common.load(options.tasks)
        if name == "bare":
            return bare(admin, options.tasks)
        processes = int(name.split()[0])
        return common.drain(admin, options.tasks, "--threads", "1", processes=processes)

    names = ["bare", "1 worker", "2 workers"]
    found = common.rounds(names, measure, options.rounds)
    common.report("No-op drain", "tasks/s", found, "bare")


if __name__ == "__main__":
    main()
