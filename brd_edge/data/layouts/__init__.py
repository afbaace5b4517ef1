"""How data sets lie on the disk, one module each."""

from __future__ import annotations

from brd_edge.data.layouts import ade20k, camvid, cityscapes, cocostuff10k, folder, voc2012
from brd_edge.data.layouts.base import Content, Layout, Source, find_base, find_layout_problem, make_palette

__all__ = ["LAYOUTS", "Content", "Layout", "Source", "find_base", "find_layout_problem", "make_palette"]

LAYOUTS: dict[str, Layout] = {
    "ade20k": ade20k.LAYOUT,
    "camvid": camvid.LAYOUT,
    "cityscapes": cityscapes.LAYOUT,
    "cocostuff10k": cocostuff10k.LAYOUT,
    "folder": folder.LAYOUT,
    "voc2012": voc2012.LAYOUT,
}
"""Every layout by its name in recipes."""
