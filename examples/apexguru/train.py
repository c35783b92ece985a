"""Train the example checkpoint from nothing and write it in Hugging Face layout.

Needs the `train` extra. Two CPU cores are enough; the run can be stopped and started again. Which rule a line breaks
is taught directly: small extra heads, dropped at export, read it off the last token of every line. From the answer
alone (two or three findings a class) the same model learns many times slower.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812  (its usual name)
from export import export
from generator import HELDOUT_SEEDS, MAX_FINDINGS, MAX_LINES, RULES, TRAINING_SEEDS, Example, sample
from prompts import END_OF_TEXT, IM_END, IM_START, prompt, token_id
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model

VOCABULARY = 2048
CONTEXT_TOKENS = 2048
BLOCKS = ("file", "class", "method", "if", "try", "loop")
COUNTS = MAX_FINDINGS + 1
LOOK_UP = 6  # the layer, counted from 0, whose first head finds the line that an entry of the answer is about

# As in Llama 3's tokenizer.json: engines know this split by name.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# ---------------------------------------------------------------------------------------------------------------------
# Tokenizer and model


def build_tokenizer(examples: list[Example]) -> Tokenizer:
    """A lossless byte-level BPE fitted to the dialect, with every number from 1 to 99 as one token."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [prompt(example) + example.answer for example in examples]
    numbers = " ; ".join(str(number) for number in range(1, 100))
    tokenizer.train_from_iterator([*texts, *[numbers] * len(examples)], trainer)
    missing = [n for n in range(1, 100) if tokenizer.token_to_id(str(n)) is None]
    if missing:
        raise SystemExit(f"numbers without a token of their own: {missing}; train the tokenizer on more text")
    return tokenizer


def model_config() -> Qwen2Config:
    """About 3.7 million parameters: with bf16 weights and the tokenizer, under 8 MB."""
    return Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=None,
        use_cache=False,
    )


def line_heads(width: int) -> nn.ModuleDict:
    """What holds at the end of each line, read off hidden states; see line_loss."""
    sizes = {
        "block": len(BLOCKS),
        "depth": 4,
        "rules": len(RULES),
        "before": COUNTS,
        "after": COUNTS,
        "number": MAX_LINES + 1,
    }
    return nn.ModuleDict({kind: nn.Linear(width, size) for kind, size in sizes.items()})


def line_loss(heads: nn.ModuleDict, layers: tuple[Tensor, ...], batch: Batch) -> Tensor:
    """Loss of the line labels, each read off the layer that should know it by then; *layers* start at the embedding.

    The counts of findings make the answer a look-up: its n-th entry is written by the line with the n-th finding. The
    tokens of that entry are labelled with the same counts, so that question and line look alike to the layers above.
    """
    width = (layers[0].shape[-1],)
    low, middle, top = (
        F.rms_norm(layers[at][batch.line_rows, batch.line_columns].float(), width) for at in (3, 4, LOOK_UP)
    )
    high = F.rms_norm(layers[LOOK_UP][batch.count_rows, batch.count_columns].float(), width)
    rules = F.binary_cross_entropy_with_logits(heads["rules"](middle), batch.line_rules, reduction="none")
    return (
        0.5 * F.cross_entropy(heads["block"](low), batch.line_blocks)
        + F.cross_entropy(heads["depth"](low), batch.line_depths)
        + 2.0 * rules.sum(-1).mean()
        + 0.5 * F.cross_entropy(heads["number"](top), batch.line_numbers)
        + 0.5 * F.cross_entropy(heads["before"](high), batch.befores)
        + 0.5 * F.cross_entropy(heads["after"](high), batch.afters)
    )


