"""The documents show what the result files say, and every table can be made of its rows."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
F32, BF16 = "float32", "bfloat16"
OPTIONS = ["--shape", "8", "16", "16", "--rank", "2", "--draws", "2", "--size", "0.1", "1e-4"]
BLOCK = "Before.\n\n<!-- figures: {} -->\n<!-- end of figures -->\n\nAfter.\n"


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")


@pytest.fixture
def figures():
    return importlib.import_module("figures")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with a document, and the results of one tool that really ran."""
    folder = tmp_path / "tools/results/one"
    folder.mkdir(parents=True)
    (tmp_path / "README.md").write_text(BLOCK.format("adapter_gain"), encoding="utf-8")
    words = ["tools/adapter_gain.py", *OPTIONS, "--json"]
    path = folder / "adapter_gain.json"
    monkeypatch.setattr("sys.argv", [*words, str(path)])
    importlib.import_module("adapter_gain").main()
    return tmp_path


def ran(median, low, high):
    return {"median": median, "quartiles": [low, high], "rounds": 9}


def test_the_documents_show_what_their_results_say(figures):
    assert [str(path) for path, _ in figures.differing(ROOT)] == []


def test_a_result_file_says_by_what_it_was_measured(checkout):
    found = json.loads((checkout / "tools/results/one/adapter_gain.json").read_text())
    assert found["command"] == " ".join(["python tools/adapter_gain.py", *OPTIONS])
    assert found["versions"]["torch"] == importlib.import_module("torch").__version__
    assert found["environment"]["device"] == "cpu"
    assert {"cores", "threads", "OMP_WAIT_POLICY"} <= found["environment"].keys()
    assert 0 <= found["conditions"]["others_busy"] <= 1
    assert [(row["size"], row["route"]) for row in found["rows"]][0::4] == [
        (0.1, "reference"),
        (1e-4, "reference"),
    ]
    first = found["rows"][0]["samples"]["gain_Y"]
    assert first["rounds"] == 2
    assert first["quartiles"][0] <= first["median"] <= first["quartiles"][1]


def test_a_block_is_written_and_then_stays(figures, checkout):
    ((path, text),) = figures.differing(checkout)
    lines = text.splitlines()
    assert lines[:3] == ["Before.", "", "<!-- figures: adapter_gain -->"]
    assert lines[3].startswith("| dtype | ‖s·BA‖/‖W‖ | `reference` |")
    assert [line.split(" | ")[1] for line in lines[5:7]] == ["1e-1", "1e-4"]
    assert "python tools/adapter_gain.py --shape 8 16 16" in lines[8]
    assert lines[9:] == ["<!-- end of figures -->", "", "After."]
    path.write_text(text, encoding="utf-8")
    assert list(figures.differing(checkout)) == []


@pytest.mark.parametrize("changed", ["document", "results"])
def test_a_change_is_found(figures, checkout, changed):
    ((path, text),) = figures.differing(checkout)
    path.write_text(text, encoding="utf-8")
    assert not list(figures.differing(checkout))
    if changed == "document":
        path.write_text(text.replace("| bfloat16 | 1e-4 |", "| float32 | 1e-4 |"), encoding="utf-8")
    else:
        results = checkout / "tools/results/one/adapter_gain.json"
        document = json.loads(results.read_text())
        document["rows"][0]["gain_Y"] += 0.5
        results.write_text(json.dumps(document))
    assert [each for each, _ in figures.differing(checkout)] == [path]


def test_a_table_of_many_benchmarks_leaves_their_commands_to_the_tables_of_each(figures, checkout):
    path = checkout / "tools/results/one/adapter_gain.json"
    one = json.loads(path.read_text())
    assert "python tools/adapter_gain.py" in figures.caption([one] * figures.MANY)
    state = one["versions"]["commit"] or one["versions"]["autolora"]
    later = one | {"date": "2100-01-01T00:00:00Z"}
    many = figures.caption([*[one] * figures.MANY, later])
    assert "adapter_gain" not in many
    assert many.endswith(f"autolora {state}, {one['date'][:10]} to 2100-01-01.")


