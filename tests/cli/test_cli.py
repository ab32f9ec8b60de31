"""The command line as its users meet it: what it prints, where, and with which exit code."""

import doctest
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from commands import MODEL, QUICK

from autolora.cache.files.paths import search_path
from autolora.cache.files.store import TimingCache
from autolora.cache.records.record import Record
from autolora.cli import arguments, demo, main
from autolora.cli.demo_model import Shape
from autolora.cli.output import console, figures, tables
from autolora.tuning import tuner

# ---- help


COMMANDS = [
    (),
    ("tune",),
    ("show",),
    ("explain",),
    ("check",),
    ("cache",),
    *(("cache", verb) for verb in ("path", "merge", "validate", "diff", "prune", "export")),
    ("demo",),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_a_small_screen(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit:
        main([*command, "--help"])
    shown = capsys.readouterr().out
    assert exit.value.code == 0
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.startswith(f"usage: {' '.join(('autolora', *command))} ")
    assert command == ("cache",) or "autolora " in shown.partition("usage:")[2]


WITHOUT_TORCH = [
    ("--help",),
    ("show",),
    ("cache", "path"),  # as long as there are no records that could fit the machine
    ("cache", "path", "--write"),
    ("cache", "validate", "none.json"),
    ("cache", "merge", "none.json", "-o", "x.json"),
]


@pytest.mark.parametrize("command", WITHOUT_TORCH, ids=" ".join)
def test_what_needs_no_torch_does_not_wait_for_it(command):
    code = (
        "import sys; from autolora.cli import main\n"
        f"try: main({list(command)})\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert run.returncode == 0, run.stderr


def test_python_m_autolora():
    command = [sys.executable, "-m", "autolora", "--version"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"autolora \d+\.\d+\.\d+\S*\n", shown)


def test_every_command_is_listed(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"\n  {' '.join(command)} " in shown for command in COMMANDS[1:4])


@pytest.mark.parametrize("module", [console, figures, tables], ids=lambda module: module.__name__)
def test_examples_in_the_code(module):
    assert doctest.testmod(module).failed == 0


# ---- tune


def test_tune_measures_prints_and_keeps(say, tmp_path):
    said = say("tune", "model.py", *QUICK)
    assert said.code == 0
    assert "8 → 16 +b" in said.out
    assert "16 → 8 +b" in said.out
    assert re.search(r"\d\.\d\dx", said.out)
    assert "these 2 layers take" in said.out
    assert "2 problems measured" in said.out
    assert f"Cache: {tmp_path / 'timings.v1.json'}" in said.out
    assert "loading" in said.err  # what the model file prints is no result
    assert "loading" not in said.out
    assert "2/2  measured 16 → 8 +b" in said.err
    assert "\x1b" not in said.out + said.err
    assert len(TimingCache.load(search_path()[0]).records) == 2

    again = say("tune", "model.py", *QUICK)
    assert "0 problems measured, 2 already in the cache" in again.out
    assert "8 → 16 +b" in again.out  # what is known is shown all the same
    forced = say("tune", "model.py", *QUICK, "--force")
    assert "2 problems measured" in forced.out


def test_tune_json_is_one_document(say):
    said = say("tune", "model.py", *QUICK, "--json")
    assert said.code == 0
    first, second = said.json["records"]
    assert first["problem"]["gradients"] == ["A", "B"]  # fed by a frozen embedding
    assert second["problem"]["gradients"] == ["X", "A", "B"]
    assert (first["layers"], first["measured_now"]) == (1, True)
    assert first["speedup"] > 0
    assert first["environment"] in said.json["environments"]
    assert said.json["cache"] == str(search_path()[0])
    assert not said.json["interrupted"]
    assert say("tune", "model.py", *QUICK, "--json").json["records"][0]["measured_now"] is False


def test_figures_fit_a_small_screen(say, tmp_path):
    Path("wide.py").write_text(
        MODEL.replace("8, 16", "8192, 16384").replace("16, 8)", "16384, 8192)"), encoding="utf-8"
    )
    say("tune", "model.py", *QUICK)
    (record, *_) = TimingCache.load(search_path()[0]).records
    large = replace(record.problem, in_features=28672, out_features=8192, tokens=131072, rank=128)
    for width in (80, 120):
        lines = tables.record_table([record, replace(record, problem=large)], width)
        names = {f"    {record.winner}"}
        assert all(len(line.plain) <= width for line in lines if line.plain not in names)


def test_tokens_are_told_apart(say):
    said = say("tune", "model.py", *QUICK, "--tokens", "8,16")
    assert "In one step of 8 tokens" in said.out
    assert "In one step of 16 tokens" in said.out
    assert "4 problems measured" in said.out


def test_a_cache_elsewhere_is_named_for_training(say):
    said = say("tune", "model.py", *QUICK, "--cache", "other.json")
    assert f"  export AUTOLORA_CACHE={Path('other.json').resolve()}" in said.out
    assert Path("other.json").is_file()


def test_an_interrupt_keeps_what_is_finished(say, monkeypatch):
    measure, calls = tuner.measure_problem, []

    def measured(*args, **kwargs) -> Record:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*args, **kwargs)

    monkeypatch.setattr(tuner, "measure_problem", measured)
    said = say("tune", "model.py", *QUICK)
    assert said.code == 130
    assert "Interrupted: 1 problem measured" in said.out
    assert "8 → 16 +b" in said.out
    assert len(TimingCache.load(search_path()[0]).records) == 1
    assert "Traceback" not in said.err


def test_an_interrupt_anywhere_else_is_one_line(say, monkeypatch):
    Path("model.py").write_text("raise KeyboardInterrupt", encoding="utf-8")
    said = say("tune", "model.py", *QUICK)
    assert (said.code, said.out, said.err) == (130, "", "autolora: interrupted\n")


def test_a_spent_budget_says_how_to_go_on(say):
    said = say("tune", "model.py", *QUICK, "--budget", "0.000001s")
    assert said.code == 0
    assert "The budget is spent" in said.out
    assert "2 still to do" in said.out


def test_what_was_assumed_is_told_once(say):
    Path("model.py").write_text(MODEL.partition("def example")[0], encoding="utf-8")
    said = say("tune", "model.py", *QUICK)
    assert said.err.count("has no example_inputs") == 1
    assert "these 2 layers take" in said.out  # the first layer's two problems are one layer


def test_a_rank_that_is_too_large_is_a_warning(say):
    said = say("tune", "model.py", *QUICK, "--rank", "9")
    assert said.code == 0
    assert "autolora: warning: rank 9 is larger than a layer of 8→16" in said.err
    assert ".py" not in said.err


# ---- bad input


FILES = {
    "raises.py": "def build_model():\n    raise ValueError('too wide')",
    "broken.py": "model = (",
    "exits.py": "import sys\nsys.exit()",
    "nothing.py": "x = 1",
    "broken.json": '{"model_type": ',
    "model.txt": "",
    "odd.py": "raise ValueError('\\x1b[31m [bold]red[/bold]')",
}
R = ("--rank", "2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tune", "missing.py"), "no such file: missing.py"),
        (("tune", "raises.py"), "ValueError: too wide\n  line 2, in build_model: raise"),
        (("tune", "broken.py"), "broken.py is not valid Python"),
        (("tune", "exits.py"), "exits.py ended the program"),
        (("tune", "nothing.py"), "nothing.py holds no model"),
        (("tune", "model.py:other"), "model.py has no 'other'; candidates: model"),
        (("tune", "model.py"), "has no LoRA layers"),
        (("tune", "broken.json", *R), "cannot read broken.json"),
        (("tune", "model.txt", *R), "neither Python nor JSON"),
        (("tune", ".", *R), "holds no config.json"),
        (("tune",), "required: TARGET (see 'autolora tune --help')"),
        (("tune", "model.py", "--rank", "0"), "whole number of at least 1, not '0'"),
        (("tune", "model.py", "--rank", "two"), "whole number of at least 1, not 'two'"),
        (("tune", "model.py", *R, "--dtype", "float8"), "must be one of float32, bfloat16"),
        (("tune", "model.py", *R, "--tokens", "8,0"), "every STEP tokens, not '8,0'"),
        (("tune", "model.py", *R, "--tokens", ""), "every STEP tokens, not ''"),
        (("tune", "model.py", *R, "--tokens", "9:3"), "the range of tokens '9:3' is empty"),
        (("tune", "model.py", *R, "--tokens", "1:6000:1"), "12,000 problems would take hours"),
        (("tune", "model.py", *R, "--tokens", "1:999999:1"), "has 999999 counts"),
        (("tune", "model.py", *R, "--device", "gpu"), "cpu, cuda or cuda:N, not 'gpu'"),
        (("tune", "model.py", *R, "--device", "meta"), "cpu, cuda or cuda:N, not 'meta'"),
        (("tune", "model.py", *R, "--device", "cuda:99"), "no device 'cuda:99'"),
        (("tune", "model.py", *R, "--effort", "max"), "choose from"),
        (("tune", "model.py", *R, "--budget", "-1"), "such as 90, 60s, 5m or 1h, not '-1'"),
        (("tune", "model.py", *R, "--budget", "0s"), "must be a time above 0"),
        (("tune", "model.py", *R, "--alpha", "nan"), "positive number, not 'nan'"),
        (("tune", "model.py", *R, "--target-modules", "q_proj"), "match no linear layer"),
        (("tune", "model.py", *R, "--target-modules", "(" * 3), "no regular expression"),
        (("tune", "model.py", *R, "--cache", "."), "cannot write the timing cache"),
        (("tune", "model.py", *R, "--cache", "/dev/null/x.json"), "cannot write the timing cache"),
        (("tune", "model.py", *R, "--no-such-option"), "--no-such-option"),
        (("show", "--cache", "missing.json"), "no such cache file: missing.json"),
        (("show", "--cache", "broken.json"), "broken.json is not used: it is corrupt"),
        (("explain", "model.py", *R, "--cache", "broken.json"), "it is corrupt"),
        (("explain", "missing.py", *R), "no such file"),
        (("tune", "model.py", "--rank", "9" * 30), "must be at most 2147483647"),
        (("demo", "--rank", "100000"), "rank must be at most 512"),
        (("demo", "--dtype", "fp16"), "float16 trains with loss scaling only"),
        (("cache",), "no verb given; one of path, merge"),
        ((), "no command given"),
        (("tuen",), "invalid choice: 'tuen'"),
    ],
)
def test_bad_input_is_one_clear_error(say, words, message):
    for name, text in FILES.items():
        Path(name).write_text(text, encoding="utf-8")
    said = say(*words)
    assert said.code == 2
    assert said.out == ""
    assert said.err.count("autolora: error: ") == 1
    assert message in said.err
    assert "Traceback" not in said.err
    for name, text in FILES.items():
        assert Path(name).read_text(encoding="utf-8") == text  # nothing is lost


