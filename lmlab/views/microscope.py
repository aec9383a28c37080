"""The microscope: a text with every token coloured by its loss, one panel for each model that read it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lmlab import words
from lmlab.views.html import View, element, escape, head, page

Losses = Sequence[float | None]
STRONGEST = 0.85  # opacity of the colour at the top of the scale: the text stays readable in both themes


def microscope(
    tokens: Sequence[str],
    ids: Sequence[int],
    losses: Losses | Mapping[str, Losses],
    title: str = "",
    ceiling: float | None = None,
) -> View:
    """A text whose tokens are shaded by their loss in nats, pale where the model knew and dark where it was surprised.

    tokens, ids: the text piece by piece. losses: one for each token, None or NaN where there is none (the first), or
    several readings by name, such as before and after training, shown side by side on one scale. Position, id, text,
    loss and probability appear on hover. ceiling: the loss of the darkest shade, else nearly the highest there is.
    """
    readings = dict(losses) if isinstance(losses, Mapping) else {"": losses}
    values = {label: np.array([_number(loss) for loss in given], dtype=np.float64) for label, given in readings.items()}
    for label, given in values.items():
        if not len(given) == len(tokens) == len(ids):
            raise ValueError(f"microscope: {len(tokens)} tokens, {len(ids)} ids, {len(given)} losses {label}")
    finite = np.concatenate([given[np.isfinite(given)] for given in values.values()] or [np.zeros(0)])
    top = ceiling if ceiling else max(float(np.quantile(finite, 0.98)) if len(finite) else 0.0, 1.0)
    notes = [_note(index, token, ids[index], values) for index, token in enumerate(tokens)]
    panels = "".join(_panel(label, tokens, notes, given, top) for label, given in values.items())
    scale = element("span", f"0 {element('span', css='lm-scale')} {top:.1f} nats and more", "lm-dim")
    heading = element("span", escape(title), "lm-title")
    text = "\n".join(filter(None, [title, *(f"{label or 'loss'}: {_mean(given)}" for label, given in values.items())]))
    return View(page(element("div", heading + scale, "lm-row lm-spread"), element("div", panels, "lm-columns")), text)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _mean(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return "no token was predicted"
    mean = float(finite.mean())
    perplexity = f", perplexity {words.three_digits(math.exp(mean))}" if mean < 50 else ""
    return f"{mean:.3f} nats a token over {len(finite)}{perplexity}"


def _panel(label: str, tokens: Sequence[str], notes: Sequence[str], losses: np.ndarray, top: float) -> str:
    spans = "".join(
        element("span", escape(visible(token)), style=_shade(loss, top), title=note)
        for token, note, loss in zip(tokens, notes, losses.tolist(), strict=True)
    )
    heading = head(f"{label}: {_mean(losses)}" if label else _mean(losses))
    return element("div", heading + element("div", spans, "lm-tokens lm-mono"))


def _shade(loss: float, top: float) -> str | None:
    if math.isnan(loss):
        return None
    return f"background:rgba(var(--lm-heat),{STRONGEST * min(max(loss / top, 0.0), 1.0):.2f})"


def _note(index: int, token: str, token_id: int, values: Mapping[str, np.ndarray]) -> str:
    lines = [f"token {index}, id {token_id}: {token!r}"]
    for label, losses in values.items():
        loss = float(losses[index])
        name = f"{label}: " if label else ""
        chance = f", probability {100 * math.exp(-loss):.3g} %" if loss >= 0 else ""
        lines.append(f"{name}not predicted" if math.isnan(loss) else f"{name}{loss:.3f} nats{chance}")
    return "\n".join(lines)


def visible(token: str) -> str:
    """A token with its line ends and tabs marked, and a mark of its own where it is empty."""
    return token.replace("\r", "␍").replace("\n", "↵\n").replace("\t", "⇥\t") or "∅"
