"""What error feedback lives from: the inputs of linear layers, and what rounding makes of weights under them.

    .venv/bin/python bench/inputs.py                                  # the embedded model
    .venv/bin/python bench/inputs.py --model DIR --types IQ1_S Q4_K --json out.json

Inputs `x` are those of DIR/calibration.txt. `E[x xᵀ]` is what error feedback goes by: an expert's own, drawn
a little to its layer's (docs/quantizer.md). Three tables, a row per class of tensors and number of columns:

*Inputs.* Spread of columns: root mean squares, the largest and the 99th percentile over the median, and the
median over the 1st percentile. Spectrum: how many eigenvalues of `E[x xᵀ]` hold 90 and 99 % of their sum, and
their effective rank, the exponential of the entropy of their shares. Tokens that the least, the median and
the most seen expert saw.

*Room.* `H`, which is `E[x xᵀ]` with damping, is `(I + U) D (I + U)ᵀ`. Of noise alike in all columns feedback
leaves the mean of `D` over that of `diag H`. The geometric mean of `D` over the mean of `diag H` is the least
that any rounding with as many points leaves of it at high resolution, up to the shape of cells. It is made up
of the geometric mean of `D` over that of `diag H`, *correlation*, and that of `diag H` over its mean, which
steps by column would give without feedback. *Weights* is `w H wᵀ` over that of weights of random directions.
By type, what feedback does leave: `e H eᵀ` over that of plain rounding with importance of columns.

*Gains.* `w H w'ᵀ / w H wᵀ` of rounded weights `w'`, plain and with feedback.

Figures of inputs are medians over matrices, those of rounding means over tensors. `H` is of the text that
feedback went by, so what is over-fitted does not show.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

import kizami
from encoders import CLASSES, TYPES
from kizami import _core, feedback
from kizami.calibrate import calibration_windows
from kizami.demo import EMBEDDED
from kizami.embedding import NAME
from kizami.formats import nbytes, quantizable
from kizami.imatrix import Imatrix
from kizami.moments import Moments, observed_as
from kizami.recipe import read_text

ROUNDED_TO = ["IQ1_S", "IQ2_XXS", "IQ3_XXS", "Q4_K"]
# That of the encoder, Curvature::DAMPING in rust/quantizer/src/curvature.rs: a share of the mean diagonal.
DAMPING = 0.01
# What is not rounded in the record.
AS_IT_IS = ("class", "columns", "tensors", "tokens")


def damped(mean: np.ndarray) -> np.ndarray:
    """`H`: mean `x xᵀ`, float64 `[cols, cols]`, with damping on its diagonal."""
    return mean + DAMPING * mean.trace() / len(mean) * np.eye(len(mean))


def pivots(h: np.ndarray) -> np.ndarray:
    """`D` of `H = (I + U) D (I + U)ᵀ`, `U` strictly upper triangular: float64 `[cols]`."""
    # Cholesky eliminates from the first column, the encoder from the last.
    return np.diagonal(np.linalg.cholesky(h[::-1, ::-1]))[::-1] ** 2


def geometric(values: np.ndarray) -> float:
    """Geometric mean."""
    return float(np.exp(np.log(values).mean()))


def spread(mean: np.ndarray) -> dict[str, float]:
    """How unlike columns' root mean squares are; infinite where columns are never active."""
    rms = np.sqrt(np.diagonal(mean))
    first, median, last = np.percentile(rms, [1, 50, 99])
    with np.errstate(divide="ignore"):
        found = {"largest": rms.max() / median, "p99": last / median, "p1": median / first}
    return {key: float(value) for key, value in found.items()}


def spectrum(mean: np.ndarray) -> dict[str, float]:
    """How many directions inputs have: those of 90 and 99 % of the energy, and the effective rank."""
    # Rounding leaves zeros a little below zero.
    shares = np.linalg.eigvalsh(mean)[::-1].clip(min=0)
    shares /= shares.sum()
    held = np.cumsum(shares)
    some = shares[shares > 0]
    return {
        "n90": int(np.searchsorted(held, 0.90) + 1),
        "n99": int(np.searchsorted(held, 0.99) + 1),
        "rank": float(np.exp(-(some * np.log(some)).sum())),
    }


def room(mean: np.ndarray) -> dict[str, float]:
    """What feedback can make of noise: of `D` and of `diag H` means over means."""
    h = damped(mean)
    d, diagonal = pivots(h), np.diagonal(h)
    return {
        "mean": float(d.mean() / diagonal.mean()),
        "geometric": geometric(d) / float(diagonal.mean()),
        "correlation": geometric(d) / geometric(diagonal),
    }


