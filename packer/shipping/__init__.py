"""The loader and the bundle: decoder and encoder as source text that a submission carries."""
