"""One pure function per paper: tensors in, one value per example (or token) out."""
