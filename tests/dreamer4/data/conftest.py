from worlds import world

__all__ = ["world"]