def look_up_loss(model: Qwen2Model, hidden: Tensor, batch: Batch) -> Tensor:
    """Loss of where one head of layer `LOOK_UP` looks: from a token that is followed by a rule or a line number in the
    answer, to the number token of the line meant. *hidden* is what the layer reads.

    With the look-up taught, what is left to learn is to copy what is found there.
    """
    layer = model.layers[LOOK_UP]
    attention = layer.self_attn
    read = layer.input_layernorm(hidden)
    size = attention.head_dim
    cos, sin = (part[0].float() for part in model.rotary_emb(hidden, torch.arange(hidden.shape[1])[None]))
    keys = attention.k_proj(read)[..., :size].float()
    asked = attention.q_proj(read[batch.pointer_rows, batch.pointer_columns])[..., :size].float()
    keys = keys * cos + turned(keys) * sin
    asked = asked * cos[batch.pointer_columns] + turned(asked) * sin[batch.pointer_columns]
    scores = torch.einsum("nd,ntd->nt", asked, keys[batch.pointer_rows]) / math.sqrt(size)
    later = torch.arange(scores.shape[1]) > batch.pointer_columns[:, None]
    return F.cross_entropy(scores.masked_fill(later, -math.inf), batch.pointer_targets)


def turned(vectors: Tensor) -> Tensor:
    """*vectors* as the second term of the rotation by position takes them."""
    first, second = vectors.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


# ---------------------------------------------------------------------------------------------------------------------
# Data


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as token ids, and its labels for every line."""

    ids: list[int]
    prompt_tokens: int
    line_ends: list[int]  # position of each line's last token, its number
    rules: list[list[float]]
    blocks: list[int]
    depths: list[int]
    counted: list[tuple[int, int, int]]  # line ends and answer tokens: position, findings before, findings after
    pointers: list[tuple[int, int]]  # position before a rule or line number of the answer, position of its line's end


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded examples of like length, and the lines in them as flat lists."""

    ids: Tensor
    answer_rows: Tensor
    answer_columns: Tensor  # position that predicts the token
    answer_ids: Tensor
    line_rows: Tensor
    line_columns: Tensor
    line_rules: Tensor
    line_blocks: Tensor
    line_depths: Tensor
    line_numbers: Tensor
    pointer_rows: Tensor
    pointer_columns: Tensor
    pointer_targets: Tensor
    count_rows: Tensor
    count_columns: Tensor
    befores: Tensor
    afters: Tensor


def encode(tokenizer: Tokenizer, examples: list[Example]) -> list[Encoded]:
    """Token ids and line labels of *examples*."""
    newlines = {i for token, i in tokenizer.get_vocab().items() if token.endswith("Ċ")}
    end = token_id(tokenizer, IM_END)
    prompts = tokenizer.encode_batch([prompt(example) for example in examples], add_special_tokens=False)
    answers = tokenizer.encode_batch([example.answer for example in examples], add_special_tokens=False)
    encoded = []
    for example, before, after in zip(examples, prompts, answers, strict=True):
        last = before.ids.index(end)
        breaks = [*[at for at, token in enumerate(before.ids[:last]) if token in newlines][1:], last]
        ends = [at - 1 for at in breaks]
        if [before.tokens[at] for at in ends] != [str(number) for number in range(1, len(example.notes) + 1)]:
            raise AssertionError(f"seed {example.seed}: the lines do not end in their numbers")
        counted, so_far = [], 0
        for at, note in zip(ends, example.notes, strict=True):
            counted.append((at, so_far, so_far + len(note.rules)))
            so_far += len(note.rules)
        entry, pointers = 0, []
        for at, token in enumerate(after.tokens, len(before.ids)):
            entry += "{" in token
            counted.append((at, max(0, entry - 1), entry))
            if token in RULES or token.isdigit():
                pointers.append((at - 1, ends[example.findings[entry - 1].line - 1]))
        if len(pointers) != 2 * len(example.findings):
            raise AssertionError(f"seed {example.seed}: a rule or a number of {example.answer} is not one token")
        encoded.append(
            Encoded(
                ids=[*before.ids, *after.ids, end],
                prompt_tokens=len(before.ids),
                line_ends=ends,
                rules=[[float(rule in note.rules) for rule in RULES] for note in example.notes],
                blocks=[BLOCKS.index(note.block) for note in example.notes],
                depths=[note.loop_depth for note in example.notes],
                counted=counted,
                pointers=pointers,
            )
        )
    return encoded


