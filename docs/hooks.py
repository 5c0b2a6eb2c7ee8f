"""What MkDocs needs besides `mkdocs.yml`: files of the repository that the pages link to go into the site.

The pages are read in the repository too, where `../benchmarks/x.csv` leads to the file. A site has no such place.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parent.parent
OUTSIDE = re.compile(r"(\]\()\.\./([^)#\s]+)")
PLACE = "repository"


def on_files(files: Files, config: Any) -> Files:
    """Add the files outside `docs` that pages link to."""
    pages = [file.content_string for file in files.documentation_pages()]
    for path in sorted({match[2] for page in pages for match in OUTSIDE.finditer(page)}):
        place = f"{PLACE}/{path}"
        source = str(ROOT / path)
        files.append(File.generated(config, place, abs_src_path=source, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point the links there."""
    return OUTSIDE.sub(rf"\1{PLACE}/\2", markdown)
