"""How views look: colours for light and dark, and the one style sheet of all HTML.

Everything is scoped to the class `lmlab`, with no ids, so that any number of outputs share a page. Colours follow
JupyterLab's theme where there is one, else VS Code's or Colab's, else what the browser prefers.
"""

from __future__ import annotations

from collections.abc import Sequence

# Six colours that stay apart for colour-blind eyes, on white and on black.
LIGHT_SERIES = ("#2667d8", "#d9541e", "#0d8a6a", "#9440c2", "#a87800", "#c93674")
DARK_SERIES = ("#7aaeff", "#ff9a66", "#4fd0ac", "#cf98f2", "#e8be48", "#ff8db8")
N_COLOURS = len(LIGHT_SERIES)

INK, DIM, GRID = "#1d2129", "#626b78", "#e3e6ea"  # of figures, which are drawn on white


def _variables(series: Sequence[str], **named: str) -> str:
    colours = {f"c{index}": colour for index, colour in enumerate(series)}
    return "".join(f"--lm-{name}:{value};" for name, value in {**named, **colours}.items())


_LIGHT = _variables(
    LIGHT_SERIES, ink=INK, dim=DIM, line="#dfe3e8", panel="#ffffff", well="#f5f6f8",
    good="#0d8a6a", bad="#c62f3b", warn="#a86a00", heat="224,88,20",
)  # fmt: skip
_DARK = _variables(
    DARK_SERIES, ink="#e6e8ec", dim="#9aa3af", line="#3c3e42", panel="#191919", well="#25262a",
    good="#4fd0ac", bad="#ff8087", warn="#f0b44c", heat="255,122,54",
)  # fmt: skip
_SANS = 'system-ui,-apple-system,"Segoe UI",Roboto,sans-serif'
_MONO = 'ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace'

