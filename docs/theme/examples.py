"""How docstrings are read: their `Example:` is what griffe calls `Examples:`."""

import re
from typing import Any

import griffe


class Extension(griffe.Extension):
    """Has doctests in an `Example:` shown as code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename the section."""
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE
            )
