"""Views of runs, from their records alone: HTML that survives in a saved notebook, and matplotlib figures.

`cards`: run cards, tables, differences, samples side by side. `live`: a run while it trains. `microscope`: the loss of
every token of a text. `plots`: figures to look at and to save. What they stand on: `html` (elements, tables, escaping),
`theme` (colours), `svg` (small charts), `curves` (smoothing, thinning).
"""
