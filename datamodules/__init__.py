"""Supervised, preference and prompt data as LightningDataModules."""