def collate(items: list[Encoded]) -> Batch:
    """*items* as one batch; padding is to the right, where a causal reader never looks."""
    longest = max(len(item.ids) for item in items)
    answers = [(row, at) for row, item in enumerate(items) for at in range(item.prompt_tokens, len(item.ids))]
    lines = [(row, at) for row, item in enumerate(items) for at in item.line_ends]
    counted = [(row, *entry) for row, item in enumerate(items) for entry in item.counted]
    pointers = [(row, *pair) for row, item in enumerate(items) for pair in item.pointers]
    return Batch(
        ids=torch.tensor([item.ids + [0] * (longest - len(item.ids)) for item in items]),
        answer_rows=torch.tensor([row for row, _ in answers]),
        answer_columns=torch.tensor([at - 1 for _, at in answers]),
        answer_ids=torch.tensor([items[row].ids[at] for row, at in answers]),
        line_rows=torch.tensor([row for row, _ in lines]),
        line_columns=torch.tensor([at for _, at in lines]),
        line_rules=torch.tensor([rules for item in items for rules in item.rules]),
        line_blocks=torch.tensor([block for item in items for block in item.blocks]),
        line_depths=torch.tensor([depth for item in items for depth in item.depths]),
        line_numbers=torch.tensor([number for item in items for number in range(1, len(item.line_ends) + 1)]),
        pointer_rows=torch.tensor([row for row, _, _ in pointers]),
        pointer_columns=torch.tensor([at for _, at, _ in pointers]),
        pointer_targets=torch.tensor([target for _, _, target in pointers]),
        count_rows=torch.tensor([row for row, _, _, _ in counted]),
        count_columns=torch.tensor([at for _, at, _, _ in counted]),
        befores=torch.tensor([before for _, _, before, _ in counted]),
        afters=torch.tensor([after for _, _, _, after in counted]),
    )


def digest(source: str) -> bytes:
    return hashlib.sha256(source.encode()).digest()


def batches(tokenizer: Tokenizer, first_seed: int, tokens: int, heldout: set[bytes]) -> Iterator[tuple[int, Batch]]:
    """Batches of about *tokens* tokens without end, each with the seed to go on from after its pool.

    Classes are never repeated, and one that equals a held-out class is left out.
    """
    pool_size = 2048
    for start in range(first_seed, TRAINING_SEEDS.stop, pool_size):
        drawn = (sample(seed) for seed in range(start, start + pool_size))
        pool = encode(tokenizer, [example for example in drawn if digest(example.source) not in heldout])
        rng = random.Random(start)
        pool.sort(key=lambda item: (len(item.ids), rng.random()))
        groups: list[list[Encoded]] = [[]]
        for item in pool:
            if (len(groups[-1]) + 1) * len(item.ids) > tokens:
                groups.append([])
            groups[-1].append(item)
        rng.shuffle(groups)
        for group in groups:
            yield start + pool_size, collate(group)


# ---------------------------------------------------------------------------------------------------------------------
# Training


