from dataclasses import replace

from records import H100, REFERENCE, SAVED, TOO_LARGE, make_candidate, make_problem, make_record

from autolora.cli.output.evidence import candidate_table

LARGE = "merged/dX=merged/dA=via_p/dB=via_p"
RECORD = make_record(
    problem=make_problem(device="cuda"),
    environment=H100,
    times={REFERENCE: 2000, SAVED: 1000, LARGE: None},
    verdicts={LARGE: TOO_LARGE},
)


def lines_of(record):
    return [line.plain for line in candidate_table(record)]


def shown(record):
    return [" ".join(line.split()) for line in lines_of(record)]


def with_peak(candidate, peak_bytes):
    return candidate if candidate.median_ns is None else replace(candidate, peak_bytes=peak_bytes)


def test_the_peak_stands_beside_what_is_kept_where_it_is_known():
    assert "1.00 µs spread 100 ns 5 rounds keeps 4.00 KiB accurate" in shown(RECORD)
    peaks = tuple(with_peak(candidate, 5 << 20) for candidate in RECORD.candidates)
    found = shown(replace(RECORD, candidates=peaks))
    assert "1.00 µs spread 100 ns 5 rounds keeps 4.00 KiB, peak 5.00 MiB accurate" in found
    assert "- not timed keeps 4.00 KiB rejected" in found


def test_a_peak_of_nothing_is_shown():
    peaks = tuple(with_peak(candidate, 0) for candidate in RECORD.candidates)
    assert any("peak 0 B" in line for line in shown(replace(RECORD, candidates=peaks)))


def test_what_ran_out_of_memory_has_its_reason_and_no_figures():
    found = shown(RECORD)
    at = found.index(LARGE)
    assert found[at - 1] == "- not timed keeps 4.00 KiB rejected"
    assert found[at + 1] == "rejected: out of memory"
    assert found[at + 2].endswith("the layer without its adapter")


def test_the_widest_figures_fit_a_small_screen():
    wide = tuple(
        replace(
            make_candidate(candidate.graph, 1_230_000, spread_ns=12_300, rounds=120),
            saved_bytes=99 << 20,
            peak_bytes=88 << 20,
            verdict=candidate.verdict,
        )
        for candidate in RECORD.candidates
    )
    assert max(map(len, lines_of(replace(RECORD, candidates=wide)))) <= 80
