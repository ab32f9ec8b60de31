"""Records for the tests of the cache: made by hand, and drawn by hypothesis."""

from hypothesis import strategies as st

from autolora.cache.records.candidate import OUTPUTS, Candidate, Verdict
from autolora.cache.records.precedence import EFFORTS
from autolora.cache.records.record import Record
from autolora.environment import Environment
from autolora.objective import KINDS, kinds_of
from autolora.problem import DTYPES, GRADIENTS, LAYOUTS, MODES, VARIANTS, Problem

CPU = Environment("cpu", "AMD EPYC 9B14", "AVX512", 2, "2.13.0+cpu", "mkl 2024.2", "highest")
OLDER = Environment("cpu", "AMD EPYC 9B14", "AVX512", 2, "2.12.0+cpu", "mkl 2024.2", "highest")
XEON = Environment("cpu", "Intel Xeon", "AVX512", 8, "2.13.0+cpu", "mkl 2024.2", "highest")
H100 = Environment("cuda", "NVIDIA H100", "9.0", 132, "2.13.0+cu130", "cublas of CUDA 13.0", "high")

REFERENCE = "reference"
SAVED = "base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h/t=h,Z"
MERGED = "merged/dX=merged/dA=via_z/dB=via_h"
FAST, REJECTED = Verdict(True, {}, (1.0, 1.0)), Verdict(False, {}, (1.0, 0.1), "too inaccurate")
TOO_LARGE = Verdict(False, {}, (None, None), "out of memory")


def make_problem(tokens=1024, **changes):
    fields = {"in_features": 512, "out_features": 768, "rank": 8}
    return Problem(**{**fields, "dtype": "float32", "device": "cpu", **changes}, tokens=tokens)


def make_candidate(graph, median_ns, *, spread_ns=100, rounds=5, verdict=FAST, peak_bytes=None):
    if median_ns is None:
        return Candidate(graph, None, None, 0, 4096, verdict)
    return Candidate(graph, median_ns, spread_ns, rounds, 4096, verdict, peak_bytes)


def make_record(
    tokens=1024, times=None, *, problem=None, environment=CPU, verdicts=None, **changes
):
    """A record of the graphs and times given; the fastest of them is the winner."""
    times = {REFERENCE: 2000, SAVED: 1000, MERGED: 1500} if times is None else times
    verdicts = {**dict.fromkeys(times, FAST), **(verdicts or {})}
    accepted = {name: time for name, time in times.items() if time and verdicts[name].ok}
    fields = {
        "problem": make_problem(tokens) if problem is None else problem,
        "environment": environment,
        "effort": "normal",
        "objectives": ("time",),
        "winner": min(accepted, key=accepted.get),
        "reference": REFERENCE,
        "flops_choice": REFERENCE,
        "candidates": tuple(make_candidate(n, t, verdict=verdicts[n]) for n, t in times.items()),
        "floor_ns": 500,
        "measured_at": "2026-01-01T00:00:00Z",
        "seconds": 1.5,
        "conditions": {"load_1min": 0.5},
        "autolora": "0.1.0",
    }
    return Record(**{**fields, **changes})


# --- drawn by hypothesis -----------------------------------------------------------------------

TIMES = st.integers(1, 2**53 - 1)
FIGURES = st.none() | st.floats(0, 1e300)
WORDS = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)
MOMENTS = st.datetimes().map(lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%SZ").zfill(20))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53).filter(lambda number: abs(number) < 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS
)


@st.composite
def verdicts(draw):
    ok = draw(st.booleans())
    outputs = draw(st.sets(st.sampled_from(OUTPUTS)))
    return Verdict(
        ok,
        {output: (draw(FIGURES), draw(FIGURES)) for output in outputs},
        (draw(FIGURES), draw(st.floats())),
        "" if ok else draw(WORDS),
    )


@st.composite
def problems(draw, device):
    sizes = st.integers(1, 2**53 - 1)
    variant = draw(st.sampled_from(VARIANTS))
    adapter_bias = variant == "lora" and draw(st.booleans())
    without = {"M" if variant == "lora" else "", "" if adapter_bias else "c"}
    return Problem(
        *(draw(sizes) for _ in range(4)),
        dtype=draw(st.sampled_from(DTYPES)),
        device=device,
        bias=draw(st.booleans()),
        adapter_dtype=draw(st.sampled_from(("", *DTYPES))),
        compute_dtype=draw(st.sampled_from(("", *DTYPES))),
        layout=draw(st.sampled_from(LAYOUTS)),
        dropout=draw(st.booleans()),
        adapter_bias=adapter_bias,
        variant=variant,
        gradients=tuple(draw(st.sets(st.sampled_from(GRADIENTS))) - without),
        mode=draw(st.sampled_from(MODES)),
    )


@st.composite
def records(draw, *, few_keys=False):
    """Any record; with ``few_keys`` one of few problems, so that records often compete."""
    environment = draw(st.sampled_from((CPU, OLDER, H100)[: 2 if few_keys else 3]))
    tokens = draw(st.sampled_from((1, 64)))
    names = [REFERENCE, *(draw(st.sets(WORDS, max_size=3)) - {REFERENCE})]
    spreads = st.sampled_from((0, 10, 20)) if few_keys else st.integers(0, 2**53 - 1)
    times = st.sampled_from((100, 200)) if few_keys else TIMES
    candidates = [
        Candidate(
            name,
            draw(times),
            draw(spreads),
            draw(st.integers(1, 3)),
            0,
            draw(verdicts()),
            draw(st.none() | st.integers(0, 2**53 - 1)),
        )
        for name in names
    ]
    if draw(st.booleans()):
        candidates.append(make_candidate("too large", None, verdict=TOO_LARGE))
    winners = [REFERENCE, *(c.graph for c in candidates if c.verdict.ok)]
    return Record(
        problem=make_problem(tokens) if few_keys else draw(problems(environment.device)),
        environment=environment,
        effort=draw(st.sampled_from(EFFORTS)),
        objectives=kinds_of((), draw(st.sets(st.sampled_from(KINDS)))),
        winner=draw(st.sampled_from(winners)),
        reference=REFERENCE,
        flops_choice=draw(st.sampled_from(names)),
        candidates=tuple(candidates),
        floor_ns=draw(st.none() | TIMES),
        measured_at=draw(MOMENTS),
        seconds=draw(st.floats(0, 1e9)),
        conditions=draw(st.dictionaries(WORDS, SCALARS, max_size=3)),
        autolora=draw(WORDS),
    )
