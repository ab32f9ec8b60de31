"""Small models, text and trainers, for callbacks."""

import random

import peft
import torch
from small_llama import SIZES
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

WORDS = ["<pad>", "<eos>", "<unk>"] + [f"w{number}" for number in range(61)]


def llama(adapted=True):
    """A small Llama in float32, the same each time, with adapters on all its linear layers."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, pad_token_id=0, eos_token_id=1))
    config = peft.LoraConfig(target_modules="all-linear", init_lora_weights=False)
    return peft.get_peft_model(model, config) if adapted else model


def rows(number=32, length=24):
    """Random token ids."""
    drawn = torch.Generator().manual_seed(1)
    made = [
        torch.randint(3, SIZES["vocab_size"], (length,), generator=drawn) for _ in range(number)
    ]
    return [{"input_ids": each, "labels": each} for each in made]


def settings(folder, **more):
    """The arguments of a trainer of any kind."""
    return {
        "output_dir": str(folder),
        "max_steps": 8,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        **more,
    }


def trainer(model, folder, callbacks, **more):
    """A Trainer of a small Llama."""
    arguments = TrainingArguments(**settings(folder, **more))
    return Trainer(
        model, arguments, train_dataset=rows(), eval_dataset=rows(4), callbacks=callbacks
    )


def losses(made):
    """The loss of every step."""
    return [entry["loss"] for entry in made.state.log_history if "loss" in entry]


def tokenizer():
    """Of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = {word: number for number, word in enumerate(WORDS)}
    made = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def trl_trainer(kind, folder, callbacks):
    """A trainer of TRL's on random sentences: ``sft``, ``packed``, ``dpo`` or ``grpo``."""
    import trl
    from datasets import Dataset

    drawn = random.Random(0)

    def sentences(least, most):
        counts = [drawn.randint(least, most) for _ in range(32)]
        return [" ".join(drawn.choices(WORDS[3:], k=count)) for count in counts]

    common = settings(folder)
    if kind in ("sft", "packed"):
        data = {"text": sentences(8, 20)}
        arguments = trl.SFTConfig(**common, max_length=32, packing=kind == "packed")
        make, more = trl.SFTTrainer, {}
    elif kind == "dpo":
        data = {name: sentences(8, 8) for name in ("prompt", "chosen", "rejected")}
        make, arguments, more = trl.DPOTrainer, trl.DPOConfig(**common, max_length=32), {}
    else:
        data = {"prompt": sentences(6, 6)}
        arguments = trl.GRPOConfig(**common, max_completion_length=6, num_generations=2)
        make, more = (
            trl.GRPOTrainer,
            {"reward_funcs": lambda completions, **_: lengths(completions)},
        )
    return make(
        llama(adapted=False),
        args=arguments,
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer(),
        peft_config=peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=callbacks,
        **more,
    )


def lengths(texts):
    """A reward: the number of characters."""
    return [float(len(text)) for text in texts]
