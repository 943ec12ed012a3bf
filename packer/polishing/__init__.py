"""A file polished: all but its codes tuned to the unquantized model, at no byte."""
