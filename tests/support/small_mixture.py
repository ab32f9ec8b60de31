"""Small real mixtures of experts with PEFT's adapters on their stacked weights."""

import peft
import pytest
import torch
import transformers
from torch import nn

from autolora.graphs.experts.space import find_graph, structures, uniform

pytest.importorskip("transformers.integrations.moe")  # an older one has experts as layers

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "head_dim": 8,
}
WEIGHTS = ("gate_up_proj", "down_proj")
LOWRANK = "base_first/h=saved/dX=lowrank/dA=via_z/dB=via_h"
GRAPHS = {
    "loop": f"{LOWRANK}/x=loop",
    "mixed": f"{LOWRANK}/x=loop:Y,dX;turned:dA;grouped:h,Z;bmm:Y+,dX+,dB",
    "merged": "merged/h=recomputed/dX=merged/dA=via_z/dB=via_h/x=bmm",
    "merged-loop": "merged/dX=merged/dA=via_p/dB=via_p/x=loop",
}


def config_of(kind, **changes):
    """The configuration of a small ``"qwen3_moe"``, ``"mixtral"`` or ``"gpt_oss"``."""
    sizes = {**SIZES, **changes}
    if kind == "qwen3_moe":
        return transformers.Qwen3MoeConfig(num_experts=4, moe_intermediate_size=16, **sizes)
    if kind == "mixtral":
        return transformers.MixtralConfig(num_local_experts=4, intermediate_size=16, **sizes)
    return transformers.GptOssConfig(num_local_experts=4, intermediate_size=16, **sizes)


def mixture(kind="qwen3_moe", dtype=torch.float64, implementation="eager", weights=WEIGHTS, **lora):
    """A small mixture in training, by PEFT; its lora_B are not zero."""
    torch.default_generator.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_of(kind)).to(dtype)
    for parameter in model.parameters():
        if parameter.dim() == 3:  # stacks are made empty
            nn.init.normal_(parameter, std=0.1)
    model.set_experts_implementation(implementation)
    options = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj"], **lora}
    options["target_parameters"] = [f"experts.{name}" for name in weights]
    adapters32 = options.pop("adapter_dtype32", False)
    config = peft.LoraConfig(**options)
    model = peft.get_peft_model(model, config, autocast_adapter_dtype=adapters32)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.train()


class Holder(nn.Module):
    """A model that is nothing but experts."""

    def __init__(self, experts):
        super().__init__()
        self.experts = experts

    def forward(self, x, ids, weights):
        return self.experts(x, ids, weights)


def experts_along(name):
    """A chooser of that graph for experts, where it is valid, else of a similar one."""

    def choose(problem):
        found = find_graph(name, problem)
        if found is not None:
            return found
        like = [g for g in structures(problem) if g.forward == name.partition("/")[0]]
        return uniform(like[0], problem, "bmm", "loop")

    return choose
