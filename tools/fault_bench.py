"""Long stress tests of cache files: no record is lost, hostile files do no harm, all is fast.

    python tools/fault_bench.py [--only PART,PART] [--json FILE]

Prints a line for each requirement with what was found. Exits with 1 if one is not met. The parts:

    processes  8 processes write 200 records each into one file at once, 20 times
    kills      200 writers are killed at random moments
    unlocked   4 processes that see no locks write 50 records each into one file, 10 times
    memory     hostile files of 250 MB and files of 100 MB are read, each by a new process
    edits      5,000 random edits of a file are read
    speed      opening, looking up, publishing and merging, each in a new process

The records of ``speed`` are described in ``tools/fault_speed.py``. All parts together take seven
minutes on two cores, the first nearly half of that.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests/support"))

from common.arguments import parsed, parser_for
from common.results import write
from fault_speed import speed, write_records
from hostile import EMPTY, EXAMPLE, HOSTILE, dense_record, read_apart, real_file
from publishing import let_go, start_publishing

from autolora.cache.files.disk import LIMIT
from autolora.cache.files.store import TimingCache
from autolora.cache.records.document import parse


def publish_at_once(path, processes, records, locks):
    """Lets several processes publish at once; returns how many records or processes failed."""
    started = [start_publishing(path, 1 + 1000 * n, records, locks) for n in range(processes)]
    for process in started:
        let_go(process)
    failed = [process.communicate() for process in started if process.wait(600)]
    wanted = {1 + 1000 * n + k for n in range(processes) for k in range(records)}
    return len(wanted - tokens_in(path)) + len(failed)


def tokens_in(path):
    """The token counts of a file's records, each of which must be valid."""
    table = parse(path.read_bytes())
    table.check_all()
    assert not table.invalid_summary, table.invalid_summary
    return {key.tokens for key in table.lines}


def at_once(folder, runs, processes, records, locks):
    """How many records several runs of :func:`publish_at_once` lose."""
    paths = [folder / f"{locks}{n}.json" for n in range(runs)]
    with ThreadPoolExecutor(2) as two:  # since the processes of one mostly wait for the disk
        lacking = list(
            two.map(lambda path: publish_at_once(path, processes, records, locks), paths)
        )
    demanded = f"{runs} runs of {processes} {locks} processes × {records} records: all are there"
    yield demanded, f"{sum(lacking)} lacking of {runs * processes * records:,}", not sum(lacking)


def processes(folder):
    """Processes that lock the file publish at once."""
    return at_once(folder, 20, 8, 200, "locked")


def unlocked(folder):
    """Processes that see no locks publish at once."""
    return at_once(folder, 10, 4, 50, "unlocked")


def kills(folder):
    """Writers are killed at random moments."""
    chance = random.Random(0)
    lost, torn = 0, 0
    for attempt in range(200):
        path = folder / f"killed{attempt // 25}.json"
        process = start_publishing(path, 1 + 1000 * attempt, 0)
        let_go(process)
        process.stdout.readline()
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        said = [int(line) for line in process.communicate()[0].split()]
        try:
            lost += len(set(range(1 + 1000 * attempt, 1 + max(said, default=0))) - tokens_in(path))
        except (ValueError, AssertionError):
            torn += 1
    found = f"{torn} torn files, {lost} records lost"
    yield (
        "200 writers killed: a whole file each time, with all that was published",
        found,
        not (torn or lost),
    )


def memory(folder):
    """Memory and time that reading large and hostile files takes."""
    path = folder / "large.json"
    for name, make in HOSTILE.items():
        path.write_bytes(make(250_000_000)[:LIMIT])
        yield cost(f"hostile, {name}", path, 0)
    large = {"indented": {"indent": 1}, "wide": {"wide": True}, "dense": {"record": dense_record()}}
    for name, options in large.items():
        data, count = real_file(100_000_000, **options)
        path.write_bytes(data)
        del data
        yield cost(f"{count:,} records, {name}", path, count)
    write_records(path, 50_000, 4)
    yield cost("50,000 records, as written", path, 50_000)
    path.write_bytes(EMPTY + b" " * LIMIT)
    yield cost("larger than the limit", path, 0)


def cost(title, path, count):
    """Memory, in sizes of the file, and time of reading a file; whether it warned as it should."""
    start = time.perf_counter()
    read = read_apart(path)
    seconds = time.perf_counter() - start
    size = path.stat().st_size
    times = read["bytes"] / size
    told = [str(path) in warning for warning in read["told"]]
    found = f"{times:.1f}x, {seconds:.1f} s, {read['records']:,} records, {len(told)} warnings"
    met = times <= 12 and read["records"] == count and told == ([] if count else [True])
    return f"{title}, {size / 1e6:.0f} MB: memory ≤ 12x, told once if bad", found, met


def edits(folder):
    """Randomly edited files are read."""
    chance, heard = random.Random(0), []
    ear = logging.Handler()
    ear.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger("autolora").addHandler(ear)
    logging.getLogger("autolora").propagate = False
    whole = json.dumps(EXAMPLE).encode(), real_file(20_000)[0]
    silent = 0
    for number in range(5000):
        data = bytearray(whole[number % 2])
        for _ in range(chance.randint(1, 8)):
            at, length = chance.randrange(len(data)), chance.choice((0, 1, 1, 40))
            data[at : at + length] = chance.choice(
                (chance.randbytes(chance.randint(0, 4)), b'"', b"[", b"{", b"}", b"9" * 30, b",")
            )
        path = folder / "edited.json"
        path.write_bytes(data)
        heard.clear()
        found = len(TimingCache.load(path).records)
        broken = not is_json(data)
        silent += len(heard) != 1 if broken else len(heard) > 1
        assert isinstance(found, int)
    logging.getLogger("autolora").removeHandler(ear)
    yield "5,000 edits: no failure, one warning where it is no JSON", f"{silent} silent", not silent


def is_json(data):
    """Whether the standard library can read it."""
    try:
        json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return True


PARTS = {
    "processes": processes,
    "kills": kills,
    "unlocked": unlocked,
    "memory": memory,
    "edits": edits,
    "speed": speed,
}


def main() -> None:
    """Runs the parts and prints a line for each requirement."""
    parser = parser_for(__doc__)
    parser.add_argument("--only", help=f"some of the parts, by comma: {', '.join(PARTS)}")
    options = parsed(parser, log=logging.WARNING)  # the part edits counts warnings
    chosen = options.only.split(",") if options.only else list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}; one of: {', '.join(PARTS)}")
    found = []
    for name in chosen:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            for demanded, outcome, met in PARTS[name](Path(folder)):
                print(f"{'ok  ' if met else 'MISS'} {name}: {demanded}; {outcome}", flush=True)
                found.append({"part": name, "demanded": demanded, "found": outcome, "met": met})
                write(options.json, found)
        print(f"     {name} took {time.perf_counter() - start:.0f} s", flush=True)
    sys.exit(not all(each["met"] for each in found))


if __name__ == "__main__":
    main()
