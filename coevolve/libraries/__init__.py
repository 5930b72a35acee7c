"""What is reached inside other libraries that is not their public API; nothing else reaches it.

A file per library. Each name is declared there as a `Hook` that says what it is for, is checked
before it is used, and is used under a name of this package's own. What a library offers in public
is used where it is needed, not here.
"""
