"""Measure the example checkpoint on held-out classes, offline, greedily, its published weights computed in float32.

Needs the `train` extra. An answer counts only when its text is exactly right.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from generator import HELDOUT_SEEDS, RULES, Example, Finding, messages, parse_answer, sample
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

MAX_ANSWER_TOKENS = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleScore:
    """How one rule's findings were found."""

    rule: str
    precision: float
    recall: float
    findings: int  # in the true answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was measured. *min_margin* is the least gap between the two likeliest tokens of a right answer."""

    n: int
    exact: int
    exact_share: float
    malformed: int
    wrong_seeds: list[int]
    rules: list[RuleScore]
    margin_n: int
    min_margin: float
    margins_below_half: int  # examples whose least gap is under 0.5
    seconds: float


def prompts(tokenizer: PreTrainedTokenizerFast, examples: list[Example]) -> list[str]:
    """The chat template's text for each example, ready for the model to answer."""
    return [
        str(tokenizer.apply_chat_template(messages(example), tokenize=False, add_generation_prompt=True))
        for example in examples
    ]


def answers(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: list[Example], batch_size: int
) -> list[str]:
    """The model's greedy answers, in the order of *examples*. Batches hold like lengths, padded on the left."""
    texts = prompts(tokenizer, examples)
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    found = [""] * len(texts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer([texts[at] for at in chosen], return_tensors="pt", padding=True, add_special_tokens=False)
        out = cast(Any, model).generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=MAX_ANSWER_TOKENS
        )
        written = out[:, batch["input_ids"].shape[1] :]
        for at, text in zip(chosen, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
            found[at] = text
    return found


def margins(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: list[Example]) -> list[float]:
    """For each example the least gap between the two highest logits over the tokens of its answer and their end."""
    gaps = []
    for example, text in zip(examples, prompts(tokenizer, examples), strict=True):
        before = tokenizer(text, add_special_tokens=False)["input_ids"]
        after = tokenizer(example.answer, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model.forward(input_ids=torch.tensor([before + after])).logits[0, len(before) - 1 :]
        top = logits.topk(2, dim=-1).values
        gaps.append(float((top[:, 0] - top[:, 1]).min()))
    return gaps


def score(rule: str, truths: list[tuple[Finding, ...]], guesses: list[tuple[Finding, ...]]) -> RuleScore:
    """Precision and recall of *rule*; each is 1 where there was nothing to get wrong."""
    count: Counter[str] = Counter()
    for truth, guess in zip(truths, guesses, strict=True):
        true, guessed = ({f.line for f in findings if f.rule == rule} for findings in (truth, guess))
        count.update(both=len(true & guessed), true=len(true), guessed=len(guessed))
    return RuleScore(
        rule=rule,
        precision=count["both"] / count["guessed"] if count["guessed"] else 1.0,
        recall=count["both"] / count["true"] if count["true"] else 1.0,
        findings=count["true"],
    )


def evaluate(checkpoint: Path, first: int, n: int, margin_n: int, batch_size: int) -> Report:
    """Review the classes of seeds *first* to *first* + *n* - 1 and compare."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint, local_files_only=True, padding_side="left")
    model = Qwen2ForCausalLM.from_pretrained(checkpoint, local_files_only=True, dtype=torch.float32)
    examples = [sample(seed) for seed in range(first, first + n)]
    began = time.monotonic()
    texts = answers(model, tokenizer, examples, batch_size)
    seconds = time.monotonic() - began

    guesses: list[tuple[Finding, ...]] = []
    malformed = 0
    for text in texts:
        try:
            guesses.append(parse_answer(text))
        except ValueError:
            malformed += 1
            guesses.append(())
    right = [text == example.answer for text, example in zip(texts, examples, strict=True)]
    answered = [example for example, is_right in zip(examples, right, strict=True) if is_right]
    gaps = margins(model, tokenizer, answered[:margin_n])
    truths = [example.findings for example in examples]
    return Report(
        n=n,
        exact=sum(right),
        exact_share=sum(right) / n,
        malformed=malformed,
        wrong_seeds=[example.seed for example, is_right in zip(examples, right, strict=True) if not is_right],
        rules=[score(rule, truths, guesses) for rule in RULES],
        margin_n=len(gaps),
        min_margin=min(gaps, default=0.0),
        margins_below_half=sum(gap < 0.5 for gap in gaps),
        seconds=seconds,
    )


def main() -> None:
    """Measure the checkpoint on classes it was not trained on."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path(__file__).parent / "checkpoint")
    parser.add_argument("--first", type=int, default=HELDOUT_SEEDS.start, help="first seed")
    parser.add_argument("--n", type=int, default=1000, help="how many seeds")
    parser.add_argument("--margin-n", type=int, default=200, help="right answers to measure the logit margin on")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    args = parser.parse_args()
    if args.first not in HELDOUT_SEEDS or args.first + args.n - 1 not in HELDOUT_SEEDS:
        parser.error(f"seeds {args.first} to {args.first + args.n - 1} are not all held out: those are 0 to 9999")
    torch.set_num_threads(args.threads)
    report = evaluate(args.checkpoint, args.first, args.n, args.margin_n, args.batch_size)
    if args.json:
        print(json.dumps(asdict(report)))
        return
    print(f"exactly right: {report.exact} of {report.n} ({report.exact_share:.1%}), {report.malformed} malformed")
    print(f"least logit margin over {report.margin_n} right answers: {report.min_margin:.3f}", end="")
    print(f" ({report.margins_below_half} under 0.5)")
    print(f"{'rule':<20} {'precision':>9} {'recall':>7} {'findings':>8}")
    for rule in report.rules:
        print(f"{rule.rule:<20} {rule.precision:>9.3f} {rule.recall:>7.3f} {rule.findings:>8}")
    print(f"{report.seconds:.0f} s")


if __name__ == "__main__":
    main()
