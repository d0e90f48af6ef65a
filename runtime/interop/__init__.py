"""Detections for other programs: files that they read, and objects of their packages."""
