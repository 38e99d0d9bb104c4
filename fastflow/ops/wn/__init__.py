"""The WN block: a stack of `wn_layer` with summed skips."""
