"""Charts as SVG text for the report: lines, stacked bars. Small, sharp at every size, and in need of nothing else."""

import html
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 12, 12, 40
_FEW_POINTS = 12  # of a line: each gets a dot
_MOST_POINTS = 240  # of a line: more cannot be seen


def colour(number: int, *, on_image: bool = False) -> str:
    """CSS colour of a class or a series; neighbours differ much, all can be seen on white, or on an image."""
    return f"hsl({number * 137.5 % 360:.0f} {'95% 62%' if on_image else '62% 42%'})"


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    log: bool = False,
) -> str:
    """A chart of lines.

    Args:
      series: dict from name to (x, y); values that are not finite (or not positive, where `log`) are left out.
      x_label, y_label: of the axes.
      y_range: lowest and highest y; None takes those of the values.
      log: whether y is logarithmic.

    Returns:
      SVG.
    """
    kept = {name: _thinned(*_usable(x, y, log)) for name, (x, y) in series.items()}
    kept = {name: points for name, points in kept.items() if len(points[0])}
    xs = np.concatenate([x for x, _ in kept.values()]) if kept else np.array([0.0, 1.0])
    ys = np.concatenate([y for _, y in kept.values()]) if kept else np.array([0.0, 1.0])
    low_x, high_x = _spread(float(xs.min()), float(xs.max()))
    low_y, high_y = _spread(*(y_range or (float(ys.min()), float(ys.max()))))
    parts = _axes((low_x, high_x), (low_y, high_y), x_label, y_label, log)
    for number, (name, (x, y)) in enumerate(kept.items()):
        across = _LEFT + (x - low_x) / (high_x - low_x) * (_WIDTH - _LEFT - _RIGHT)
        up = _TOP + (high_y - y) / (high_y - low_y) * (_HEIGHT - _TOP - _BOTTOM)
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, up, strict=True))
        title = f"<title>{html.escape(name)}</title>"
        if len(x) <= _FEW_POINTS:  # (a line of one point cannot be seen)
            parts += [
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{colour(number)}"/>'
                for a, b in zip(across, up, strict=True)
            ]
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour(number)}" stroke-width="2">{title}</polyline>'
        )
    return _svg(parts) + legend(kept)


def stacked_bars(bins: Sequence[str], counts: Mapping[str, Sequence[int]], *, x_label: str, y_label: str) -> str:
    """A chart of bars, the counts of each bin one above the other.

    Args:
      bins: names of the bins.
      counts: dict from name to a count for each bin.
      x_label, y_label: of the axes.

    Returns:
      SVG.
    """
    total = np.sum([np.asarray(values) for values in counts.values()], axis=0) if counts else np.zeros(len(bins))
    high = max(1.0, float(total.max(initial=0)))
    parts = _axes(None, (0.0, high), x_label, y_label, False)
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(bins))
    below = np.zeros(len(bins))
    for number, (name, values) in enumerate(counts.items()):
        for place, value in enumerate(values):
            if value:
                height = value / high * (_HEIGHT - _TOP - _BOTTOM)
                top = _HEIGHT - _BOTTOM - below[place] - height
                below[place] += height
                left, width = _LEFT + step * (place + 0.12), step * 0.76
                parts.append(
                    f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" '
                    f'fill="{colour(number)}"><title>{html.escape(name)}: {int(value)}</title></rect>'
                )
    for place, name in enumerate(bins):
        middle = _LEFT + step * (place + 0.5)
        parts.append(_text(middle, _HEIGHT - _BOTTOM + 15, name))
    return _svg(parts) + legend(counts)


def legend(names: Collection[str], colours: Sequence[str] | None = None) -> str:
    """HTML that names the colours of series, in their order. Args: names; colours, of CSS, None for those of charts."""
    colours = colours or [colour(number) for number in range(len(names))]
    entries = "".join(
        f'<span><i style="background:{one}"></i>{html.escape(name)}</span>'
        for name, one in zip(names, colours, strict=True)
    )
    return f'<div class="legend">{entries}</div>'


def _usable(x, y, log):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    keep = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not log))
    return x[keep], np.log10(y[keep]) if log else y[keep]


def _thinned(x, y):
    if len(x) <= _MOST_POINTS:
        return x, y
    rows = np.unique(np.linspace(0, len(x) - 1, _MOST_POINTS).round().astype(int))
    return x[rows], y[rows]


def _spread(low, high):
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low, high, most=6):
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    return np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step


def _log_ticks(low, high):
    """1, 2 and 5 times powers of ten, as logarithms; fewer of them over many powers; others where few lie between."""
    factors = (1, 2, 5) if high - low < 3 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks = [math.log10(factor) + power for power in powers for factor in factors]
    ticks = [tick for tick in ticks if low <= tick <= high]
    return ticks if len(ticks) > 1 else _ticks(low, high)


def _axes(x_range, y_range, x_label, y_label, log):
    """Grid, numbers and names of the axes; without x_range the bins name themselves."""
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for value in (_log_ticks if log else _ticks)(*y_range):
        y = _TOP + (y_range[1] - value) / (y_range[1] - y_range[0]) * (bottom - _TOP)
        shown = f"{10**value:.3g}" if log else f"{value:.6g}"
        parts.append(f'<line x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>')
    for value in _ticks(*x_range) if x_range else ():
        x = _LEFT + (value - x_range[0]) / (x_range[1] - x_range[0]) * (right - _LEFT)
        parts.append(_text(x, bottom + 15, f"{value:.6g}"))
    parts.append(_text((_LEFT + right) / 2, _HEIGHT - 6, x_label))
    middle = (_TOP + bottom) / 2
    parts.append(_text(12, middle, y_label, f' transform="rotate(-90 12 {middle})"'))
    return parts


def _text(x, y, text, more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle"{more}>{html.escape(text)}</text>'


def _svg(parts):
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'
