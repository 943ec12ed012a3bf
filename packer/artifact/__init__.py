"""Quantized tensors to bytes and back: the decoder, the encoders, and the layout of the file."""
