"""Table and plot of what `bench/peers.py` measured.

    .venv/bin/python bench/report.py peers.csv --plot peers.png

Knows the columns of the file, medians and ratios; runs nothing.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

COLUMNS = [
    *("machine", "engine", "setting", "arguments", "version", "build", "model", "threads", "round"),
    *("test", "depth", "tokens_per_s", "memory_share", "others", "error"),
]
OURS = "kizami"
# The part of the processors that other programs may take before a measurement counts as disturbed.
QUIET = 0.02
Row = dict[str, str]


@dataclass(frozen=True)
class Case:
    """What a ratio is of: the same file, threads, test and depth."""

    model: str
    threads: int
    test: str
    depth: int

    @property
    def label(self) -> str:
        return self.test + (f" @ {self.depth}" if self.depth else "")


@dataclass(frozen=True)
class Result:
    """Median tokens per second, of which setting, and the fraction of the memory bandwidth if it is known."""

    tokens_per_s: float
    setting: str
    share: float | None


def read(path: Path) -> list[Row]:
    """The rows of one run, or of several files put together."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def best(rows: list[Row]) -> dict[Case, dict[str, Result]]:
    """For each case the best setting of each engine, by the median over the rounds."""
    samples: dict[tuple[Case, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["tokens_per_s"]:
            case = Case(row["model"], int(row["threads"]), row["test"], int(row["depth"]))
            samples[case, row["engine"], row["setting"]].append(row)
    found: dict[Case, dict[str, Result]] = defaultdict(dict)
    for (case, engine, setting), measured in samples.items():
        rate = statistics.median(float(row["tokens_per_s"]) for row in measured)
        shares = [float(row["memory_share"]) for row in measured if row["memory_share"]]
        if engine not in found[case] or rate > found[case][engine].tokens_per_s:
            found[case][engine] = Result(rate, setting, statistics.median(shares) if shares else None)
    return found


def show(rows: list[Row], plot: Path | None = None) -> None:
    """Prints the table, the versions and what failed; draws the plot if asked to."""
    found = best(rows)
    peers = sorted({engine for results in found.values() for engine in results} - {OURS}, reverse=True)
    header = ["model", "threads", "test", OURS, "of memory"]
    for peer in peers:
        header += [peer, "its setting", "ratio"]
    lines = []
    for case in sorted(found, key=lambda c: (c.model, c.threads, c.depth, c.test[:2], int(c.test[2:]))):
        results = found[case]
        ours = results.get(OURS)
        share = "" if ours is None or ours.share is None else f"{100 * ours.share:.0f} %"
        line = [case.model, str(case.threads), case.label, _rate(ours), share]
        for peer in peers:
            theirs = results.get(peer)
            ratio = f"{ours.tokens_per_s / theirs.tokens_per_s:.2f}" if ours and theirs else ""
            line += [_rate(theirs), theirs.setting if theirs else "", ratio]
        lines.append(line)
    _table(header, lines)
    print()
    for engine in dict.fromkeys((r["engine"], r["version"], r["build"]) for r in rows if r["version"]):
        print(": ".join(part for part in engine if part))
    for text in dict.fromkeys(row["machine"] for row in rows):
        print(text)
    rounds = len({row["round"] for row in rows})
    print(f"{rounds} rounds; tokens per second are medians, ratios are to each peer's best setting")
    shares = [float(row["others"]) for row in rows if row["others"]]
    if disturbed := [share for share in shares if share > QUIET]:
        print(
            f"NOISY: during {len(disturbed)} of {len(shares)} measurements other processes took more than "
            f"{100 * QUIET:.0f} % of the processors (median {100 * statistics.median(disturbed):.0f} %)"
        )
    failures = [(r["engine"], r["setting"], r["model"], r["error"]) for r in rows if r["error"]]
    for failure in dict.fromkeys(failures):
        print(f"failed {failures.count(failure)} times: {', '.join(failure)}")
    if plot:
        draw(found, peers, plot)


def _rate(result: Result | None) -> str:
    return "failed" if result is None else f"{result.tokens_per_s:.2f}"


def _table(header: list[str], lines: list[list[str]]) -> None:
    """Columns with two spaces between; words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    words = {"model", "test", "its setting"}
    for line in [header, *lines]:
        cells = [
            cell.ljust(width) if name in words else cell.rjust(width)
            for name, cell, width in zip(header, line, widths, strict=True)
        ]
        print("  ".join(cells).rstrip())


def draw(found: dict[Case, dict[str, Result]], peers: list[str], path: Path) -> None:
    """Bars of the ratios: a panel per peer and number of threads, a group per model, a bar per test."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = sorted({case.model for case in found})
    threads = sorted({case.threads for case in found})
    kinds = sorted({(c.depth, c.test[:2], int(c.test[2:])) for c in found})
    count = len(peers) * len(threads)
    size = (max(7.0, 1 + 1.4 * len(models) * max(1.0, len(kinds) / 4)), 0.8 + 2.8 * count)
    figure, panels = pyplot.subplots(count, 1, figsize=size, sharex=True, squeeze=False, layout="constrained")
    places = [(peer, count) for peer in peers for count in threads]
    for panel, (peer, count) in zip(panels[:, 0], places, strict=True):
        for i, (depth, kind, tokens) in enumerate(kinds):
            xs, ratios = [], []
            for j, model in enumerate(models):
                results = found.get(Case(model, count, f"{kind}{tokens}", depth), {})
                if OURS in results and peer in results:
                    xs.append(j + (i - (len(kinds) - 1) / 2) * 0.8 / len(kinds))
                    ratios.append(results[OURS].tokens_per_s / results[peer].tokens_per_s)
            label = Case("", count, f"{kind}{tokens}", depth).label
            bars = panel.bar(xs, ratios, 0.8 / len(kinds), label=label, color=f"C{i}")
            panel.bar_label(bars, fmt="%.2f", fontsize=7, rotation=90 if len(kinds) > 4 else 0, padding=2)
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set_title(f"{OURS} / {peer}, {count} thread{'s' if count > 1 else ''}", loc="left", fontsize=10)
        panel.set_ylabel("ratio of tokens/s")
        panel.margins(y=0.15)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xticks(range(len(models)), models)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=4, fontsize=9, frameon=False, loc="outside lower center")
    figure.savefig(path, dpi=150)
    print(f"{path}: drawn")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="CSV files of peers.py, of one machine")
    parser.add_argument("--plot", type=Path, help="draw the ratios (needs kizami[plot])")
    options = parser.parse_args()
    show([row for path in options.files for row in read(path)], options.plot)


if __name__ == "__main__":
    main()
