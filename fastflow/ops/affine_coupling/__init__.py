"""The affine coupling's transform of one half by the other's shift and scale."""