def test_a_broken_cache_is_set_aside(say):
    path = search_path()[0]
    path.write_text("{", encoding="utf-8")
    said = say("tune", "model.py", *QUICK)
    assert said.code == 0
    assert "it is corrupt" in said.err
    assert path.with_name(f"{path.name}.corrupt-1").read_text(encoding="utf-8") == "{"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_may_not_be_written(say, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    said = say("tune", "model.py", *QUICK, "--cache", str(closed / "timings.json"))
    assert said.code == 2
    assert "cannot write the timing cache" in said.err


def test_text_of_others_cannot_steer_the_terminal(say):
    Path("odd.py").write_text(FILES["odd.py"], encoding="utf-8")
    said = say("tune", "odd.py")
    assert r"\x1b[31m [bold]red[/bold]" in said.err
    assert "\x1b" not in said.err


def test_a_screen_without_our_signs_gets_others(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    path = tmp_path / "modèle.py"
    command = [sys.executable, "-m", "autolora", "tune", str(path)]
    run = subprocess.run(command, capture_output=True, check=False)
    assert run.returncode == 2
    assert b"no such file" in run.stderr


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch):
    command = [sys.executable, "-m", "autolora", "show"]
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (run.returncode, run.stderr) == (0, b"")


# ---- show


def test_show_an_empty_cache(say):
    said = say("show")
    assert said.code == 0
    assert "Nothing measured yet" in said.out


def test_show(say):
    say("tune", "model.py", *QUICK)
    path = search_path()[0]
    (record, *_) = TimingCache.load(path).records
    said = say("show")
    assert said.code == 0
    assert f"{path}: 2 records" in said.out
    assert record.environment.device_name in said.out
    assert record.winner in said.out
    assert "accurate" not in said.out
    verbose = say("show", "--verbose").out
    assert all(candidate.graph in verbose for candidate in record.candidates)
    assert "wins time" in verbose
    assert "FLOPs choice" in verbose
    assert "the layer without its adapter" in verbose
    (file, *_) = say("show", "--json").json["files"]
    assert file["path"] == str(path)
    assert [entry["winner"] for entry in file["records"]] == [
        record.winner for record in TimingCache.load(path).records
    ]


def test_show_by_machine_and_by_section(say):
    say("tune", "model.py", *QUICK)
    path = search_path()[0]
    cache = TimingCache.load(path)
    for record in cache.records:
        other = replace(record.environment, device_name="[bold]Other[/bold]")
        cache.publish(replace(record, environment=other))
        cache.publish(replace(record, problem=replace(record.problem, rank=4)))
    said = say("show", "--cache", str(path)).out
    assert "6 records" in said
    assert "[bold]Other[/bold]" in said
    assert said.count("rank 2, float32") == 2  # once for each machine
    assert said.count("rank 4, float32") == 1


# ---- explain


def test_explain_before_and_after_tuning(say):
    options = ("--rank", "2", "--batch-size", "2", "--seq-len", "8")
    said = say("explain", "model.py", *options)
    assert said.code == 0
    assert "not tuned, chosen by FLOPs and bytes" in said.out
    assert f"To tune them: autolora tune model.py {' '.join(options)}" in said.out
    say("tune", "model.py", *QUICK)
    said = say("explain", "model.py", *options)
    assert "2 layers: 2 exact." in said.out
    assert "To tune" not in said.out
    layers = say("explain", "model.py", *options, "--json").json["layers"]
    assert [(layer["name"], layer["reason"]) for layer in layers] == [
        ("1", "exact"),
        ("3", "exact"),
    ]
    assert layers[0]["problem"]["tokens"] == 16
    near = say("explain", "model.py", *options[:-1], "9", "--json").json["layers"]
    assert {layer["reason"] for layer in near} == {"nearest"}


def test_explain_groups_equal_layers(say):
    Path("deep.py").write_text(
        dedent("""
        import torch
        from torch import nn
        model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(8, 8) for _ in range(4))})
        def forward(x):
            for layer in model["layers"]:
                x = layer(x)
            return x
        model.forward = forward
        def example_inputs(batch_size, seq_len):
            return torch.zeros(batch_size, seq_len, 8)
        """),
        encoding="utf-8",
    )
    said = say("explain", "deep.py", "--rank", "2")
    assert "\nlayers.0\n" in f"\n{said.out}"
    assert "\nlayers.* ×3\n" in said.out


def test_explain_tells_of_layers_that_are_left(say):
    peft = pytest.importorskip("peft")
    del peft
    Path("mixed.py").write_text(
        MODEL + "import peft\n"
        "config = peft.LoraConfig(r=2, target_modules=['1', '3'], rank_pattern={})\n"
        "model = peft.get_peft_model(model, config)\n"
        "model.base_model.model[3].lora_dropout['default'] = nn.AlphaDropout(0.5)\n",
        encoding="utf-8",
    )
    said = say("explain", "mixed.py")
    assert said.code == 0
    assert "its own path: a dropout of type AlphaDropout" in said.out
    assert len(say("explain", "mixed.py", "--json").json["left"]) == 1


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        (["--dropout", "0.1"], {"dropout": True}),
        (["--dora"], {"variant": "dora", "gradients": ["X", "A", "B", "M"]}),
        (["--lora-bias"], {"adapter_bias": True, "gradients": ["X", "A", "B", "c"]}),
        (["--quantised", "nf4", "--dora"], {"layout": "nf4", "variant": "dora"}),
        (["--quantised", "int8", "--dropout", "0.5"], {"layout": "int8", "dropout": True}),
    ],
)
def test_tune_knows_the_kinds_of_adapters(say, options, fields):
    Path("plain.py").write_text(MODEL, encoding="utf-8")
    arguments = ["plain.py", "--rank", "2", "--tokens", "16", *options]
    said = say("tune", *arguments, "--effort", "quick", "--json")
    assert said.code == 0
    *_, last = said.json["records"]
    assert {name: last["problem"][name] for name in fields} == fields
    title = say("show").out
    assert ("DoRA rank 2" in title) == ("--dora" in options)
    assert "exact" in say("explain", *arguments).out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--dropout", "1"], "argument --dropout: must be at least 0 and below 1, not '1'"),
        (["--dropout", "much"], "argument --dropout: must be at least 0 and below 1, not 'much'"),
        (["--dora", "--lora-bias"], "DoRA with a bias in lora_B has no graphs but PEFT's"),
        (["--dora", "--quantised", "int8"], "DoRA on int8 layers has no graphs but PEFT's"),
        (["--quantised", "fp4"], "argument --quantised: invalid choice: 'fp4'"),
    ],
)
def test_tune_refuses_what_does_not_go_together(say, options, complaint):
    Path("plain.py").write_text(MODEL, encoding="utf-8")
    said = say("tune", "plain.py", "--rank", "2", *options)
    assert said.code != 0
    assert complaint in said.err
    assert "Traceback" not in said.err


