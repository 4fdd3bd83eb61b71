"""The mathematics of low-rank attention: pure functions and small state objects on tensors.

Nothing here knows of Gymnasium, of a model or of a policy. Shapes are named by these words everywhere:
`heads` (query heads), `kv_heads` (key/value heads), `groups` (query heads per key head), `segment` (tokens
of one step, T), `keys` (keys so far, n), `dim` (head dimension, d), `width` (columns of a basis), `rank`.
The functions are batched over their first axis: it holds the key heads of one lane, or of many lanes side by side.
"""
