"""The gated activation tanh(x1) * sigmoid(x2)."""