# ---- demo


@pytest.fixture
def small_demo(monkeypatch):
    monkeypatch.setattr(demo, "_SHAPE", Shape(hidden=32, ffn=48, layers=2, heads=2, vocabulary=16))
    monkeypatch.setattr(demo, "LENGTH", 16)


def test_demo(say, small_demo, tmp_path):
    said = say("demo", "--steps", "3", "--rank", "2", "--device", "cpu")
    assert said.code == 0
    assert "One training step, the median of 3" in said.out
    assert "within the rounding of float32" in said.out
    assert "4 problems" not in said.out
    assert re.search(r"tuned +\S+ [mµ]s", said.out)
    assert not search_path()[0].exists()  # the user's cache is left alone


def test_demo_json(say, small_demo):
    document = say("demo", "--steps", "2", "--dtype", "bf16", "--device", "cpu", "--json").json
    assert document["equal"] is True
    assert len(document["losses"]["tuned"]) == len(document["losses"]["reference"])
    assert document["losses"]["tuned"][-1] < document["losses"]["tuned"][0]
    assert document["speedup"] > 0
    assert len(document["tuning"]["records"]) == 4


def test_demo_models_with_equal_graphs_stay_equal(small_demo):
    torch.manual_seed(0)
    shape = demo._SHAPE
    bare = demo.Llama(shape)
    one = demo.add_lora(demo.copy.deepcopy(bare), rank=2, target_modules=demo.TARGETS)
    runs = demo._runs(bare, one, Path("nowhere.json"), torch.device("cpu"))  # all misses: reference
    demo._train(runs, 2, torch.device("cpu"))
    assert [a.item() for a in runs[0].losses] == [b.item() for b in runs[1].losses]
    assert all(parameter.grad is None for parameter in bare.parameters())


