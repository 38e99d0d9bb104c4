"""The step between two gated stacks of a flow: end convolution, affine coupling, invertible 1x1, early outputs."""
