"""A page, and the interface under it, on which a learner adapts to what is shown to it.

`tfmeta serve` is made of this. It needs the extra `serve`; nothing else imports it.
"""
