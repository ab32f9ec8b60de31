"""How fast cache files are: the part ``speed`` of ``tools/fault_bench.py``.

Records are like those that tuning writes, with 4 or 11 candidates: about 2 or 4 kB. Everything runs
in a process of its own; times do not include imports.
"""

from __future__ import annotations

import json
import re
from statistics import median

from hostile import EMPTY, EXAMPLE, real_record, run  # of the tests; fault_bench knows where

from autolora.cache.records.checks import dumps
from autolora.environment import Environment

OPEN = """
import json, sys, time
from autolora.cache.lookup.lookup import Lookup
from autolora.environment import Environment
from autolora.problem import Problem
path, problem, environment = sys.argv[1], *map(json.loads, sys.argv[2:4])
problem, environment = Problem.from_json(problem), Environment.from_json(environment)
start = time.perf_counter()
answer = Lookup([path]).find(problem, environment, lambda name: True)
print(1e3 * (time.perf_counter() - start))
assert answer.reason == "exact", answer
"""

PUBLISHED = """
import sys, time
from autolora.cache.files.store import TimingCache
from records import make_record
cache = TimingCache.load(sys.argv[1])
for tokens in range(10**6, 10**6 + 30):
    record = make_record(tokens)
    start = time.perf_counter()
    cache.publish(record)
    print(1e3 * (time.perf_counter() - start))
"""

MERGE = """
import sys, time
from pathlib import Path
from autolora.cache.joining import Source, join, save
from autolora.cache.files.writing import read_table
paths = sorted(map(Path, sys.argv[2:]))
start = time.perf_counter()
joined = join(Source(path.name, read_table(path)[0]) for path in paths)
save(joined, sys.argv[1])
print(time.perf_counter() - start)
print(len(joined.table.lines))
"""


def speed(folder):
    """Opening and looking up, publishing, merging."""
    for count, candidates, most in ((10_000, 11, 300), (100_000, 4, 3000)):
        path = folder / f"{count}.json"
        size = write_records(path, count, candidates)
        problem = {**real_record()["problem"], **sizes_of(count // 2)}
        environment = EXAMPLE["environments"][real_record()["environment"]]
        took = [
            float(run(OPEN, path, json.dumps(problem), json.dumps(environment)).communicate()[0])
            for _ in range(3)
        ]
        title = f"opening {count:,} records ({size / 1e6:.0f} MB) and the first look-up"
        yield f"{title}: ≤ {most} ms", f"{median(took):.0f} ms", median(took) <= most
        path.unlink()
    path = folder / "1000.json"
    size = write_records(path, 1000, 11)
    first, *rest = map(float, run(PUBLISHED, path).communicate()[0].split())
    title = f"publishing into 1,000 records ({size / 1e6:.1f} MB)"
    yield (
        f"{title}: ≤ 30 ms",
        f"{median(rest):.1f} ms, the first {first:.0f} ms",
        median(rest) <= 30,
    )
    for title, environments in (("of one environment", 1), ("of 8 environments", 8)):
        yield merging(folder, title, environments)


def merging(folder, title, environments):
    """Merges 64 files of 5,000 records, of the same problems but measured on each node itself."""
    paths = [folder / f"node{number}.json" for number in range(64)]
    for number, path in enumerate(paths):
        size = write_records(path, 5000, 4, node=number, environment=number % environments)
    took, records = map(float, run(MERGE, folder / "merged.json", *paths).communicate()[0].split())
    (folder / "merged.json").unlink()
    title = f"merging 64 files × 5,000 records ({size / 1e6:.0f} MB each) {title}"
    met = took <= 15 and records == 5000 * environments
    return f"{title}: ≤ 15 s", f"{took:.1f} s, {records:,.0f} records", met


def sizes_of(number):
    """The sizes of a problem; eight at a time differ in their tokens only."""
    features = 64 + number // 8
    return {"in_features": features, "out_features": 768, "tokens": 256 << number % 8}


def write_records(path, count, candidates, *, node=0, environment=0):
    """Writes a file of records that differ in sizes, and by node in their times; its size."""
    record = real_record(candidates)
    machine = EXAMPLE["environments"][record["environment"]]
    made = Environment.from_json({**machine, "units": machine["units"] + environment})
    line = dumps({**record, "environment": made.id})
    head, _, rest = re.split(r'(?<=problem":\{)(.*?)(?=,"rank")', line, maxsplit=1)
    rest = rest.replace('"spread_ns":88000', f'"spread_ns":{88000 + node}')
    lines = ",\n".join(f"{head}{dumps(sizes_of(n))[1:-1]}{rest}" for n in range(count))
    text = EMPTY.decode().replace("[]", f"[\n{lines}\n]")
    text = text.replace('ments":{', f'ments":{{\n"{made.id}":{dumps(made.to_json())}\n')
    path.write_text(text, encoding="ascii")
    return path.stat().st_size
