"""A worker process of the local executor: takes tasks as JSON lines on standard input, answers on standard output.

Started as `python -m zoo.worker`. When its parent dies, standard input ends and the worker stops at once: what it had
not committed is built again by whoever resumes.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from typing import Any


def main() -> None:
    """Work until standard input ends."""
    out = os.fdopen(os.dup(1), "w", buffering=1)  # what libraries print must not mix with the answers
    os.dup2(2, 1)
    tasks: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(tasks,), daemon=True).start()
    first = tasks.get()
    if first["core"] is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {first["core"]})

    import torch

    from catalog.store import open_zoo
    from zoo.plan import make_plan, stored_spec

    torch.set_num_threads(1)
    zoo = open_zoo(first["zoo"], metrics_at=first["metrics_at"], **first["storage_options"])
    plan = make_plan(*stored_spec(zoo.record.spec))
    while True:
        task = tasks.get()
        answer = _work(zoo, plan, task, first["device"], out)
        print(json.dumps(answer), file=out)


def _work(zoo: Any, plan: Any, task: dict[str, Any], device: str, out: Any) -> dict[str, Any]:
    from zoo.landscape.units import Unit, measure_unit
    from zoo.shards import build_shard

    pending, sent = 0, time.monotonic()

    def progress(samples: int) -> None:
        nonlocal pending, sent
        pending += samples
        if time.monotonic() - sent > 0.25:
            print(json.dumps({"kind": "samples", "samples": pending}), file=out)
            pending, sent = 0, time.monotonic()

    try:
        if "unit" in task:
            measure_unit(zoo, plan, Unit.from_json(task["unit"]), device)
        else:
            build_shard(zoo, plan, task["variant"], task["shard"], device, progress)
    except Exception as error:  # whatever it is, the parent decides
        number = getattr(error, "errno", None)
        return {"kind": "error", "type": type(error).__name__, "message": str(error), "errno": number}
    return {"kind": "done"}


def _listen(tasks: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        tasks.put(json.loads(line))
    os._exit(1)


if __name__ == "__main__":
    main()
