"""Frames of videos, streams and cameras, and videos of frames, by FFmpeg (PyAV)."""
