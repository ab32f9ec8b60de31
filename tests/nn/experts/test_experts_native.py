"""LoRAExperts: what PEFT's wrappers of stacked weights compute, and their files, without PEFT."""

import copy
import pickle

import peft
import pytest
import torch
from peft_models import BF16, autocast_to, batch, gradients
from safetensors.torch import load_file, save_file
from small_mixture import GRAPHS, WEIGHTS, experts_along, mixture
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import autolora
from autolora import AutoloraError, LoRAExperts, LoRALinear
from autolora.graphs.kinds import reference_graph
from autolora.nn.choosing import pin
from autolora.problem import Experts

KINDS = ("qwen3_moe", "mixtral", "gpt_oss")
PREFIX = "base_model.model."


def bare(theirs):
    """A copy of PEFT's model without its adapters."""
    return copy.deepcopy(theirs).unload()


def adapters(theirs):
    """PEFT's state dict, with the names of ours."""
    found = peft.get_peft_model_state_dict(theirs)
    return {name.removeprefix(PREFIX): weight for name, weight in found.items()}


def load(ours, weights):
    missing, unexpected = ours.load_state_dict(weights, strict=False)
    assert not unexpected
    assert not [name for name in missing if "lora_" in name]


def native(theirs, weights=WEIGHTS, **options):
    """Our model with the weights of PEFT's."""
    names = ["q_proj", *(f"experts.{name}" for name in weights)]
    given = {"rank": 3, "alpha": 6, "target_modules": names, **options}
    ours = autolora.add_lora(bare(theirs), **given)
    load(ours, adapters(theirs))
    return ours.train()


def along(model, name):
    """Pins experts to a graph, or to PEFT's, and all other layers to PEFT's."""
    choose = reference_graph if name == "reference" else experts_along(name)
    pin(model, lambda p: choose(p) if isinstance(p, Experts) else reference_graph(p))
    return model


def wrappers(model):
    return [module for module in model.modules() if isinstance(module, LoRAExperts)]


def fast_calls(model):
    """How many calls of experts' weights ran along a graph."""
    choices = [c for each in wrappers(model) for c in each._autolora.choices.values()]
    return sum(c.calls for c in choices if c.executable is not None)


def reasons(model):
    return {reason for _, reason in autolora.explain(model).left}


def assert_same_step(ours, theirs, tolerance, autocast=None):
    """The same loss, and the same gradient of every trained parameter."""
    loss, found = gradients(ours, autocast)
    expected_loss, expected = gradients(theirs, autocast)
    torch.testing.assert_close(loss, expected_loss, rtol=tolerance, atol=tolerance)
    plain = {
        name.removeprefix(PREFIX).replace(".default", ""): grad for name, grad in expected.items()
    }
    assert found.keys() == plain.keys()
    whole = torch.cat([grad.flatten().float() for grad in plain.values()]).norm()
    for name, grad in found.items():
        assert grad.dtype == plain[name].dtype
        error, norm = (grad - plain[name]).double().norm(), plain[name].double().norm()
        assert error <= tolerance * max(norm, whole / 50), name


# ---- layout and files


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", [WEIGHTS, WEIGHTS[:1], WEIGHTS[1:]])
def test_names_and_shapes_are_pefts(kind, weights):
    theirs = mixture(kind, weights=weights)
    names = ["q_proj", *weights[::-1]]  # whose order does not matter
    ours = autolora.add_lora(bare(theirs), rank=3, target_modules=names)
    found = {name: w.shape for name, w in ours.state_dict().items() if "lora_" in name}
    assert found == {name: w.shape for name, w in adapters(theirs).items()}
    trained = {name for name, p in ours.named_parameters() if p.requires_grad}
    assert trained == found.keys()


def test_what_a_wrapper_is():
    base = bare(mixture("gpt_oss"))
    experts = base.model.layers[0].mlp.experts.eval()
    inner = LoRAExperts(experts, "gate_up_proj", 4, alpha=8, use_rslora=True)
    outer = LoRAExperts(inner, "down_proj", 2, alpha=8, adapter_dtype=torch.float32)
    assert outer.base_layer is inner
    assert inner.base_layer is experts
    assert (inner.in_features, inner.out_features) == (32, 32)
    assert (outer.in_features, outer.out_features) == (16, 32)
    assert (inner.scaling, outer.scaling, outer.num_experts) == (4.0, 4.0, 4)
    assert not outer.training
    assert not any(p.requires_grad for p in experts.parameters())
    assert all(p.requires_grad for each in (inner, outer) for p in each.lora_A.parameters())
    assert inner.lora_A.weight.dtype == torch.float64
    assert outer.lora_A.weight.dtype == torch.float32
    limit = inner.in_features**-0.5  # of the uniform distribution that torch.nn.Linear begins with
    assert limit / 2 < inner.lora_A.weight.abs().max() <= limit
    assert not inner.lora_B.weight.any()
    assert repr(outer).startswith("LoRAExperts(\n  parameter_name='down_proj', rank=2, alpha=8")


