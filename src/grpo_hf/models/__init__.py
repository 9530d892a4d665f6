"""One frozen base and the adapters on it.

A name or a folder comes in; a model goes out that can be seen as the policy, as the reference or
through another adapter's eyes. Loading chooses the dtype and the adapter's configuration. Switching
turns adapters on and off for the length of a `with` block. Guards check that the reference is the
base: at step 0 by the KL, at the end byte by byte. May be touched: which adapter is active, and
only within such a block. Nothing here changes a byte of the base.
"""
