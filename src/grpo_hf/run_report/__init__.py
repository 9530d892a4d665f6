"""The report of a run: a page that says whether it got better, why, and how one knows.

The files of one or several runs come in; an HTML file that needs no other, and a picture for each
chart, go out. Nothing here needs torch, and nothing that a model wrote is trusted.
"""
