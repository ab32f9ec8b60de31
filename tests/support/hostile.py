"""Files that are made to hurt a reader, of any size; and what reading one costs a process."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from records import CPU, make_record

ROOT = Path(__file__).parents[2]
EXAMPLE = json.loads((ROOT / "cache_schema" / "v1.example.json").read_bytes())
EMPTY = b'{"schema_version":1,\n"environments":{},\n"records":[]}\n'

_RECORDS = b'{"schema_version":1,"environments":{},"records":'
_LINE = make_record(64).line.encode()


def again(start, piece, end=b""):
    """The maker of a file that holds a piece as often as there is room for it."""
    return lambda size: start + piece * ((size - len(start) - len(end)) // len(piece)) + end


def within(old, start, piece, end):
    """As :func:`again`, in the place of something in the one record's line of a written file."""
    before, after = _LINE.split(old)
    head = f'{{"schema_version":1,\n"environments":{{\n"{CPU.id}":{json.dumps(CPU.to_json())}\n'
    head = f'{head}}},\n"records":[\n'.encode()
    return again(head + before + start, piece, end + after + b"\n]}\n")


def named(start, end):
    """The maker of a file of members that differ in their names."""
    return lambda size: start + b",".join(b'"%07x":0' % n for n in range(size // 12)) + end


def keys(size):
    """As many lines as there is room for that look like records, but for what is in them."""
    head, tail = EMPTY.split(b"[]")
    environment = f'"{CPU.id}":{json.dumps(CPU.to_json())}'.encode()
    line = _LINE[: _LINE.index(b'"effort"')] + b'"x":0}'
    lines = (line.replace(b'"tokens":64', b'"tokens":%d' % n) for n in range(1, size // len(line)))
    head = head.replace(b'environments":{', b'environments":{\n' + environment + b"\n")
    return head + b"[\n" + b",\n".join(lines) + b"\n]" + tail


# What a file holds → its maker, given a size in bytes; nothing of any can be used.
HOSTILE = {
    "lists in lists": again(b"", b"["),
    "objects in objects": again(b"", b'{"a":'),
    "lists in lists of records": again(_RECORDS, b"["),
    "whole numbers": again(_RECORDS + b"[", b"1,", b"1]}"),
    "fractions": again(_RECORDS + b"[", b"1e9,", b"1]}"),
    "empty lists": again(_RECORDS + b"[", b"[],", b"[]]}"),
    "empty objects": again(_RECORDS + b"[", b"{},", b"{}]}"),
    "empty lists in one record": again(_RECORDS + b"[[", b"[],", b"[]]]}"),
    "objects in one record": again(_RECORDS + b"[[", b'{"a":0},', b"0]]}"),
    "names in one record": named(_RECORDS + b"[{", b"}]}"),
    "names of environments": named(b'{"schema_version":1,"environments":{', b'},"records":[]}'),
    "names of members": named(b'{"schema_version":1,', b"}"),
    "one text": again(_RECORDS + b'["', b"\\u00e9", b'"]}'),
    "digits": again(b"", b"9"),
    "digits of the version": again(b'{"schema_version":', b"9", b"}"),
    "digits in a line": within(b":500,", b":5", b"0", b","),
    "digits of a fraction in a line": within(b":1.5,", b":1.5", b"0", b","),
    "lists in a line": within(b'"candidates":[', b'"candidates":[', b"[],", b""),
    "texts in a line": within(b'"load_1min"', b'"load_1min":0,', b'"ab":"",', b'"x"'),
    "spaces": again(b"", b" "),
    "zeros": again(b"", b"\0"),
    "line ends": again(EMPTY[: EMPTY.index(b"[") + 1] + b"\n", b",\n", b"]}\n"),
    "lines of a key": keys,
    "two-byte letters": again(_RECORDS + b'["', "é".encode(), b'"]}'),
    "one wide letter": again(_RECORDS + '["😀'.encode(), b"a", b'"]}'),
    "half a letter": again(_RECORDS + b'["', b"\xc3"),
    "utf-16": lambda size: EMPTY.decode().ljust(size // 2).encode("utf-16"),
}


TRANSPOSED = ("Z", "dA", "dB", "dX", "h", "h,Z", "h,dA", "h,dB", "Z,dA", "Z,dB")


def real_record(candidates=4):
    """A record as a tune writes it, as JSON: about 400 bytes, and 350 more for each candidate."""
    record = next(r for r in EXAMPLE["records"] if r["problem"].keys().isdisjoint(("kind", "mode"))
                  and r["winner"] != r["reference"])  # fmt: skip
    more = [
        {
            **record["candidates"][1],
            "graph": f"one_product/h=saved/dX=lowrank/dA=via_z/dB=via_h/t={t}",
        }
        for t in TRANSPOSED[: candidates - len(record["candidates"])]
    ]
    ordered = sorted(record["candidates"] + more, key=lambda candidate: candidate["graph"])
    return {**record, "candidates": ordered}


def dense_record():
    """A record that takes as much memory as its length permits: many short texts."""
    record = real_record()
    reference = {**record["candidates"][-1], "verdict": None}
    names = [f"{number:02x}" for number in range(64)]
    return {
        **record,
        **dict.fromkeys(("winner", "reference", "flops_choice"), reference["graph"]),
        "conditions": dict.fromkeys(names, "ab"),
        "candidates": [reference],
    }


def real_file(size, *, record=None, indent=None, wide=False):
    """A file of good records, like the example's unless one is given, and how many they are."""
    record = record or real_record()
    environment = record["environment"]
    count = size // len(json.dumps(record, indent=indent))
    made = [
        {**record, "problem": {**record["problem"], "tokens": number}}
        for number in range(1, count + 1)
    ]
    value = {
        "schema_version": 1,
        "environments": {environment: EXAMPLE["environments"][environment]},
        "records": made,
    }
    if wide:  # which makes every character of the text take four bytes
        value["records"][0] = {**made[0], "conditions": {"😀": 1}}
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, indent=indent, ensure_ascii=not wide, separators=separators)
    return text.encode(), count


READER = """
import json, logging, os, sys
from pathlib import Path
from autolora.cache.files.store import TimingCache

told = []
class Ear(logging.Handler):
    def emit(self, record):
        told.append(record.getMessage())
logging.getLogger("autolora").addHandler(Ear())

def kb(name):
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0])

def read(path):
    Path("/proc/self/clear_refs").write_text("5")
    before = kb("VmRSS")
    records = TimingCache.load(path).records
    most = 1024 * (kb("VmHWM") - before)
    print(json.dumps({"bytes": most, "told": told, "records": len(records)}), flush=True)

TimingCache.load(sys.argv[1]).records
for line in sys.stdin:
    child = os.fork()
    if not child:
        read(json.loads(line))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        print(json.dumps({"died": status}), flush=True)
"""


def run(script, *arguments, **options):
    """A process that runs a script which may import autolora and the tests' modules."""
    folders = os.pathsep.join((str(ROOT), str(ROOT / "tests/support")))
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": folders, **options.pop("env", {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


@functools.cache
def _reader():
    """A process that has imported autolora, and forks for each path that it is given."""
    folder = tempfile.TemporaryDirectory()
    empty = Path(folder.name) / "empty.json"
    empty.write_bytes(EMPTY)
    return run(READER, empty), folder


def read_apart(path):
    """Reads all records of a file in a process of its own.

    Returns:
        ``bytes`` at the peak beyond what the process had, warnings ``told``, and ``records`` found.
    """
    process, _ = _reader()
    process.stdin.write(json.dumps(str(path)) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())
