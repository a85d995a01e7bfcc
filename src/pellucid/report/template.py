"""Templates -> HTML. Escaping is always on, an unknown name is an error, and a bare float is refused.

A number reaches a page as a `Measurement`, a whole count, or text from `pellucid.run.rounded`: the one place that rounds.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from pellucid.run import Measurement, rounded
from pellucid.views import View, bundle, to_json


def render_template(template: str, /, *, views: Mapping[str, View] | None = None, **context: Any) -> str:
    """The page of a template file of this folder, with the style in it, and the views' data and scripts where it has views.

    Its Content-Security-Policy lets nothing but the page's own script run and nothing be fetched.
    """
    views = views or {}
    held = {name: Markup(to_json({"view": view})) for name, view in views.items()}
    script = bundle.script("report")
    return (
        _environment()
        .get_template(template)
        .render(
            style=Markup(_text("style.css")), moving_style=Markup(bundle.style()), script=Markup(script), integrity=Markup(bundle.integrity(script)),
            views=views, held=held, **context,
        )
    )  # fmt: skip


def interval(measurement: Measurement) -> str:
    """`0.9206 – 0.9571`, or an empty text where there is none."""
    if measurement.interval is None:
        return ""
    low, high = measurement.interval
    return f"{rounded(low, measurement.unit)} – {rounded(high, measurement.unit)}"


def duration(seconds: float) -> str:
    """`4.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 100:
        return f"{rounded(seconds, 'seconds')} s"
    minutes, rest = divmod(int(rounded(seconds, "seconds")), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


@functools.cache
def _environment() -> jinja2.Environment:
    """One for all pages, as compiling a template takes longer than filling it."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_no_bare_float,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["interval"] = interval
    environment.filters["duration"] = duration
    environment.filters["count"] = lambda value: rounded(value, "count")
    return environment


def _no_bare_float(value: Any) -> Any:
    if isinstance(value, (float, np.floating)):
        raise TypeError(f"a template got the bare number {value!r}; expected a Measurement or text from pellucid.run.rounded")
    return value


def _text(name: str) -> str:
    return resources.files("pellucid.report").joinpath(name).read_text(encoding="utf-8")
