"""Vectors on disk: part files, staging, publishing, provenance.

Knows nothing of models and of the input's format.
"""
