"""Models as Hugging Face keeps them: a folder of a configuration, weights and a tokenizer."""