@pytest.mark.parametrize(
    ("speedup", "noise", "words"),
    [
        (1.30, 0.01, "Tuned training is 1.30x as fast (± 0.02); 50 % of the time"),
        (1.03, 0.02, "No difference in speed"),
        (0.98, 0.02, "No difference in speed"),
        (0.90, 0.01, "The tuned graphs are slower here: 0.90x"),
    ],
)
def test_the_demo_is_honest(speedup, noise, words):
    compared = demo.Comparison(
        reference_ns=2e6,
        tuned_ns=2e6 / speedup,
        bare_ns=1e6,
        speedup=speedup,
        noise=noise,
        overhead_removed=0.5,
        first_loss=1.0,
        last_loss=0.5,
        largest_difference=0.0,
        equal=True,
    )
    assert demo._verdict(compared).startswith(words)


# ---- small parts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all-linear", "all-linear"),
        ("q_proj, v_proj", ["q_proj", "v_proj"]),
        ("self_attn.q_proj", ["self_attn.q_proj"]),
        (r".*\.(q|v)_proj", r".*\.(q|v)_proj"),
    ],
)
def test_target_modules(text, expected):
    assert arguments.modules(text) == expected


@pytest.mark.parametrize(
    ("nanoseconds", "expected"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (999.9, "1.00 µs"),
        (12_345, "12.3 µs"),
        (999_600, "1.00 ms"),
        (123_456_789, "123 ms"),
        (1.5e9, "1.50 s"),
    ],
)
def test_durations(nanoseconds, expected):
    assert figures.duration(nanoseconds) == expected


def test_names_with_several_numbers():
    names = [f"layers.{a}.experts.{b}.up" for a in range(2) for b in range(2)]
    assert tables.group_names(names) == "layers.*.experts.*.up"
    assert tables.group_names(["lm_head"]) == "lm_head"
