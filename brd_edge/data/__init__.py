"""Data sets: layouts, preparation, drawn scenes and the training loader."""
