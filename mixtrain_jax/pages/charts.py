"""Small charts as inline SVG: lines, bars and a table of shades.

Colours come from the page's style sheet by class names, so a chart follows light, dark and print.
Numbers that are not finite leave a gap.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

Series = dict[str, Sequence[tuple[float, float]]]  # name: points (x, y), by rising x

WIDTH, HEIGHT = 520, 240  # units of the view box; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 48, 20, 12, 34  # margins
COLORS = 8  # classes c0 to c7 in the style sheet


def lines(
    series: Series,
    *,
    x: str,
    y: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    dots: bool = False,
) -> Markup:
    """Draws one line a series, with a legend if there are several.

    Args:
      series: the lines.
      x, y: what the axes show.
      x_range, y_range: limits of the axes; those of the points by default.
      dots: marks the points.
    """
    points = [p for line in series.values() for p in line if _finite(p)]
    if not points:
        return Markup('<p class="quiet">Nothing to draw yet.</p>')
    x_ticks = _ticks(*(x_range or _limits([p[0] for p in points])))
    y_ticks = _ticks(*(y_range or _limits([p[1] for p in points])))
    to_x = _scale(x_range or (x_ticks[0], x_ticks[-1]), LEFT, WIDTH - RIGHT)
    to_y = _scale(y_range or (y_ticks[0], y_ticks[-1]), HEIGHT - BOTTOM, TOP)
    parts = [_grid(y_ticks, to_y)]
    parts += [
        _text(to_x(tick), HEIGHT - BOTTOM + 14, label, "middle")
        for tick, label in zip(x_ticks, _labels(x_ticks))
    ]
    for place, (name, line) in enumerate(series.items()):
        color = f"c{place % COLORS}"
        path, pen = [], "M"
        for point in line:
            if not _finite(point):
                pen = "M"
                continue
            path.append(f"{pen}{to_x(point[0]):.1f} {to_y(point[1]):.1f}")
            pen = "L"
        title = f"<title>{escape(name)}</title>"
        parts.append(f'<path class="line {color}" d="{"".join(path)}">{title}</path>')
        if dots or sum(map(_finite, line)) == 1:
            parts += [
                f'<circle class="dot {color}" cx="{to_x(p[0]):.1f}" cy="{to_y(p[1]):.1f}" r="3">'
                f"<title>{escape(name)}: {_number(p[0])}, {_number(p[1])}</title></circle>"
                for p in line
                if _finite(p)
            ]
    return _figure(parts, x, y, list(series) if len(series) > 1 else [])


def bars(values: dict[str, float], *, label: str, digits: int = 2) -> Markup:
    """Draws one horizontal bar a value, which may not be negative; the longest fills the width.

    Args:
      values: by name.
      label: what they are, for readers who cannot see the chart.
      digits: after the point.
    """
    if not values:
        return Markup('<p class="quiet">Nothing to draw yet.</p>')
    top = max([v for v in values.values() if math.isfinite(v)], default=0) or 1
    rows = []
    for name, value in values.items():
        share = max(value, 0) / top if math.isfinite(value) else 0
        shown = f"{value:,.{digits}f}" if math.isfinite(value) else "none"
        rows.append(
            f'<div class="bar"><span>{escape(name)}</span>'
            f'<i><b style="width:{100 * share:.2f}%"></b></i><em>{shown}</em></div>'
        )
    return Markup(
        f'<div class="bars" role="img" aria-label="{escape(label)}">{"".join(rows)}</div>'
    )


def columns(edges: Sequence[float], counts: Sequence[float], *, x: str, y: str) -> Markup:
    """Draws a histogram.

    Args:
      edges: [n + 1] limits of the bins.
      counts: [n] heights.
      x, y: what the axes show.
    """
    if not len(counts):
        return Markup('<p class="quiet">Nothing to draw yet.</p>')
    y_ticks = _ticks(0, max(max(counts), 1))
    to_x = _scale((edges[0], edges[-1]), LEFT, WIDTH - RIGHT)
    to_y = _scale((0, y_ticks[-1]), HEIGHT - BOTTOM, TOP)
    parts = [_grid(y_ticks, to_y)]
    x_ticks = _ticks(edges[0], edges[-1])
    parts += [
        _text(to_x(tick), HEIGHT - BOTTOM + 14, label, "middle")
        for tick, label in zip(x_ticks, _labels(x_ticks))
        if edges[0] <= tick <= edges[-1]
    ]
    for low, high, count in zip(edges[:-1], edges[1:], counts):
        parts.append(
            f'<rect class="column" x="{to_x(low) + 0.5:.1f}" y="{to_y(count):.1f}" '
            f'width="{max(to_x(high) - to_x(low) - 1, 0.5):.1f}" '
            f'height="{to_y(0) - to_y(count):.1f}">'
            f"<title>{_number(low)} to {_number(high)}: {_number(count)}</title></rect>"
        )
    return _figure(parts, x, y, [])


def shades(
    table: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], corner: str
) -> Markup:
    """Draws a table of counts whose cells are darker the larger their share of the row."""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    lines = []
    for name, line in zip(rows, table):
        total = sum(line) or 1
        cells = "".join(
            f'<td style="--share:{100 * value / total:.1f}%">{_number(value) if value else ""}</td>'
            for value in line
        )
        lines.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    body = "".join(lines)
    return Markup(
        f'<div class="wide"><table class="shades"><thead><tr><th>{escape(corner)}</th>{head}</tr>'
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def _figure(parts: list[str], x: str, y: str, legend: list[str]) -> Markup:
    names = "".join(
        f'<li class="c{place % COLORS}">{escape(name)}</li>' for place, name in enumerate(legend)
    )
    axis = _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, x, "middle")
    return Markup(
        f'<figure class="chart"><figcaption>{escape(y)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y)} over {escape(x)}">'
        f"{''.join(parts)}{axis}</svg>" + (f"<ul>{names}</ul>" if names else "") + "</figure>"
    )


def _grid(ticks: list[float], to_y: "_Scale") -> str:
    return "".join(
        f'<path class="grid" d="M{LEFT} {to_y(tick):.1f}H{WIDTH - RIGHT}"/>'
        + _text(LEFT - 6, to_y(tick) + 4, label, "end")
        for tick, label in zip(ticks, _labels(ticks))
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


class _Scale:
    """Takes numbers of an axis to units of the view box."""

    def __init__(self, limits: tuple[float, float], start: float, end: float):
        self.low, self.start = limits[0], start
        self.slope = (end - start) / ((limits[1] - limits[0]) or 1)

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.slope


_scale = _Scale


def level(low: float, high: float) -> bool:
    """Whether two numbers differ by rounding alone, as means of equal numbers do."""
    return high - low <= 1e-9 * max(abs(low), abs(high))


def _limits(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if level(low, high):
        return low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    return low, high


def _ticks(low: float, high: float) -> list[float]:
    """Returns four to seven round numbers that cover the range."""
    if high <= low:
        high = low + 1
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(n for n in (1, 2, 5, 10) if (high - low) / (n * step) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]


def _labels(ticks: list[float]) -> list[str]:
    """Returns the ticks as people write them, all with as many digits as their step needs."""
    if ticks[-1] >= 10_000 and all(tick == round(tick, -3) for tick in ticks):
        return [f"{tick / 1000:g}k" for tick in ticks]
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    return [f"{tick:,.{digits}f}" for tick in ticks]


def _number(value: float) -> str:
    """Returns a number as people write it."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"


def _finite(point: tuple[float, float]) -> bool:
    return all(math.isfinite(number) for number in point)
