"""How cache files scale with their records: size, times, memory, and file system operations.

    python tools/bench_scaling.py [--records 100 1000 10000 100000] [--json FILE]

Each row is a file of so many records of 11 candidates, of layers that have eight each. Opening it
with a first look-up, look-ups of other layers and again of the first, and publishing records are
done in a process of its own; times do not include imports. Operations are the system calls on the
file's folder, counted by strace where that is installed: of opening and looking up, of publishing
one record, and of merging two files into it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent / "tests/support"))

from common.arguments import parsed, parser_for
from common.results import write
from fault_speed import sizes_of, write_records
from hostile import EXAMPLE, real_record, run

OTHERS = 50  # problems looked up after the first

MEASURE = """
import json, sys, time
from pathlib import Path
import numpy, filelock
from autolora.cache.files.store import TimingCache
from autolora.cache.files.writing import read_table
from autolora.cache.joining import Source, join, save
from autolora.cache.lookup.lookup import Lookup
from autolora.environment import Environment
from autolora.problem import Problem
from records import make_record

def resident():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])

def timed(name, run, times=1):
    Path(f"/{name}-begins").exists()  # which a trace of system calls shows
    took = []
    for number in range(times):
        start = time.perf_counter()
        run(number)
        took.append(1e3 * (time.perf_counter() - start))
    Path(f"/{name}-ends").exists()
    found[name] = took

path, others, found = Path(sys.argv[1]), sys.argv[4:], {}
problems = [Problem.from_json(each) for each in json.loads(sys.argv[2])]
environment = Environment.from_json(json.loads(sys.argv[3]))
records = [make_record(10**6 + n) for n in range(5)]
before = resident()
lookup = Lookup([path])
def look_up(number):
    answer = lookup.find(problems[number], environment, lambda name: True)
    assert answer.reason == "exact", answer
timed("open", look_up)
found["bytes"] = resident() - before
timed("other", lambda number: look_up(number + 1), len(problems) - 1)
timed("again", lambda _: look_up(0), len(problems) - 1)
cache = TimingCache.load(path)
timed("publish", lambda number: cache.publish(records[number]), len(records) if not others else 1)
if others:
    def merge(_):
        paths = [path, *map(Path, others)]
        save(join(Source(each.name, read_table(each)[0]) for each in paths), path)
    timed("merge", merge)
print(json.dumps(found))
"""


def measure(folder: Path, count: int) -> dict:
    """The figures of a file of so many records."""
    path = folder / "timings.v1.json"
    size = write_records(path, count, 11)
    found = json.loads(run(MEASURE, *arguments(path, count)).communicate()[0])
    first, *rest = found["publish"]
    return {
        "records": count,
        "bytes": size,
        "bytes_per_record": round(size / count),
        "open_ms": found["open"][0],
        "other_us": 1e3 * median(found["other"]),
        "again_us": 1e3 * median(found["again"]),
        "memory_bytes": found["bytes"],
        "publish_first_ms": first,
        "publish_ms": median(rest),
    }


def arguments(path: Path, count: int) -> list[str]:
    """Of the script: the path, problems spread over the file, and their environment."""
    own = real_record(11)
    wanted = [(number * count) // (OTHERS + 1) for number in range(OTHERS + 1)]
    problems = [{**own["problem"], **sizes_of(number)} for number in wanted]
    environment = EXAMPLE["environments"][own["environment"]]
    return [str(path), json.dumps(problems), json.dumps(environment)]


def operations(folder: Path, count: int) -> dict[str, Counter]:
    """The system calls on the folder of a file, by what was done; empty without strace."""
    if shutil.which("strace") is None:
        return {}
    cache = folder / "cache"
    cache.mkdir()
    path, log = cache / "timings.v1.json", folder / "calls"
    paths = [path, cache / "one.json", cache / "two.json"]
    for number, each in enumerate(paths):
        write_records(each, count, 11, node=number)
    folders = os.pathsep.join([*sys.path[:1], str(Path(__file__).parent.parent)])
    trace = ["strace", "-f", "-y", "-s", "4096", "-e", "trace=%file,%desc,%network", "-o", str(log)]
    command = [sys.executable, "-c", MEASURE, *arguments(path, count), *map(str, paths[1:])]
    subprocess.run([*trace, *command], check=True, stdout=subprocess.DEVNULL,
                   env={**os.environ, "PYTHONPATH": folders})  # fmt: skip
    return counted(log.read_text(encoding="utf-8", errors="replace"), str(cache))


def counted(trace: str, folder: str) -> dict[str, Counter]:
    """The calls that name a folder between the marks of a trace, by their names."""
    found: dict[str, Counter] = {}
    now = ""
    for line in trace.splitlines():
        mark = re.search(r'"/(\w+)-(begins|ends)"', line)
        if mark:
            now = mark[1] if mark[2] == "begins" else ""
            continue
        call = re.match(r"\d+ +(\w+)\(", line)
        if now and call and folder in line:
            found.setdefault(now, Counter())[call[1]] += 1
    return found


def main() -> None:
    """Measures each file, and counts the operations on one."""
    parser = parser_for(__doc__)
    parser.add_argument("--records", nargs="*", type=int, default=[100, 1000, 10_000, 100_000])
    options = parsed(parser)
    rows = []
    print(
        f"{'records':>8}{'MB':>8}{'opening ms':>12}{'other us':>10}{'again us':>10}"
        f"{'memory MB':>11}{'publishing ms':>15}{'the first ms':>14}"
    )
    for count in options.records:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(Path(folder), count)
        rows.append(row)
        print(
            f"{count:>8,}{row['bytes'] / 1e6:>8.2f}{row['open_ms']:>12.1f}{row['other_us']:>10.0f}"
            f"{row['again_us']:>10.0f}{row['memory_bytes'] / 1e6:>11.1f}{row['publish_ms']:>15.1f}"
            f"{row['publish_first_ms']:>14.1f}",
            flush=True,
        )
    with tempfile.TemporaryDirectory() as folder:
        calls = operations(Path(folder).resolve(), 100)
    for what, names in calls.items():
        told = ", ".join(f"{name} {number}" for name, number in sorted(names.items()))
        print(f"{what}: {sum(names.values())} calls: {told}")
    write(options.json, [*rows, *({"what": what, "calls": dict(of)} for what, of in calls.items())])


if __name__ == "__main__":
    main()
