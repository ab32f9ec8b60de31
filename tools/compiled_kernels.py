"""What the step of one compiled layer consists of: PEFT's graph, the tuned one, and no adapter.

    OMP_WAIT_POLICY=passive python tools/compiled_kernels.py [--shape TOKENS IN OUT] [--rank R]

The layer is tuned compiled first, into a temporary cache file. For each of the three the operators
of torch's profiler are printed that take most time of their own, in milliseconds a step.
"""

from __future__ import annotations

import torch
from common.arguments import parsed, parser_for, temporary_cache
from common.models import one_layer
from common.regimes import OF_MODELS, Regime
from common.results import write
from torch.profiler import ProfilerActivity, profile

import autolora
from autolora.graphs.kinds import find_graph
from autolora.nn.adapted import adapted_layers
from autolora.problem import COMPILED
from autolora.timing.data import Data
from autolora.timing.device import plain_torch, settle_allocator

STEPS = 30


def operators(run, clear, most):
    """The operators of a step that take most time of their own, in milliseconds, largest first."""
    for _ in range(3):
        clear()
        run()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(STEPS):
            clear()
            run()
    rows = [(each.self_cpu_time_total / STEPS / 1e3, each) for each in seen.key_averages()]
    rows.sort(key=lambda row: -row[0])
    return [(round(ms, 4), each.count / STEPS, each.key[:60]) for ms, each in rows[:most]]


def main() -> None:
    """Prints the three tables."""
    parser = parser_for(__doc__)
    parser.add_argument("--shape", nargs=3, type=int, default=[2048, 512, 512])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--regime", choices=OF_MODELS, default=OF_MODELS[-1])
    parser.add_argument("--most", type=int, default=8, help="operators of each")
    options = parsed(parser)
    regime, (tokens, *sizes) = Regime.of(options.regime), options.shape
    model = one_layer(regime, *sizes, options.rank)
    autolora.accelerate(model, compute_dtype=regime.compute)
    (layer,) = adapted_layers(model)
    problem = layer.problem(tokens, autocast=regime.autocast_dtype, mode=COMPILED)
    device, found = torch.device("cpu"), {}
    with temporary_cache():
        (record,) = autolora.tune(problem).records
    with plain_torch(device):
        settle_allocator(device)
        data = Data.random(problem, device)
        for name in dict.fromkeys((record.reference, record.winner)):
            found[name] = data.step(find_graph(name, problem))
        found["no adapter"] = data.floor()
        rows = {name: operators(run, data.clear, options.most) for name, run in found.items()}
    for name, table in rows.items():
        print(f"\n{name}")
        for ms, count, operator in table:
            print(f"{ms:10.3f} ms  ×{count:<4.0f} {operator}")
    write(options.json, [{"problem": problem.to_json(), "operators": rows}])


if __name__ == "__main__":
    main()
