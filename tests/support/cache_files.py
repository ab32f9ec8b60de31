"""Cache files of made-up records, and what they hold."""

from dataclasses import replace
from pathlib import Path

from records import CPU, H100, make_problem, make_record

from autolora.cache.files.store import TimingCache

NODE = replace(CPU, device_name="[bold]Node 7[/bold]")


def keep(path, *found):
    TimingCache(found, path).save()
    return Path(path)


def held(path):
    return TimingCache.load(path).records


def better_of(record):
    return replace(record, effort="thorough")


def on_gpu(tokens=1024):
    return make_record(problem=make_problem(tokens, device="cuda"), environment=H100)
