"""``python -m export.zoo``: every two-stage config that mmdet ships, exported and compared with PyTorch."""
