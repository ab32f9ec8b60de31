"""Small real models without adapters, and adapters on them that look trained."""

import peft
import torch
import transformers
from small_llama import SIZES
from small_mixture import config_of
from torch import nn

IDS = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(0))
MIXTURES = ("qwen3_moe", "mixtral", "gpt_oss")


def base(kind="llama", dtype=torch.float32, **changes):
    """A model in eval mode, the same at every call."""
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(**{**SIZES, "attention_bias": True, **changes})
    elif kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
        tokens = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0}
        config = transformers.GPT2Config(**sizes, **tokens, **changes)
    elif kind == "deepseek_v3":  # with a dense block, and a shared expert in the other
        config = transformers.DeepseekV3Config(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            moe_intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
            kv_lora_rank=8,
            q_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=8,
            **changes,
        )
    else:
        config = config_of(kind, **changes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 3:  # stacks are made empty
            nn.init.normal_(parameter, std=0.1)
    return model.to(dtype).eval()


def trained(model):
    """The model, with adapters that are not zero."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def by_peft(model, *, adapter_dtype32=True, **lora):
    """A model with PEFT's adapters."""
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 6, **lora})
    return trained(
        peft.get_peft_model(model, config, autocast_adapter_dtype=adapter_dtype32)
    ).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits
