"""Encoded bytes become pixels: DALI, its fallback, crops and colour transforms."""
