"""The project file becomes a Project: checked once, at the edge, and frozen from then on. Needs pydantic only while loading."""

from icelake.project.findings import Finding, findings
from icelake.project.load import FILE, load_project
from icelake.project.project import (
    CatalogSettings,
    CommitSettings,
    OutOfRange,
    Project,
    QuerySettings,
    Reader,
    RetentionSettings,
    S3Keys,
    S3Settings,
    SourceSettings,
    TableSettings,
    Thinning,
)
from icelake.project.secret import Secret

__all__ = [
    "FILE",
    "CatalogSettings",
    "CommitSettings",
    "Finding",
    "OutOfRange",
    "Project",
    "QuerySettings",
    "Reader",
    "RetentionSettings",
    "S3Keys",
    "S3Settings",
    "Secret",
    "SourceSettings",
    "TableSettings",
    "Thinning",
    "findings",
    "load_project",
]
