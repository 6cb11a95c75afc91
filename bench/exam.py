"""Exercises solved, and KLD on their answers: both tools' files of bench/ladder.py, in one engine.

    .venv/bin/python bench/exam.py --model DIR --work FOLDER --rungs IQ1_S IQ2_XXS IQ3_XXS Q4_K_M

DIR/exam.jsonl has one exercise a line, ``question`` and ``answer``; FOLDER has ``llama-RUNG.gguf`` and
``kizami-RUNG.gguf``. An exercise is asked in the model's own chat template and solved if the greedy answer is
the expected one to the letter. KLD is that of the tokens of the right answers and of what ends them, against
the model that the files were made from, by exercise; intervals are of 95 % over exercises, and paired.
Exercises that DIR/calibration.txt asks, too, are left out. Float activations throughout, so that files are
compared and not engines.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import kizami
from kizami.engine import Model
from kizami.evaluate import log_softmax
from kizami.recipe import read_text
from quality import paired

RUNGS = ["IQ1_S", "IQ2_XXS", "IQ3_XXS", "Q4_K_M"]
# Exercises run together.
TOGETHER = 16


@dataclass(frozen=True)
class Exercise:
    """A question as token ids, the answer as text, and the ids of the answer with the token that ends it."""

    prompt: list[int]
    answer: str
    expected: list[int]


def read(model: Model, path: Path, seen: str = "") -> list[Exercise]:
    """The exercises of a file, in the chat template of a model; without those that a text asks in it."""
    tok = model.tokenizer
    text = "".join(f",{i}" for i in tok.encode(seen)) + ","
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        exercise = json.loads(line)
        prompt = model.prompt_ids(exercise["question"])
        if "".join(f",{i}" for i in prompt) + "," in text:
            continue
        end = [] if tok.eos is None else [tok.eos]
        found.append(Exercise(prompt, exercise["answer"], [*tok.encode(exercise["answer"]), *end]))
    return found


def answers(model: Model, exercises: list[Exercise]) -> list[np.ndarray]:
    """For each exercise log-probabilities ``[answer's tokens, vocab]`` where its right answer stands."""
    found = []
    for start in range(0, len(exercises), TOGETHER):
        part = exercises[start : start + TOGETHER]
        for exercise, logits in zip(
            part, model.logits_many([e.prompt + e.expected[:-1] for e in part]), strict=True
        ):
            found.append(log_softmax(logits[len(exercise.prompt) - 1 :]))
    return found


def solved(model: Model, exercises: list[Exercise], found: list[np.ndarray]) -> int:
    """How many greedy answers are right, ``found`` being what :func:`answers` says of the model."""
    right = 0
    for exercise, logp in zip(exercises, found, strict=True):
        if np.array_equal(logp.argmax(axis=1), exercise.expected):
            right += 1  # every token of the right answer is the likeliest, so it is the greedy one
            continue
        # It could still be spelled with other tokens.
        ids = list(model.stream_ids(exercise.prompt, max_tokens=len(exercise.answer.encode()) + 2))
        while ids and ids[-1] == model.tokenizer.eos:
            ids.pop()
        right += model.tokenizer.decode(ids) == exercise.answer
    return right


def divergences(expected: list[np.ndarray], found: list[np.ndarray]) -> np.ndarray:
    """Mean KLD of each exercise's tokens."""
    pairs = zip(expected, found, strict=True)
    return np.array([(np.exp(p) * (p - q)).sum(axis=1).mean() for p, q in pairs])


def compare(options: argparse.Namespace) -> list[dict]:
    """One row per rung, printed as it is known; the first is of the model itself."""
    reference = kizami.load(options.model, activations="f32")
    seen = read_text(options.model / "calibration.txt")
    exercises = read(reference, options.model / "exam.jsonl", seen)[: options.exercises]
    expected = answers(reference, exercises)
    rows: list[dict] = [{"of": len(exercises), "solved": solved(reference, exercises, expected)}]
    print(f"{len(exercises)} exercises not in calibration; the model solves {rows[0]['solved']}", flush=True)
    print("| rung | llama.cpp: solved | KLD | kizami: solved | KLD | ratio | paired difference |")
    print("|---|---:|---|---:|---|---:|---|")
    for rung in options.rungs:
        row: dict = {"rung": rung}
        by_exercise = []
        for tool in ("llama", "kizami"):
            model = kizami.load(options.work / f"{tool}-{rung}.gguf", activations="f32")
            found = answers(model, exercises)
            kld = divergences(expected, found)
            half = 1.96 * kld.std(ddof=1) / np.sqrt(len(kld))
            right = solved(model, exercises, found)
            row[tool] = {"solved": right, "kld": kld.mean(), "half_width": half}
            by_exercise.append(kld)
        row["difference"], row["difference_half_width"] = paired(*by_exercise)
        row["ratio"] = row["kizami"]["kld"] / row["llama"]["kld"]
        rows.append(row)
        cells = (
            f"{row[tool]['solved']} | {row[tool]['kld']:.4f} ± {row[tool]['half_width']:.4f}"
            for tool in ("llama", "kizami")
        )
        gain, half = row["difference"], row["difference_half_width"]
        print(f"| {rung} | {' | '.join(cells)} | {row['ratio']:.3f} | {gain:.4f} ± {half:.4f} |", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="the folder that bench/ladder.py wrote to")
    parser.add_argument("--rungs", nargs="+", default=RUNGS)
    parser.add_argument("--exercises", type=int, help="at most [all]")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        rows = compare(options)
    except kizami.KizamiError as error:
        sys.exit(f"error: {error}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
