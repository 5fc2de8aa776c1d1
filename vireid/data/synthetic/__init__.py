"""Synthetic pedestrians: drawn persons in both modalities, with key points, in the layout of a published data set."""

from vireid.data.synthetic.generate import generate_synthetic

__all__ = ["generate_synthetic"]