_RULES = f"""
.lmlab {{ {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ .lmlab {{ {_DARK} }} }}
[data-jp-theme-light=true] .lmlab, .vscode-light .lmlab {{ {_LIGHT} }}
[data-jp-theme-light=false] .lmlab, .vscode-dark .lmlab, [theme=dark] .lmlab {{ {_DARK} }}
.lmlab {{
  color: var(--lm-ink); background: var(--lm-panel); border: 1px solid var(--lm-line); border-radius: 8px;
  padding: 12px 16px; margin: 2px 0; max-width: 920px; font: 13px/1.5 {_SANS};
}}
.lmlab.lm-wide {{ width: fit-content; max-width: min(1280px, 100%) }}
.lmlab, .lmlab * {{ box-sizing: border-box }}
.lmlab .lm-row {{ display: flex; flex-wrap: wrap; gap: 4px 12px; align-items: center }}
.lmlab .lm-spread {{ justify-content: space-between }}
.lmlab .lm-mono {{ font-family: {_MONO}; font-size: 12px }}
.lmlab .lm-title {{ font-size: 15px; font-weight: 600; overflow-wrap: anywhere }}
.lmlab .lm-dim {{ color: var(--lm-dim) }}
.lmlab .lm-good {{ color: var(--lm-good) }}
.lmlab .lm-bad {{ color: var(--lm-bad) }}
.lmlab .lm-warn {{ color: var(--lm-warn) }}
.lmlab .lm-busy {{ color: var(--lm-c0) }}
.lmlab .lm-pill {{
  white-space: nowrap;  display: inline-block; border: 1px solid currentColor; border-radius: 99px; padding: 0 9px;
  font-size: 12px; font-weight: 600;
}}
.lmlab .lm-tag {{
  display: inline-block; background: var(--lm-well); border-radius: 4px; padding: 0 6px; margin-right: 4px;
  font-size: 12px;
}}
.lmlab .lm-facts {{
  display: grid; grid-template-columns: repeat(auto-fill, minmax(128px, auto)); gap: 10px 12px; margin: 10px 0 4px;
}}
.lmlab .lm-tight {{ grid-template-columns: repeat(auto-fit, minmax(116px, auto)) }}
.lmlab .lm-fact {{ min-width: 0; overflow-wrap: anywhere }}
.lmlab .lm-name {{ color: var(--lm-dim); font-size: 11px; line-height: 1.3 }}
.lmlab .lm-value {{ font-weight: 600; font-variant-numeric: tabular-nums }}
.lmlab .lm-bar {{ height: 6px; border-radius: 3px; background: var(--lm-line); overflow: hidden; margin: 8px 0 }}
.lmlab .lm-bar div {{ height: 100%; border-radius: 3px; background: var(--lm-c0) }}
.lmlab .lm-text {{
  background: var(--lm-well); border-radius: 6px; padding: 8px 10px; margin: 4px 0; white-space: pre-wrap;
  overflow-wrap: anywhere; max-height: 220px; overflow-y: auto;
}}
.lmlab .lm-head {{ color: var(--lm-dim); font-size: 11px; font-weight: 600; margin: 10px 0 2px }}
.lmlab .lm-scroll {{ overflow-x: auto; display: grid; grid-template-columns: minmax(0,1fr); justify-items: start }}
.lmlab table.lm-table {{ border-collapse: collapse; margin: 2px 0; width: auto; font-size: 13px; border: 0 }}
.lmlab .lm-table th, .lmlab .lm-table td {{
  text-align: left; vertical-align: top; padding: 5px 13px 5px 0; border: 0; border-bottom: 1px solid var(--lm-line);
  background: none; color: inherit; max-width: 420px; min-width: 0; white-space: normal; overflow-wrap: break-word;
  font-variant-numeric: tabular-nums;
}}
.lmlab .lm-table th {{ color: var(--lm-dim); font-weight: 600; font-size: 12px; white-space: nowrap }}
.lmlab .lm-table tr:nth-child(n), .lmlab .lm-table tr:hover {{ background: none }}
.lmlab .lm-table thead {{ border: 0 }}
.lmlab .lm-table tr:last-child td {{ border-bottom: 0 }}
.lmlab .lm-table .lm-num {{ text-align: right; white-space: nowrap }}
.lmlab .lm-whole {{ white-space: nowrap }}
.lmlab .lm-columns {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 4px 14px }}
.lmlab svg {{ display: block; max-width: 100%; height: auto }}
.lmlab .lm-table svg {{ max-width: none }}
.lmlab svg text {{
  font: 11px {_SANS}; fill: var(--lm-dim); paint-order: stroke; stroke: var(--lm-panel); stroke-width: 3px;
}}
.lmlab .lm-tokens {{
  white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9; max-height: 420px; overflow-y: auto;
}}
@media print {{ .lmlab .lm-text, .lmlab .lm-tokens {{ max-height: none; overflow: visible }} }}
.lmlab .lm-tokens span {{ border-radius: 2px; padding: 2px 0 }}
.lmlab .lm-tokens span:hover {{ outline: 1.5px solid var(--lm-ink) }}
.lmlab .lm-scale {{ display: inline-block; width: 120px; height: 9px; border-radius: 2px; vertical-align: middle;
  background: linear-gradient(90deg, rgba(var(--lm-heat),0), rgba(var(--lm-heat),.85)); }}
.lmlab .lm-figure {{ background: #fff; display: inline-block; max-width: 100%; vertical-align: top }}
.lmlab .lm-figure img {{ display: block; max-width: 100%; height: auto }}
@media (prefers-color-scheme: dark) {{ .lmlab .lm-figure {{ filter: invert(.9) hue-rotate(180deg) }} }}
[data-jp-theme-light=true] .lmlab .lm-figure, .vscode-light .lmlab .lm-figure {{ filter: none }}
[data-jp-theme-light=false] .lmlab .lm-figure, .vscode-dark .lmlab .lm-figure, [theme=dark] .lmlab .lm-figure {{
  filter: invert(.9) hue-rotate(180deg);
}}
"""

STYLE = f"<style>{''.join(line.strip() for line in _RULES.splitlines())}</style>"
