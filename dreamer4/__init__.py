"""Dreamer 4 in plain PyTorch: the method of arXiv 2509.24527, without Ray, process groups or loggers.

Read in this order: types, actions, cache, transformer, tokenizer, shortcut, dynamics, twohot, distributions, heads,
agent, imagination, stream, returns, pmpo.
"""
