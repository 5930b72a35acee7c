"""One self-contained page of what a run or an evaluation measured, and its figures as files.

`contents` reads the folder, `summary` says it in plain words, `figures` draws, `page` puts the page
together.
"""
