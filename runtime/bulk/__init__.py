"""Millions of images: divided into blocks, each of which is detected and written once, by workers of Ray Data.

``blocks`` what is detected · ``tables`` what is written · ``worker`` a block's way · ``job`` all blocks, and those of
an earlier run. Ray and pyarrow are loaded where they are used.
"""
