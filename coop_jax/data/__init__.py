"""Datasets, few-shot sampling and the flow of pixels."""
