"""Java with locked jars on its class path, as the argument list of a process.

Promises the jars a lock file names whatever else is installed; what is not there yet is downloaded to the environment's ``maven`` folder.
Needs Java 17 or 21. Fails with ``ProjectError`` JAVA_NOT_FOUND, else as ``icelake.stack.maven`` does.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from icelake.errors import ProjectError
from icelake.stack.maven import fetched, locked

VERSIONS = (17, 21)
"""Those that Iceberg 1.11 and Spark 4.1 both run on."""


def java_home() -> Path | None:
    """The first of JAVA_HOME, ``java`` on PATH and /usr/lib/jvm that is such a Java, with the vector module that Spark wants."""
    places = [Path(os.environ["JAVA_HOME"])] if os.environ.get("JAVA_HOME") else []
    if on_path := shutil.which("java"):
        places.append(Path(on_path).resolve().parent.parent)
    places += sorted(Path("/usr/lib/jvm").glob("*"))
    for place in places:
        java = place / "bin" / "java"
        if not os.access(java, os.X_OK):
            continue
        asked = [str(java), "-XX:-UsePerfData", "--add-modules=jdk.incubator.vector", "-version"]
        said = subprocess.run(asked, capture_output=True, text=True, check=False)
        version = re.search(r'version "(\d+)', said.stderr)
        if said.returncode == 0 and version and int(version[1]) in VERSIONS:
            return place
    return None


def command(lock: Path, main: str, *words: str, folder: Path, options: tuple[str, ...] = ()) -> list[str]:
    """How to run the class ``main`` of the jars in ``lock``. Temporary files go to ``folder``; ``options`` are the JVM's."""
    home = java_home()
    if home is None:
        raise ProjectError(
            "JAVA_NOT_FOUND",
            f"no Java {' or '.join(map(str, VERSIONS))} was found",
            "it is looked for in JAVA_HOME, on PATH and in /usr/lib/jvm",
            "install one of them, or say where it is in JAVA_HOME",
        )
    jars = ":".join(str(fetched(jar, Path(sys.prefix) / "maven")) for jar in locked(lock))
    return [f"{home}/bin/java", "-XX:-UsePerfData", f"-Djava.io.tmpdir={folder}", *options, "-cp", jars, main, *words]
