"""Secrets are references: to the environment, to a file, or (with a warning from ``doctor``) written out.

Promises: a secret is read when it is used, not when the project is loaded, and never shows in a repr, a log or an error.
Fails with ProjectError SECRET_... when the place it refers to has nothing.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from icelake.errors import ProjectError


@dataclass(frozen=True, slots=True)
class Secret:
    """``where`` is the variable's name, the file's path, or the text itself, by ``kind``."""

    kind: Literal["env", "file", "text"]
    where: str = field(repr=False)

    def __str__(self) -> str:
        return "(secret)" if self.kind == "text" else f"({self.kind} {self.where})"

    def reveal(self, environment: Mapping[str, str] | None = None) -> str:
        """The secret itself. Raises ProjectError."""
        if self.kind == "text":
            return self.where
        if self.kind == "env":
            value = (os.environ if environment is None else environment).get(self.where, "")
            if not value:
                raise ProjectError("SECRET_NOT_SET", f"the environment variable {self.where} is not set", "", f"export {self.where}=...")
            return value
        try:
            value = Path(self.where).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror or "" if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ProjectError("SECRET_FILE", f"the secret's file {self.where} cannot be read", why, "write the secret into it") from error
        if not value:
            raise ProjectError("SECRET_FILE", f"the secret's file {self.where} is empty", "", "write the secret into it")
        return value
