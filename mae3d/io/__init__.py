"""Whole files, object storage, pages, pictures and random streams: the ground on which every room stands."""
