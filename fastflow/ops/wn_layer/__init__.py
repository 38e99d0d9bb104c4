"""One layer of the WN block: dilated convolution, conditioning, gate, residual and skip."""
