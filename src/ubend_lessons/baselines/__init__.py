"""Segmentation without a network: thresholds, clusters, regions, edges, and the rule that gives segments classes."""
