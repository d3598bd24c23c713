"""The plot of a report. Needs matplotlib, so whoever wants no report never imports this."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .scores import Scores


def draw(scores: Scores) -> bytes:
    """A PNG of four panels: KL and agreement by codebook, hidden states by layer, the end of speech row by row."""
    figure = Figure(figsize=(11, 7), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    divergence, agreement, hidden, ending = figure.subplots(2, 2).flat

    divergence.plot(scores.kl_mean, "o", label="mean")
    divergence.plot(scores.kl_p99, "^", label="99th percentile")
    if min(scores.kl_mean) > 0:  # a logarithm has no place for zero
        divergence.set_yscale("log")
    _describe(divergence, "KL(source || quantized)", "codebook", "nats")

    agreement.plot(scores.top1, "o", label="top-1 agrees")
    agreement.plot(scores.top50, "^", label="top-50 overlaps")
    agreement.set_ylim(top=1.005)
    _describe(agreement, "Agreement", "codebook", "share")

    hidden.plot(scores.hidden, ".-", label="mean of rows")
    hidden.set_ylim(bottom=0)
    _describe(hidden, "Error of the hidden states", "behind layer", "relative L2")

    rows = range(1 - len(scores.ending), 1)
    for side, label in enumerate(("source", "quantized")):
        ending.plot(rows, [pair[side] for pair in scores.ending], ".-", label=label)
    if not scores.ending:
        ending.text(0.5, 0.5, "no utterance ended by itself", transform=ending.transAxes, ha="center")
    ending.set_ylim(-0.02, 1.02)
    _describe(ending, "Probability that the speech ends", "row, 0 is the one that ended it", "mean of utterances")

    with io.BytesIO() as file:
        figure.savefig(file, format="png")
        return file.getvalue()


def _describe(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
