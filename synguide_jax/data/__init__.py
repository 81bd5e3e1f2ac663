"""From files to batches: sources, splits, feed, augmentation.

The only room that may import TensorFlow, and only while a set is prepared.
"""
