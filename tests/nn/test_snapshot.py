"""A plan in memory: which records it holds, and that only what is a plan arrives as one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from one_layer import LAYER, TALL, record_of
from records import REFERENCE

from autolora.cache.files.store import TimingCache
from autolora.cache.lookup.lookup import Lookup
from autolora.environment import Environment
from autolora.nn.freezing.snapshot import (
    Snapshot,
    Snapshots,
    read_message,
    read_snapshot,
    write_message,
)
from autolora.objective import TIME, Objective

HERE = Environment.of("cpu")
SIZES = frozenset({(24, 16)})


def plan_of(*files):
    layers = [TimingCache(records, Path(f"{number}.json")) for number, records in enumerate(files)]
    return Snapshot(Lookup.of(*layers), Objective("memory", 10**6))


def test_a_plan_arrives_as_it_was_sent():
    older = replace(HERE, torch="2.0.0")
    sent = plan_of([record_of(TALL), record_of(REFERENCE, 9)], [], [record_of(TALL, 8, older)])
    plan, environments = read_message(write_message(sent, {"cpu": HERE}), "rank 0's plan")
    assert environments == {"cpu": HERE}
    assert (plan.objective, plan.origin) == (Objective("memory", 10**6), "rank 0's plan")
    assert [layer.records for layer in plan.lookup.layers] == [
        layer.records for layer in sent.lookup.layers
    ]
    assert plan.files == ("0.json", "2.json")


def test_only_records_for_the_sizes_of_the_layers_are_in_a_plan(path):
    other = replace(record_of(TALL), problem=replace(LAYER, out_features=24))
    TimingCache([record_of(TALL), other], path).save()
    assert read_snapshot(SIZES, TIME, [path]).records == [record_of(TALL)]
    assert read_snapshot(frozenset(), TIME, [path]).records == []


def changed(**members):
    message = json.loads(write_message(plan_of([record_of(TALL)]), {"cpu": HERE}))
    return json.dumps({**message, **members})


def test_the_message_that_others_are_made_of_is_good():
    assert len(read_message(changed(), "")[0].records) == 1


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ("", "Expecting value"),
        ("[]", "a plan must be an object"),
        ('{"objective":"time"}', "a plan lacks"),
        (changed(more=1), "a plan may have only"),
        (changed(objective="speed"), "objective must be one of"),
        (changed(objective=[]), "objective must be one of"),
        (changed(max_saved_bytes=-1), "max_saved_bytes must be"),
        (changed(environments={}), "must be lists"),
        (changed(environments=[{}]), "an environment must have the fields"),
        (changed(files=3), "must be lists"),
        (changed(files=[["a.json"]]), "each of files"),
        (changed(files=[["a.json", 3]]), "each of files"),
        (changed(files=[["\x1b[2J", "{}"]]), "a path must be printable"),
        (changed(files=[["a.json", "{}"]]), "a cache file lacks"),
        (changed(files=[["a.json", '{"schema_version":2,']]), "newer than this autolora"),
        (changed().replace("normal", "heroic"), "1 entry cannot be used"),
    ],
)
def test_what_is_no_plan_is_refused(message, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_message(message, "")


def test_a_device_type_of_another_environment_keeps_its_own_plan():
    own, agreed = plan_of([]), plan_of([record_of(TALL)])
    snapshots = Snapshots(own, agreed, frozenset({"cpu"}))
    assert (snapshots.of("cpu"), snapshots.of("cuda")) == (own, agreed)
    assert Snapshots(own).of("cpu") is own