def test_each_machine_has_a_table_of_its_own(figures, checkout):
    results = checkout / "tools/results"
    document = json.loads((results / "one/adapter_gain.json").read_text())
    document["environment"]["device_name"] = "Another"
    (results / "two").mkdir()
    (results / "two/adapter_gain.json").write_text(json.dumps(document))
    both = figures.figures("adapter_gain", None, results)
    assert both.count("| dtype |") == 2
    only = figures.figures("adapter_gain", "two", results)
    assert only.count("| dtype |") == 1
    assert "\n\nAnother, " in only
    assert both == f"{figures.figures('adapter_gain', 'one', results)}\n{only}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BLOCK.format("nothing"), "unknown figures 'nothing'"),
        (BLOCK.format("layers"), "no results of layers on any machine"),
        (BLOCK.format("layers mine"), "no results of layers on mine"),
        ("<!-- figures: layers -->\n" + BLOCK.format("layers"), "has no '<!-- end of figures -->'"),
    ],
)
def test_a_block_that_cannot_be_made_is_refused(figures, tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        figures.rewritten(text, tmp_path)


LAYER = {"regime": "nf4, float32", "ms": {"peft": 4.0, "floor": 2.0}}
SIBLINGS = {"tokens": 8, "in": 4, "outs": [4, 2], "compiled": False, "regime": F32}
EXPERTS = {"case": [16, 4, 512, 256, 8, 2], "implementation": "eager", "bare_over_peft": 2.0}
MIB = 2**20
WAYS = {
    "alone": {"step_s": 1.2, "peak_mib": 2000.0, "largest_difference": 0.0},
    "autolora run": {"step_s": 1.0, "peak_mib": 1500.0, "largest_difference": 2e-7},
    "one line": {"step_s": 0.8, "peak_mib": 1400.0, "largest_difference": 1e-7},
}
TUNED = ("tuner", "busy", "exhaustive", "flops", "paper", "PEFT")
COMPILED = [f"{way} compiled" for way in ("autolora", "apart", "other", "bare")]
HEADLINE = [
    {
        "tool": "bench_compiled",
        "model": "llama",
        "regime": F32,
        "samples": {
            "autolora compiled": {"over peft compiled": ran(1.1, 1.0, 1.2)},
            "bare compiled": {"over peft compiled": ran(1.3, 1.2, 1.4)},
        },
    },
    *(
        {"tool": "bench_layer", "regime": name, "speedup": s, "ms": {"peft": 4.0, "floor": 2.0}}
        for name, s in ((F32, 9.0), ("nf4, bfloat16", 1.0), ("nf4, bfloat16", 1.21))
    ),
]
NOISE = [
    {
        "seconds": seconds,
        "problems": {
            name: {
                "winner": winner,
                "within": 0.007,
                "noisy": noisy,
                "median_ns": {"a": 1e6, "b": ns},
            }
            for name, winner, noisy in (("q", winner, False), ("k", "a", True))
        },
    }
    for winner, ns, seconds in (("b", 9e5, 10.0), ("a", 1.02e6, 12.4))
]
FINE = {"dtype": F32, "compute_dtype": None, "dropout": 0.0, "speedup": 1.25}


@pytest.mark.parametrize(
    ("name", "rows", "line"),
    [
        (
            "layers",
            [LAYER | {"speedup": s, "over_flops": 1.1} for s in (1.0, 1.21)],
            "NF4, float32 | **1.10x** | 1.00x | 2.00x | 1.10x",
        ),
        (
            "headline",
            HEADLINE,
            "4-layer Llama compiled, over compiled PEFT, float32 | 1.10x | 1.30x",
        ),
        ("headline", HEADLINE[1:], "linear layer, mean of 2 sizes, NF4, bfloat16 | 1.10x | 2.00x"),
        (
            "models",
            [
                {
                    "model": "llama",
                    "tokens": 8,
                    "rank": 2,
                    "regime": f"{BF16}, compute_dtype",
                    "overhead_removed": 0.5,
                    "largest_difference": 1e-6,
                    "samples": {
                        "autolora": {"over peft": ran(1.1, 1.05, 1.2)},
                        "floor": {"over peft": ran(1.3, 1.25, 1.35)},
                    },
                }
            ],
            "llama, 8 tokens, rank 2 | bfloat16, `compute_dtype=torch.bfloat16` | "
            "1.10x (1.05 to 1.20) | 50% | 1.30x (1.25 to 1.35) | 1.0e-06",
        ),
        (
            "compiled",
            [
                {
                    "model": "llama",
                    "regime": F32,
                    "samples": {
                        key: {"over peft compiled": ran(1.1, 1.0, 1.2)}
                        for key in ("autolora", *COMPILED)
                    },
                }
            ],
            "llama | float32" + 5 * " | 1.10x (1.00 to 1.20)",
        ),
        (
            "siblings",
            [
                SIBLINGS | {"rank": 8, "over_apart": 1.1},
                SIBLINGS | {"rank": 16, "over_apart": 1.2},
                SIBLINGS | {"rank": 16, "over_apart": 1.3, "compiled": True},
            ],
            "8 × 4 → 4, 2 | 1.10 / 1.20 | – / 1.30",
        ),
        (
            "experts",
            [EXPERTS | {"regime": each, "over_peft": 1.5} for each in (F32, BF16)],
            "16, 4, 512/256, 8, 2 | 1.50x (2.00x) | 1.50x (2.00x)",
        ),
        (
            "experts_memory",
            [EXPERTS | {"regime": F32, "peak_bytes": {"peft": 931 * MIB, "autolora": None}}],
            "16, 4, 512/256, 8, 2 | 931 MiB → –",
        ),
        (
            "run",
            [{"starting_s": {}}, {"regime": F32, "ways": WAYS}],
            "float32 | 1.20x | 1.50x | 2,000 → 1,500 MiB | 2.0e-07",
        ),
        (
            "tuner",
            [
                {
                    "regret": dict.fromkeys(TUNED, regret),
                    "noise": dict.fromkeys(TUNED, regret / 100),
                    "seconds": {"tuner": regret},
                }
                for regret in (1.0, 2.0)
            ],
            "tuner | 1.500 | 2.000 ± 0.020 | 1.0 to 2.0",
        ),
        (
            "noise",
            [{"llama": [], "tiny": NOISE}],
            "tiny layers (64→96) | 2 | 2 of 4 | 0.7% | 1 of 2 | 2.0% | 10 to 12",
        ),
        (
            "finetune",
            [
                FINE
                | {
                    "final_loss": {"peft": 0.5, "autolora": loss},
                    "accuracy": {"peft": 0.8, "autolora": 0.81},
                }
                for loss in (0.4, 0.6)
            ],
            "float32, dropout 0 | 0.500 ± 0.000 | 0.500 ± 0.141 | 0.800 ± 0.000 | 0.810 ± 0.000"
            " | 1.25x",
        ),
    ],
)
def test_rows_become_lines(figures, name, rows, line):
    made, *_ = figures.TABLES[name]
    heading, first, *_ = made(rows)
    assert " | ".join(first) == line
    assert len(heading) == len(first)
