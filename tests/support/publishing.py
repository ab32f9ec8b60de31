"""Processes that publish records into a file when they are told to."""

from hostile import run

PUBLISH = """
import contextlib, sys
from itertools import count, islice
from autolora.cache.files import atomic_update
from autolora.cache.files.store import TimingCache
from records import make_record
path, first, number, locks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if locks == "unlocked":
    atomic_update.locked = lambda target: contextlib.nullcontext()
cache = TimingCache.load(path)
print("ready", flush=True)
sys.stdin.readline()
for tokens in islice(count(first), number or None):
    cache.publish(make_record(tokens))
    print(tokens, flush=True)
"""


def start_publishing(path, first, number, locks="locked"):
    """A process that publishes records of ``number`` token counts (0: no end) when told to.

    An ``"unlocked"`` one sees nobody's lock, and nobody sees its own.
    """
    return run(PUBLISH, path, first, number, locks)


def let_go(process):
    """Tells a process to begin, once it is ready."""
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("\n")
    process.stdin.flush()
