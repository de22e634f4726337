"""Tensor maths: torch in, torch out."""
