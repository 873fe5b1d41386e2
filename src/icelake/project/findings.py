"""What is unsafe about a project itself: secrets written out, secrets others can read, a lake that cannot be written to.

Reads only; shows no secret. What is wrong about the servers is for their own rooms to find.
"""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from icelake.errors import ProjectError
from icelake.project.project import Project, S3Settings
from icelake.project.secret import Secret

_LOOPBACK = re.compile(r"http://(localhost|127\.[0-9.]+|\[::1\])(:\d+)?$")
_PASSWORD = re.compile(r"\bpassword\s*=\s*\S|://[^/@:\s]*:[^/@\s]+@", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Finding:
    """``fix`` is the command or the line that mends it. ``source`` is "" when it is about the whole project."""

    source: str
    level: Literal["ok", "note", "warning", "problem"]
    code: str
    what: str
    fix: str


def findings(project: Project) -> list[Finding]:
    """What a careful person would say about the project file and its surroundings; never empty."""
    out: list[Finding] = []
    for source in project.sources.values():
        variable = f"{source.name.upper().replace('-', '_')}_DSN"
        try:
            text = source.dsn.reveal()
        except ProjectError as error:
            out.append(Finding(source.name, "problem", error.code, error.what, error.fix))
            continue
        if source.dsn.kind == "text" and _PASSWORD.search(text):
            what = f"the password of {source.name} is written in {project.file.name}"
            out.append(Finding(source.name, "warning", "SECRET_IN_FILE", what, f'dsn = {{ env = "{variable}" }}'))
        if source.dsn.kind == "file" and stat.S_IMODE(Path(source.dsn.where).stat().st_mode) & 0o077:
            what = f"others can read {source.dsn.where}"
            out.append(Finding(source.name, "warning", "SECRET_READABLE", what, f"chmod 600 {source.dsn.where}"))
    if (database := project.catalog.database) is not None:
        out += _reachable(database)
    if project.s3 is not None:
        out += _s3_findings(project.s3)
    place = project.lake
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK | os.X_OK):
        out.append(Finding("", "problem", "LAKE_NOT_WRITABLE", f"{place} cannot be written to", "change its owner, or [lake] folder"))
    out.append(Finding("", "ok", "PROJECT", f"{project.file} is a valid project with {len(project.sources)} source(s)", ""))
    return out


def _reachable(secret: Secret) -> list[Finding]:
    """What is wrong with a secret that belongs to no source."""
    try:
        secret.reveal()
    except ProjectError as error:
        return [Finding("", "problem", error.code, error.what, error.fix)]
    if secret.kind == "file" and stat.S_IMODE(Path(secret.where).stat().st_mode) & 0o077:
        return [Finding("", "warning", "SECRET_READABLE", f"others can read {secret.where}", f"chmod 600 {secret.where}")]
    return []


def _s3_findings(s3: S3Settings) -> list[Finding]:
    out: list[Finding] = []
    for secret in (s3.access_key, s3.secret_key, s3.session_token):
        out += _reachable(secret) if secret is not None else []
    if s3.base().startswith("http://") and not _LOOPBACK.match(s3.base()):
        what = f"the lake's files go to {s3.base()} in clear"
        out.append(Finding("", "warning", "S3_IN_CLEAR", what, "an endpoint that begins with https://"))
    return out
