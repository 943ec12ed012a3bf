"""Any weights file or folder to named tensors, with roles and ties, and back to files."""
