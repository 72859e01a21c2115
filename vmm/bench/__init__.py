"""Measuring: what port I/O, DMA and a whole boot cost here, beside rivals that run in the same minutes.

`rounds` runs all contenders in random order again and again; `statistics` compares them pair by pair; `latency` and
`boot` say what is measured; `result` is what comes out, for `table`, `page` and JSON.
"""
