"""Callbacks for any Lightning project that trains a Hugging Face model."""
