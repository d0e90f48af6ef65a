"""What ``runtime.infer`` does: image files through a detector, and what it finds written as it goes."""
