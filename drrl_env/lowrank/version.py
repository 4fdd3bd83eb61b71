"""The version of the numbers that the engine computes."""

ENGINE_VERSION = 1
"""Raise it when any number changes: what was measured by another version is not read again.

It covers all that lies between a text and a measured number: attention, bases, statistics, capture, instances and
observations. A test of golden trajectories fails where numbers change and this does not.
"""
