"""The project file becomes a Project: checked once, at the edge, and frozen from then on. Needs pydantic only while loading."""

from icelake.project.findings import Finding, findings
from icelake.project.load import FILE, load_project
from icelake.project.project import (
    CommitSettings,
    Project,
    QuerySettings,
    Reader,
    RetentionSettings,
    S3Settings,
    SourceSettings,
    TableSettings,
    Thinning,
    ValuePolicy,
)
from icelake.project.secret import Secret

__all__ = [
    "FILE",
    "CommitSettings",
    "Finding",
    "Project",
    "QuerySettings",
    "Reader",
    "RetentionSettings",
    "S3Settings",
    "Secret",
    "SourceSettings",
    "TableSettings",
    "Thinning",
    "ValuePolicy",
    "findings",
    "load_project",
]
