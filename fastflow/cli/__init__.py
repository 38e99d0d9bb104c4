"""The command line: one file per command. Each imports PyTorch and the rest only when it runs."""
