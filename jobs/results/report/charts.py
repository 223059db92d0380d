"""Charts as inline SVG: positions across are in percent and heights in pixels, so that text keeps its size.

Colours are classes of style.css, which follow dark mode and print. Each chart has its numbers as a table beside it.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup

PLOT_HEIGHT, LABEL_HEIGHT, TOP = 180, 24, 10
# The labels of the vertical axis end there, in the margin that style.css leaves.
LABELS_END = -8
BAR_HEIGHT = 14
# Labels on the axis; more would touch each other at the width of a phone.
MOST_LABELS = 5
_BEGINNINGS = (1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10)


def bar(share: float, *, kind: str = "mark") -> Markup:
    """Draw a horizontal bar of a share in [0, 1] on its track; the cell beside it has the number.

    Args:
        kind: a class of style.css.
    """
    width = 100 * min(max(share, 0.0), 1.0)
    return Markup(
        '<svg aria-hidden="true" width="100%" height="{height}">'
        '<rect class="track" width="100%" height="{height}" rx="3"/>'
        '<rect class="{kind}" width="{width}%" height="{height}" rx="3"/></svg>'
    ).format(height=BAR_HEIGHT, kind=kind, width=f"{width:.2f}")


def swatch(colour: tuple[int, int, int]) -> Markup:
    """Draw a small square of a colour (red, green, blue, 0 to 255), as the legend of pictures."""
    return Markup(
        '<svg class="swatch" aria-hidden="true"><rect width="100%" height="100%" fill="{colour}"/></svg> '
    ).format(colour="#{:02x}{:02x}{:02x}".format(*colour))


def columns(
    values: Sequence[float], labels: Sequence[str], *, description: str, are_ends_labelled: bool = False
) -> Markup:
    """Draw a chart of columns, as a histogram.

    Args:
        values: not negative, [N].
        labels: of the edges between columns, [N + 1].
        description: what the chart shows, in a sentence or two, for those who do not see it.
        are_ends_labelled: write the first and the last label only.
    """
    top = nice_ceiling(max(values, default=0.0))
    base = TOP + PLOT_HEIGHT
    heights = [PLOT_HEIGHT * value / top if top else 0.0 for value in values]
    step = 100 / max(len(values), 1)
    bars = [
        Markup('<rect class="mark" x="{x}%" y="{y}" width="{width}%" height="{height}"/>').format(
            x=f"{step * (place + 0.05):.3f}",
            y=f"{base - height:.1f}",
            width=f"{step * 0.9:.3f}",
            height=f"{height:.1f}",
        )
        # A value that is not 0 is seen.
        for place, height in enumerate(max(height, 1.5) if height else 0.0 for height in heights)
    ]
    every = max(1, len(labels) - 1) if are_ends_labelled else 0
    return _framed(top, bars, labels, description, every=every)


def lines(series: Sequence[Sequence[float]], labels: Sequence[str], *, description: str) -> Markup:
    """Draw lines of values in [0, 1]; the classes line-0, line-1 and so on of style.css distinguish them.

    Args:
        series: [S][N] values at places of equal distance.
        labels: at places of equal distance, for the horizontal axis.
        description: what the chart shows, for those who do not see it.
    """
    # Stretched to the place that there is; the strokes keep their width.
    drawn = [
        Markup(
            '<svg x="0" y="{y}" width="100%" height="{height}" viewBox="0 0 1 1" preserveAspectRatio="none">'
            '<polyline class="line line-{number}" vector-effect="non-scaling-stroke" points="{points}"/></svg>'
        ).format(
            y=TOP,
            height=PLOT_HEIGHT,
            number=number_of,
            points=" ".join(
                f"{place / max(len(values) - 1, 1):.4f},{1 - min(max(value, 0.0), 1.0):.4f}"
                for place, value in enumerate(values)
            ),
        )
        for number_of, values in enumerate(series)
    ]
    return _framed(1.0, drawn, labels, description, every=1)


def _framed(top: float, marks: Sequence[Markup], labels: Sequence[str], description: str, *, every: int = 0) -> Markup:
    """Put marks into a frame with a vertical axis from 0 to `top`; `every` so many labels are written, 0 for a few."""
    base = TOP + PLOT_HEIGHT
    ticks = [(0.0, base), *(((top * part, base - PLOT_HEIGHT * part) for part in (0.5, 1.0)) if top else ())]
    axis = [
        Markup('<text x="{x}" y="{y}" text-anchor="end">{text}</text>').format(
            x=LABELS_END, y=f"{y + 4:.1f}", text=number(value)
        )
        for value, y in ticks
    ]
    rules = [
        Markup('<line class="{kind}" x1="0" x2="100%" y1="{y}" y2="{y}"/>').format(
            kind="grid" if value else "axis", y=f"{y:.1f}"
        )
        for value, y in reversed(ticks)
    ]
    pieces = [*axis, *rules[:-1], *marks, rules[-1], *_edge_labels(labels, base + 18, every)]
    return Markup('<svg class="chart" role="img" aria-label="{description}" height="{height}">{pieces}</svg>').format(
        description=description, height=base + LABEL_HEIGHT, pieces=Markup("").join(pieces)
    )


def _edge_labels(labels: Sequence[str], y: int, every: int) -> list[Markup]:
    count = max(len(labels) - 1, 1)
    every = every or max(1, math.ceil(count / (MOST_LABELS - 1)))
    pieces = []
    for place in range(0, len(labels), every):
        anchor = "start" if place == 0 else "end" if place == count else "middle"
        pieces.append(
            Markup('<text x="{x}%" y="{y}" text-anchor="{anchor}">{text}</text>').format(
                x=f"{100 * place / count:.2f}", y=y, anchor=anchor, text=labels[place]
            )
        )
    return pieces


def nice_ceiling(value: float) -> float:
    """Return the next number whose half is short, too: 1, 1.2, 1.6, 2, 3, 4, 5, 6, 8 times a power of ten; 0 stays."""
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in _BEGINNINGS if factor * power >= value * (1 - 1e-12))


def number(value: float) -> str:
    """Return a number with three digits that matter, in millions from ten of them on, thousands separated."""
    if abs(value) >= 1e7:
        return f"{number(value / 1e6)} M"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