def losses(model: Qwen2ForCausalLM, heads: nn.ModuleDict, batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss of the answer and of the line labels."""
    with torch.autocast("cpu", torch.bfloat16):
        out = model.model(input_ids=batch.ids, output_hidden_states=True, use_cache=False)
    last = out.last_hidden_state[batch.answer_rows, batch.answer_columns].float()
    answer = F.cross_entropy(model.lm_head(last), batch.answer_ids)
    lines = line_loss(heads, out.hidden_states, batch)
    if len(batch.pointer_rows):
        lines = lines + look_up_loss(model.model, out.hidden_states[LOOK_UP].float(), batch)
    return answer, lines


def exact_share(model: Qwen2ForCausalLM, items: list[Encoded]) -> float:
    """Share of *items* whose whole answer is the likeliest token at each step: what greedy decoding would give."""
    right = 0
    for at in range(0, len(items), 32):
        group = items[at : at + 32]
        batch = collate(group)
        with torch.no_grad():
            hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
            guesses = model.lm_head(hidden[batch.answer_rows, batch.answer_columns]).argmax(-1)
        right += len(group) - len(set(batch.answer_rows[guesses != batch.answer_ids].tolist()))
    return right / len(items)


def rate(step: int, steps: int, warm_up: int = 100) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to one hundredth."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def train(args: argparse.Namespace) -> None:
    """Train for `--steps` steps, resuming from the work folder's state, and export."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    tokenizer_file, state_file = work / "tokenizer.json", work / "state.pt"
    if not tokenizer_file.exists():
        first = [sample(seed) for seed in range(TRAINING_SEEDS.start, TRAINING_SEEDS.start + 10_000)]
        build_tokenizer(first).save(str(tokenizer_file))
    tokenizer = Tokenizer.from_file(str(tokenizer_file))

    model = Qwen2ForCausalLM(model_config())
    heads = line_heads(model.config.hidden_size)
    matrices = [p for name, p in model.model.layers.named_parameters() if p.ndim == 2]
    ids = {id(p) for p in matrices}
    others = [p for p in (*model.parameters(), *heads.parameters()) if id(p) not in ids]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=args.muon_rate, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=args.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    peaks = (args.muon_rate, args.adam_rate)

    step, seed, spent_s = 0, TRAINING_SEEDS.start, 0.0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, seed, spent_s = state["step"], state["seed"], state["spent_s"]
        print(f"resuming at step {step}", flush=True)

    heldout = [sample(number) for number in HELDOUT_SEEDS]
    # The last thousand seeds watch the training; evaluate.py measures from the first on.
    watched = encode(tokenizer, heldout[-500:])
    stream = batches(tokenizer, seed, args.batch_tokens, {digest(example.source) for example in heldout})
    began, answers, lines = time.monotonic(), 0.0, 0.0
    while step < args.steps:
        next_seed, batch = next(stream)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * rate(step, args.steps)
            optimizer.zero_grad()
        answer, line = losses(model, heads, batch)
        torch.autograd.backward(answer + line)
        nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        answers, lines = answers + answer.item(), lines + line.item()
        if step % 25 == 0:
            seconds = spent_s + time.monotonic() - began
            print(f"step {step} answer {answers / 25:.4f} lines {lines / 25:.4f} {seconds:.0f} s", flush=True)
            answers = lines = 0.0
        if step % args.every == 0 or step == args.steps:
            seconds = spent_s + time.monotonic() - began
            share = exact_share(model, watched)
            print(f"step {step} exact {share:.3f} of {len(watched)}, {seconds:.0f} s", flush=True)
            state = {
                "model": model.state_dict(),
                "heads": heads.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                "step": step,
                "seed": next_seed,
                "spent_s": seconds,
            }
            torch.save(state, work / "state.tmp")
            (work / "state.tmp").replace(state_file)
    export(model, tokenizer, args.out)


def main() -> None:
    """Train the example model."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    here = Path(__file__).parent
    parser.add_argument("--work", type=Path, default=Path("build/apexguru"), help="state to resume from")
    parser.add_argument("--out", type=Path, default=here / "checkpoint", help="replaced by the checkpoint")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--every", type=int, default=200, help="steps between measuring and saving the state")
    parser.add_argument("--batch-tokens", type=int, default=6144)
    parser.add_argument("--muon-rate", type=float, default=0.02)
    parser.add_argument("--adam-rate", type=float, default=0.003)
    parser.add_argument("--seed", type=int, default=1, help="of the initial weights")
    parser.add_argument("--threads", type=int, default=2)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
