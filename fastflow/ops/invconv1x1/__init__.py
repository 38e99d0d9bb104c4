"""The invertible 1x1 convolution, with a plain or a PLU weight."""
