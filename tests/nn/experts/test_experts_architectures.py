"""Every architecture of transformers whose experts follow its interface trains along graphs."""

import copy
import importlib
import random
from pathlib import Path

import peft
import pytest
import torch
import transformers
from peft_models import choices_of
from small_mixture import Holder
from torch import nn

import autolora
from autolora.graphs.experts.space import structures, uniform
from autolora.nn.choosing import pin

INTERFACE = pytest.importorskip("transformers.integrations.moe").__name__
MODELS = Path(transformers.__file__).parent / "models"
FOLDERS = sorted(
    path.parent.name
    for path in MODELS.glob("*/modeling_*.py")
    if "@use_experts_implementation" in path.read_text(encoding="utf-8")
)
HIDDEN, INNER, EXPERTS = 32, 12, 4
SMALL = {
    "hidden_size": HIDDEN,
    "moe_hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "moe_intermediate_size": INNER,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "moe_num_experts": EXPERTS,
    "swiglu_limit": 1.0,  # is exceeded
}
SMALL_BY_FOLDER = {"ernie4_5_vl_moe": {"moe_intermediate_size": [INNER, INNER]}}
ARGUMENTS = {"ernie4_5_vl_moe": {"intermediate_size": INNER}}
# parts of these compute in float32, whatever the dtype of their weights
IN_FLOAT32 = ("beam", "inkling2", "openai_privacy_filter")


def part_of(folder, kind):
    name = f"transformers.models.{folder}.{kind}_{folder}"
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} cannot be imported: {error}")


def classes_in(module):
    own = (each for each in vars(module).values() if isinstance(each, type))
    return [each for each in own if each.__module__ == module.__name__]


def experts_classes(folder):
    return [
        each
        for each in classes_in(part_of(folder, "modeling"))
        if getattr(getattr(each, "forward", None), "__globals__", {}).get("__name__") == INTERFACE
    ]


def built(folder, kind):
    """A small module, of the first of the architecture's configurations that describes one."""
    for each in classes_in(part_of(folder, "configuration")):
        if not issubclass(each, transformers.PreTrainedConfig):
            continue
        config = each()
        for name, value in {**SMALL, **SMALL_BY_FOLDER.get(folder, {})}.items():
            if name in vars(config):
                setattr(config, name, value)
        config._experts_implementation = "eager"
        try:
            return kind(config, **ARGUMENTS.get(folder, {}))
        except (AttributeError, RuntimeError):  # that of another part of the model
            continue
    return pytest.fail(f"no configuration of {folder} describes a {kind.__name__}")


def normal(model, generator):
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)


def adapted(experts, generator):
    """By PEFT, both weights, in float64."""
    first = "gate_up_proj" if experts.has_gate else "up_proj"
    config = peft.LoraConfig(
        r=3,
        lora_alpha=6,
        target_parameters=[f"experts.{first}", "experts.down_proj"],
        target_modules=[],
    )
    model = peft.get_peft_model(Holder(experts.double()), config, autocast_adapter_dtype=False)
    normal(model, generator)
    return model


def batch(generator):
    """Tokens, two experts for each, among them never the last one, and the weights of these."""
    x = torch.randn(11, HIDDEN, dtype=torch.float64, generator=generator)
    ids = torch.rand(11, EXPERTS - 1, generator=generator).topk(2).indices
    weights = torch.rand(11, 2, dtype=torch.float64, generator=generator)
    return x, ids, weights


def step(model, x, ids, weights):
    """The output and the gradients of all that is trained, and of the two float inputs."""
    leaves = {"x": x.clone().requires_grad_(), "weights": weights.clone().requires_grad_()}
    y = model(leaves["x"], ids, leaves["weights"])
    leaves |= {name: each for name, each in model.named_parameters() if each.requires_grad}
    found = torch.autograd.grad(y.sin().sum(), list(leaves.values()))
    return {"y": y.detach(), **dict(zip(leaves, found, strict=True))}


def drawn_graph(seed):
    """A chooser of any graph that is not the reference, the same one for each seed."""
    draw = random.Random(seed)

    def chooser(problem):
        base, thin = draw.choice(["loop", "bmm"]), draw.choice(["loop", "turned", "bmm"])
        return uniform(draw.choice(structures(problem)), problem, base, thin)

    return chooser


def assert_trains_as_by_peft(folder, experts):
    assert sorted(experts.down_proj.shape) == [EXPERTS, INNER, HIDDEN]
    generator = torch.Generator().manual_seed(0)
    model = adapted(experts, generator)
    fast = copy.deepcopy(model)
    report = autolora.accelerate(fast)
    assert (len(report.taken), report.left, report.notes) == (2, [], [])
    pin(fast, drawn_graph(folder))
    given = batch(generator)
    expected, found = step(model, *given), step(fast, *given)
    assert [choice.calls for choice in choices_of(fast) if choice.executable is not None] == [1, 1]
    assert found.keys() == expected.keys()
    assert len(found) == 7  # y, x, the routing weights, and A and B of two projections
    rtol = 1e-4 if folder in IN_FLOAT32 else 1e-9
    for name, values in expected.items():
        atol = rtol * float(values.abs().max())
        assert atol > 0, name
        torch.testing.assert_close(found[name], values, rtol=rtol, atol=atol)


@pytest.mark.parametrize("folder", FOLDERS)
def test_experts_of_every_architecture(folder):
    kinds = experts_classes(folder)
    assert kinds
    for kind in kinds:
        assert_trains_as_by_peft(folder, built(folder, kind))


def test_architectures_are_found():
    assert len(FOLDERS) >= 50


@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
def test_experts_that_compute_in_float32_are_left_where_that_is_more_accurate(implementation):
    folder = "openai_privacy_filter"
    model = adapted(built(folder, experts_classes(folder)[0]), torch.Generator().manual_seed(0))
    model.base_model.model.experts.get_base_layer().config._experts_implementation = implementation
    report = autolora.accelerate(model.to(torch.bfloat16))
    reasons = {reason for _, reason in report.left}
    own = {"experts whose own code computes in float32"} if implementation == "eager" else set()
    assert reasons == own