class Rounding:
    """One tensor's weights under `H`, as they are and rounded; sums over its matrices."""

    def __init__(self, tensor: _core.Tensor, importance: np.ndarray, types: list[str]) -> None:
        """Takes importance of columns for plain rounding, `[n_mat, cols]`."""
        self.tensor, self.importance = tensor, importance
        self.types = [name for name in types if nbytes(name, tensor.shape) is not None]
        self.power = self.white = 0.0
        self.sums: dict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(2))

    def add(self, index: int, mean: np.ndarray) -> None:
        """Rounds one matrix in every type, both ways."""
        tensor = self.tensor.at(index) if len(self.tensor.shape) == 3 else self.tensor
        h, w = damped(mean), tensor.dequantize().astype(np.float64)
        product = w @ h
        self.power += np.vdot(product, w)
        self.white += np.vdot(w, w) * h.trace() / len(h)
        # Where its own f32 needs more damping than this, the encoder's H is another; none here does.
        curvature = _core.Curvature(mean, DAMPING)
        for name in self.types:
            own = self.importance[index : index + 1]
            encoded = {"plain": tensor.encode(name, own), "fed": tensor.encode(name, None, [curvature])}
            for way, data in encoded.items():
                back = _core.Tensor(name, tensor.shape, [data]).dequantize().astype(np.float64)
                error = w - back
                self.sums[way, name] += np.vdot(product, back), np.vdot(error @ h, error)

    def figures(self) -> dict[str, float]:
        """Gain and error of each type and way, relative to `w H wᵀ`, and that to white weights'."""
        found = {"weights": self.power / self.white}
        for (way, name), (gain, error) in self.sums.items():
            found[f"{name} {way} gain"] = gain / self.power
            found[f"{name} {way} error"] = error / self.power
        return found


def measure(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What the tables are made of: figures by class and columns."""
    reference = kizami.load(model, activations="f32")
    text = read_text(model / "calibration.txt")
    ids = calibration_windows(reference, text, options.ctx, options.calibration_tokens)
    source = reference.source
    shapes = {name: tuple(tensor.shape) for name, tensor in source.items()}
    inputs: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
    rounding: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
    tokens: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    # A row of the embedding is no sum over inputs.
    for names, moments in feedback.layers(reference, ids, done=[NAME]):
        assert isinstance(moments, Moments)
        imatrix = Imatrix(entries=moments.entries())
        seen: dict[str, list[dict[str, float]]] = {}
        counted = set()
        for name in names:
            if not quantizable(name, shapes[name]) or (means := moments.means(name)) is None:
                continue
            n_mat, _, cols = [1, *shapes[name]][-3:]
            key = next(label for label, pattern in CLASSES.items() if re.search(pattern, name)), cols
            importance = imatrix.weights(name, n_mat, cols)
            assert importance is not None
            found = Rounding(source[name], importance, options.types)
            for index in range(n_mat):
                found.add(index, means[index % len(means)])
            rounding[key].append(found.figures())
            # Tensors that share their inputs share these, too.
            shared = observed_as(name, shapes)
            if shared not in seen:
                seen[shared] = [spread(m) | spectrum(m) | room(m) for m in means]
            # ... but count once in each class that has them.
            if (key, shared) not in counted:
                counted.add((key, shared))
                inputs[key] += seen[shared]
                if "_exps" in name:
                    tokens[key].append(moments.tokens(name))
    labels = list(CLASSES)
    rows = []
    for key in sorted(rounding, key=lambda key: (labels.index(key[0]), key[1])):
        row: dict[str, Any] = {"class": key[0], "columns": key[1], "tensors": len(rounding[key])}
        row |= {what: np.median([one[what] for one in inputs[key]]) for what in inputs[key][0]}
        row |= {what: np.mean([one[what] for one in rounding[key]]) for what in rounding[key][0]}
        if tokens[key]:
            experts = np.concatenate(tokens[key])
            row["tokens"] = [int(f(experts)) for f in (np.min, np.median, np.max)]
        rows.append({what: value if what in AS_IT_IS else short(value) for what, value in row.items()})
    return {"model": model.resolve().name, "tokens": ids.size, "classes": rows}


def short(value: float) -> float | None:
    """Five digits; JSON knows no infinity."""
    return float(f"{value:.5g}") if np.isfinite(value) else None


def cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def table(head: list[str], rows: list[list[str]]) -> None:
    """A markdown table with a class and its columns first."""
    print(f"| class | columns | {' | '.join(head)} |\n|---|---:{'|---:' * len(head)}|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()


def tables(found: dict[str, Any], types: list[str]) -> None:
    """All three."""
    print(f"{found['model']}, {found['tokens']:,} tokens\n")
    inputs, feeding, gains = [], [], []
    for row in found["classes"]:
        first = [row["class"], str(row["columns"])]
        cells = [cell(row[what], ".2f") for what in ("largest", "p99", "p1")]
        cells += [cell(row[what], ".0f") for what in ("n90", "n99", "rank")]
        inputs.append([*first, *cells, " / ".join(f"{n:,}" for n in row.get("tokens", [])) or "-"])
        cells = [cell(row[what], ".3f") for what in ("mean", "geometric", "correlation")]
        cells.append(cell(row["weights"], ".2f"))
        both = []
        for name in types:
            error, plain, fed = (
                row.get(f"{name} {what}") for what in ("fed error", "plain gain", "fed gain")
            )
            cells.append(cell(error and error / row[f"{name} plain error"], ".2f"))
            both.append("-" if plain is None else f"{plain:.3f} / {fed:.3f}")
        feeding.append([*first, *cells])
        if any(one != "-" for one in both):
            gains.append([*first, *both])
    spreads = ["largest / median", "99 % / median", "median / 1 %"]
    table([*spreads, "hold 90 %", "hold 99 %", "effective rank", "tokens by expert"], inputs)
    table(["mean D", "geometric mean", "correlation", "weights", *types], feeding)
    table(types, gains)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=EMBEDDED)
    parser.add_argument("--ctx", type=int, default=256)
    parser.add_argument("--types", nargs="+", default=ROUNDED_TO, choices=TYPES, metavar="TYPE")
    parser.add_argument("--calibration-tokens", type=int, help="at most [all]")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        found = measure(options.model, options)
    except kizami.KizamiError as error:
        sys.exit(f"error: {error}")
    tables(found, options.types)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