def test_new_adapters_change_nothing():
    base = bare(mixture("qwen3_moe"))
    expected = base(**batch()).logits
    ours = autolora.add_lora(base, rank=2)
    torch.testing.assert_close(ours(**batch()).logits, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_peft_load_by_their_names(kind, tmp_path):
    theirs = mixture(kind)
    theirs.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    names = ["q_proj", *WEIGHTS]
    ours = autolora.add_lora(bare(theirs), rank=3, alpha=6, target_modules=names)
    load(ours, {name.removeprefix(PREFIX): weight for name, weight in saved.items()})
    torch.testing.assert_close(ours.train()(**batch()).logits, theirs(**batch()).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_our_adapters(kind, tmp_path):
    theirs = mixture(kind)
    ours = native(theirs)
    for parameter in ours.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    saved = {name: w for name, w in ours.state_dict().items() if "lora_" in name}
    theirs.peft_config["default"].save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({f"{PREFIX}{name}": weight for name, weight in saved.items()}, file)
    again = peft.PeftModel.from_pretrained(bare(theirs), tmp_path, autocast_adapter_dtype=False)
    torch.testing.assert_close(again.train()(**batch()).logits, ours(**batch()).logits)


# ---- numbers


@pytest.mark.parametrize("graph", [*GRAPHS, "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_equal_pefts(kind, graph):
    theirs = mixture(kind)
    ours = along(native(theirs), GRAPHS.get(graph, graph))
    for model in (ours, theirs):
        model.get_input_embeddings().requires_grad_(True)  # behind all gradients of X
    assert_same_step(ours, theirs, 1e-9)
    assert fast_calls(ours) == (0 if graph == "reference" else 4)


@pytest.mark.parametrize("autocast", [None, BF16])
@pytest.mark.parametrize(
    ("dtype", "adapters32"), [(torch.float32, False), (BF16, False), (BF16, True)]
)
@pytest.mark.parametrize("graph", ["mixed", "reference"])
def test_grouped_products(dtype, adapters32, autocast, graph):
    theirs = mixture("qwen3_moe", dtype, "grouped_mm", adapter_dtype32=adapters32)
    ours = native(theirs, adapter_dtype=torch.float32 if adapters32 else None)
    along(ours, GRAPHS.get(graph, graph))
    assert_same_step(
        ours, theirs, 1e-4 if dtype == torch.float32 and not autocast else 8e-2, autocast
    )
    assert fast_calls(ours) == (0 if graph == "reference" else 4)
    assert reasons(ours) == set()


@pytest.mark.parametrize("weights", [WEIGHTS[:1], WEIGHTS[1:]])
@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
def test_one_of_the_weights(weights, implementation):
    theirs = mixture("qwen3_moe", torch.float64, implementation, weights)
    ours = along(native(theirs, weights), GRAPHS["merged"])
    assert_same_step(ours, theirs, 1e-9)
    assert fast_calls(ours) == 2


@pytest.mark.parametrize("graph", ["loop", "reference"])
def test_three_steps_of_training(graph):
    theirs = mixture("qwen3_moe", use_rslora=True)
    ours = along(native(theirs, use_rslora=True), GRAPHS.get(graph, graph))
    losses = []
    for model in (ours, theirs):
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        losses.append([])
        for seed in range(3):
            loss = model(**batch(seed)).loss
            losses[-1].append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)
    for name, weight in adapters(theirs).items():
        torch.testing.assert_close(ours.state_dict()[name], weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    theirs = mixture("qwen3_moe")
    ours = along(native(theirs), GRAPHS["loop"])
    for model in (ours, theirs):
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_same_step(ours, theirs, 1e-9)
    assert fast_calls(ours) == 8


def test_the_fallback_merges_once():
    theirs = mixture("qwen3_moe")
    ours = along(native(theirs), "reference")
    counts = []
    for model in (ours, theirs):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**batch())
        counts.append(counter.get_flop_counts()["Global"][torch.ops.aten.baddbmm])
    assert counts[0] * 2 == counts[1]  # torch checks each parametrisation of PEFT's by a call


# ---- when there is no graph


def test_calls_without_graphs_say_why():
    theirs = mixture("qwen3_moe")
    ours = along(native(theirs), GRAPHS["loop"])
    first = wrappers(ours)[0]
    seen = []
    hooked = {
        "on the module": first.base_layer.base_layer,
        "on the inner wrapper": first.base_layer,
        "on a factor": first.lora_A,
    }
    for module in hooked.values():
        hook = module.register_forward_hook(lambda module, *_: seen.append(module))
        assert_same_step(ours, theirs, 1e-9)
        hook.remove()
    assert seen == [first.base_layer.base_layer, first.base_layer]  # a factor is never called
    assert "hooks on its parts" in reasons(ours)
    first.base_layer.base_layer.down_proj.requires_grad_(True)
    loss, found = gradients(ours)
    assert found.pop("model.layers.0.mlp.experts.base_layer.base_layer.down_proj").any()
    torch.testing.assert_close(loss, gradients(theirs)[0])
    assert "the base layer is trained too" in reasons(ours)


def test_a_hook_on_the_outer_wrapper_keeps_its_graphs():
    ours = along(native(mixture("qwen3_moe")), GRAPHS["loop"])
    called = []
    wrappers(ours)[0].register_forward_hook(lambda *_: called.append(1))
    ours(**batch())
    assert called == [1]
    assert fast_calls(ours) == 4


def test_transforms_and_exports_use_merged_weights():
    ours = along(native(mixture("qwen3_moe", implementation="batched_mm")), GRAPHS["loop"])
    layer = wrappers(ours)[0]
    x = torch.randn(5, 32, dtype=torch.float64)
    ids = torch.tensor([[0, 1], [1, 2], [3, 0], [2, 3], [1, 0]])
    weights = torch.rand(5, 2, dtype=torch.float64)
    expected = layer(x, ids, weights)
    plain = layer._plain_forward(x, ids, weights)
    torch.testing.assert_close(expected, plain)
    before = fast_calls(ours)
    tangent = torch.randn_like(x)
    Y, slope = torch.func.jvp(lambda x: layer(x, ids, weights), (x,), (tangent,))
    torch.testing.assert_close(Y, expected)
    step = 1e-6 * tangent
    nearby = (layer(x + step, ids, weights) - layer(x - step, ids, weights)) / 2e-6
    torch.testing.assert_close(slope, nearby, rtol=1e-5, atol=1e-7)
    exported = torch.export.export(layer, (x, ids, weights)).module()
    torch.testing.assert_close(exported(x, ids, weights), expected)
    assert fast_calls(ours) == before + 4  # those of nearby inputs


def test_compiled_experts_use_merged_weights():
    theirs = mixture("qwen3_moe", torch.float32, "batched_mm")
    ours = native(theirs)
    layer = wrappers(ours)[0]
    x, ids = torch.randn(5, 32), torch.tensor([[0, 1], [1, 2], [3, 0], [2, 3], [1, 0]])
    weights = torch.rand(5, 2)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, ids, weights), layer._plain_forward(x, ids, weights))
    assert fast_calls(ours) == 0
    left = {reason for _, reason in autolora.explain(ours).left}
    assert left == {"compiled: there are no graphs for compiled experts"}


def test_no_tokens_and_other_arguments():
    layer = wrappers(native(mixture("qwen3_moe")))[0]
    none = torch.zeros(0, 2, dtype=torch.long)
    empty = torch.zeros(0, 32, dtype=torch.float64)
    assert layer(empty, none, empty[:, :2]).shape == (0, 32)
    with pytest.raises(TypeError):
        layer(empty)


# ---- copies


def test_copies_and_pickles_compute_the_same():
    ours = along(native(mixture("gpt_oss")), GRAPHS["loop"])
    expected = ours(**batch()).logits
    for again in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert not wrappers(again)[0]._autolora.choices
        torch.testing.assert_close(again(**batch()).logits, expected)


def test_experts_in_two_places_stay_one_module():
    model = bare(mixture("qwen3_moe"))
    model.twin = model.model.layers[0].mlp.experts
    autolora.add_lora(model, rank=2)
    assert isinstance(model.twin, LoRAExperts)
    assert model.twin is model.model.layers[0].mlp.experts


# ---- what gets adapters

EXPERTS = "model.layers.{}.mlp.experts"


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        (
            "all-linear",
            [(0, "gate_up_proj"), (0, "down_proj"), (1, "gate_up_proj"), (1, "down_proj")],
        ),
        (["q_proj"], []),
        (["experts.gate_up_proj"], [(0, "gate_up_proj"), (1, "gate_up_proj")]),
        (["down_proj"], [(0, "down_proj"), (1, "down_proj")]),
        (["q_proj", "1.mlp.experts.down_proj"], [(1, "down_proj")]),
        (r".*\.0\.mlp\.experts\..*", [(0, "gate_up_proj"), (0, "down_proj")]),
        (r".*\.1\..*(q_proj|down_proj)", [(1, "down_proj")]),
        (r".*\.q_proj", []),
    ],
)
def test_targets(targets, adapted):
    model = autolora.add_lora(bare(mixture("qwen3_moe")), rank=2, target_modules=targets)
    found = [
        (number, each.parameter_name)
        for number, layer in enumerate(model.model.layers)
        for each in wrappers(layer)[::-1]
    ]
    assert found == adapted
    linear = [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    assert not any("experts" in name for name in linear)
    if targets == "all-linear":
        assert len(linear) == 8  # q, k, v and o of both layers


@pytest.mark.parametrize(
    ("options", "lack"), [({"dropout": 0.1}, "dropout"), ({"lora_bias": True}, "bias")]
)
def test_a_dropout_or_bias_leaves_experts_out(options, lack, warnings):
    model = autolora.add_lora(bare(mixture("qwen3_moe")), rank=2, **options)
    assert not wrappers(model)
    (warning,) = warnings()
    assert warning == (
        "autolora: 4 stacked weights of experts (model.layers.0.mlp.experts.gate_up_proj, …) get "
        f"no adapters, since adapters on these have no {lack}, as in PEFT; leave out the {lack} "
        "to adapt them as well"
    )


def test_experts_have_ranks_and_alphas_by_patterns():
    model = autolora.add_lora(
        bare(mixture("qwen3_moe")),
        rank=2,
        alpha=4,
        rank_pattern={"experts.gate_up_proj": 3},
        alpha_pattern={"^model.layers.0.mlp.experts.down_proj": 1},
    )
    found = [(each.parameter_name, each.rank, each.alpha) for each in wrappers(model)]
    inner = ("gate_up_proj", 3, 4)
    assert found == [("down_proj", 2, 1), inner, ("down_proj", 2, 4), inner]


@pytest.mark.parametrize("targets", [["q_proj", "experts.down_proj"], r".*_proj"])
def test_a_dropout_on_named_experts_is_an_error(targets):
    model = bare(mixture("qwen3_moe")).requires_grad_(True)
    with pytest.raises(
        AutoloraError, match=r"include model\.layers\.0\.mlp\.experts\..*no dropout"
    ):
        autolora.add_lora(model, rank=2, dropout=0.1, target_modules=targets)
    assert not wrappers(model)
    assert all(p.requires_grad for p in model.parameters())


def test_bad_arguments_are_named():
    model = bare(mixture("qwen3_moe"))
    experts = model.model.layers[0].mlp.experts
    with pytest.raises(AutoloraError, match="a Linear does not follow the experts interface"):
        LoRAExperts(nn.Linear(2, 2), "weight", 2, alpha=2)
    with pytest.raises(
        AutoloraError, match="'up_proj' of Qwen3MoeExperts; one of: gate_up_proj, d"
    ):
        LoRAExperts(experts, "up_proj", 2, alpha=2)
    with pytest.raises(AutoloraError, match="down_proj of this Qwen3MoeExperts has an adapter"):
        LoRAExperts(LoRAExperts(experts, "down_proj", 2, alpha=2), "down_proj", 2, alpha=2)
    with pytest.raises(AutoloraError, match="rank must be a whole number"):
        LoRAExperts(experts, "down_proj", 0, alpha=2)
    with pytest.raises(AutoloraError, match="objective"):
        LoRAExperts(experts, "down_proj", 2, alpha=2, objective="speed")
    with pytest.raises(AutoloraError, match=r"it has .*gate_up_proj, down_proj"):
        autolora.add_lora(model, rank=2, target_modules=["w1"])
    with pytest.raises(
        AutoloraError, match=r"itself a module of experts; use autolora\.LoRAExperts"
    ):
        autolora.add_lora(experts, rank=2)
    with pytest.warns(UserWarning, match="rank 17 is larger than an expert of 16→32"):
        LoRAExperts(experts, "down_proj", 17, alpha=2)
    experts.down_proj = nn.Parameter(experts.down_proj.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(AutoloraError, match=r"one of: gate_up_proj$"):
        LoRAExperts(experts, "down_proj", 2, alpha=2)


def test_a_second_call_leaves_adapted_experts_alone():
    model = autolora.add_lora(bare(mixture("qwen3_moe")), rank=2, target_modules=["down_proj"])
    autolora.add_lora(model, rank=2, target_modules=["q_proj", "down_proj"])
    assert len(wrappers(model)) == 2


# ---- tuning, recording, freezing


def test_a_model_is_tuned_explained_and_frozen(path):
    ours = native(mixture("qwen3_moe", torch.float32, "grouped_mm"))
    result = autolora.tune(ours, tokens=18, effort="quick", cache=path)
    tuned = [record.problem for record in result.records]
    assert {p.load for p in tuned if isinstance(p, Experts)} == {"uniform", "skewed"}
    with autolora.strict():
        ours(**batch()).loss.backward()
    explained = [e for e in autolora.explain(ours).layers if isinstance(e.problem, Experts)]
    assert {e.name for e in explained} == {
        f"{EXPERTS.format(n)}{inner}" for n in range(2) for inner in ("", ".base_layer")
    }
    assert {(e.reason, e.calls) for e in explained} == {("exact", 1)}
    ahead = autolora.explain(ours, tokens=18).layers
    assert {e.problem for e in ahead if isinstance(e.problem, Experts)} <= set(tuned)
    report = autolora.freeze(ours)
    assert report.layers == 6
    assert report.fitting == len(tuned)
    path.unlink()
    ours(**batch()).loss.backward()
    frozen = [e for e in autolora.explain(ours).layers if isinstance(e.problem, Experts)]
    assert {(e.reason, e.detail.split(";")[0]) for e in frozen} == {("exact", "frozen")}


def test_a_miss_is_an_error_in_strict_mode():
    ours = native(mixture("qwen3_moe", torch.float32, "grouped_mm"))
    along(ours, GRAPHS["loop"])
    for each in wrappers(ours):
        pin(each, None)
    with autolora.strict(), pytest.raises(autolora.MissError, match="4 experts"):
        ours(**batch())


def test_a_recording_holds_the_problems_of_a_step():
    ours = native(mixture("qwen3_moe", torch.float32, "grouped_mm"))
    with autolora.record(ours) as problems:
        ours(**batch()).loss.backward()
        with torch.no_grad():
            ours(**batch())
    explained = autolora.explain(ours).layers
    seen = {e.problem for e in explained if isinstance(e.problem, Experts) and e.problem.gradients}
    assert {p for p in problems.calls if isinstance(p, Experts)} == seen
    assert sum(n for p, n in problems.calls.items() if isinstance(p, Experts)) == 4
    assert problems.left == []
    assert problems.untrained == 4  # two of q_proj, and two of all wrappers together
    assert not [hook for each in wrappers(ours) for hook in each._forward_hooks]


def test_layers_that_can_never_run_a_graph_are_listed():
    ours = native(mixture("qwen3_moe", torch.float32, "grouped_mm"))
    ours.set_experts_implementation("deepgemm")
    assert reasons(ours) == {"experts by deepgemm"}


def test_autocast_does_not_narrow_merged_weights():
    theirs = mixture("qwen3_moe", torch.float32, "grouped_mm")
    ours = along(native(theirs), "reference")
    with autocast_to(BF16):
        torch.testing.assert_close(ours(**batch()).logits, theirs(**batch()).logits)


def test_experts_without_a_gate():
    transformers = pytest.importorskip("transformers", minversion="5")
    config = transformers.NemotronHConfig(
        hidden_size=32,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_latent_size=None,
    )
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            config._experts_implementation = "eager"
            self.experts = NemotronHExperts(config).double()
            for parameter in self.experts.parameters():
                nn.init.normal_(parameter, std=0.1)

        def forward(self, x, ids, weights):
            return self.experts(x, ids, weights)

    block = Block()
    names = ["experts.up_proj", "experts.down_proj"]
    lora = peft.LoraConfig(r=3, lora_alpha=6, target_modules=[], target_parameters=names)
    theirs = peft.get_peft_model(copy.deepcopy(block), lora, autocast_adapter_dtype=False)
    ours = autolora.add_lora(block, rank=3, alpha=6)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    load(ours, adapters(theirs))
    along(ours, GRAPHS["loop"])
    x = torch.randn(5, 32, dtype=torch.float64)
    ids = torch.tensor([[0, 1], [1, 2], [3, 0], [2, 3], [1, 0]])
    weights = torch.rand(5, 2, dtype=torch.float64)
    torch.testing.assert_close(ours(x, ids, weights), theirs(x, ids, weights))
    assert fast_calls(ours) == 2
