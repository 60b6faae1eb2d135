"""Counts files and lines by language.

A line is blank, a comment, or code. A comment line begins with a comment marker or lies inside a block
comment that began at the start of a line; comments after code, and documentation strings, count as code.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Dict, List, NamedTuple, Tuple

from common import Contents, Job, Json, main

C_LIKE = "// /* */"
HASH = "#"
MARKUP = "<!-- -->"

# language: (file extensions or whole names, comment markers). Markers: any number that comment out the rest
# of the line; if the last two are a pair, as in `/* */`, they enclose a block.
LANGUAGES = {
    "Ada": ("adb ads", "--"),
    "Assembly": ("asm s", "; # //"),
    "Batch": ("bat cmd", "rem REM ::"),
    "C": ("c h", C_LIKE),
    "C#": ("cs", C_LIKE),
    "C++": ("cc cpp cxx hh hpp hxx ipp", C_LIKE),
    "Clojure": ("clj cljc cljs edn", ";"),
    "CMake": ("cmake CMakeLists.txt", HASH),
    "CSS": ("css", "/* */"),
    "CSV": ("csv tsv", ""),
    "Dart": ("dart", C_LIKE),
    "Dockerfile": ("dockerfile Dockerfile Containerfile", HASH),
    "Elixir": ("ex exs", HASH),
    "Elm": ("elm", "-- {- -}"),
    "Erlang": ("erl hrl", "%"),
    "F#": ("fs fsi fsx", "// (* *)"),
    "Fortran": ("f f90 f95 f03", "!"),
    "Go": ("go", C_LIKE),
    "Go module": ("go.mod go.work", "//"),
    "Gradle": ("gradle", C_LIKE),
    "GraphQL": ("graphql gql", HASH),
    "Groovy": ("groovy Jenkinsfile", C_LIKE),
    "Haskell": ("hs lhs", "-- {- -}"),
    "HTML": ("html htm xhtml", MARKUP),
    "INI": ("ini cfg conf properties editorconfig", "# ;"),
    "Java": ("java", C_LIKE),
    "JavaScript": ("js mjs cjs jsx", C_LIKE),
    "JSON": ("json jsonc json5 jsonl webmanifest", ""),
    "Julia": ("jl", "# #= =#"),
    "Jupyter notebook": ("ipynb", ""),
    "Just": ("just justfile Justfile", HASH),
    "Kotlin": ("kt kts", C_LIKE),
    "Less": ("less", C_LIKE),
    "Lisp": ("lisp lsp cl el scm ss rkt", ";"),
    "Lock file": (
        "lock Cargo.lock package-lock.json npm-shrinkwrap.json yarn.lock pnpm-lock.yaml poetry.lock uv.lock "
        "Pipfile.lock Gemfile.lock composer.lock go.sum flake.lock bun.lockb",
        "",
    ),
    "Lua": ("lua", "-- --[[ ]]"),
    "Makefile": ("mk mak Makefile makefile GNUmakefile", HASH),
    "Markdown": ("md markdown mdx", MARKUP),
    "Nix": ("nix", "# /* */"),
    "Objective-C": ("m mm", C_LIKE),
    "OCaml": ("ml mli", "(* *)"),
    "Pascal": ("pas pp dpr", "// { }"),
    "Patch": ("patch diff", ""),
    "Perl": ("pl pm t", "# =pod =cut"),
    "PHP": ("php phtml", "# // /* */"),
    "PowerShell": ("ps1 psm1 psd1", "# <# #>"),
    "Protocol Buffers": ("proto", C_LIKE),
    "Python": ("py pyi pyw", HASH),
    "R": ("r R rmd", HASH),
    "reStructuredText": ("rst", ""),
    "Roff": ("1 5 7 8 man roff", ""),
    "Ruby": ("rb rake gemspec ru Rakefile Gemfile", "# =begin =end"),
    "Rust": ("rs", C_LIKE),
    "Sass": ("sass scss", C_LIKE),
    "Scala": ("scala sbt sc", C_LIKE),
    "Shell": ("sh bash zsh fish ksh bats", HASH),
    "Solidity": ("sol", C_LIKE),
    "SQL": ("sql", "-- /* */"),
    "Svelte": ("svelte", MARKUP),
    "SVG": ("svg", MARKUP),
    "Swift": ("swift", C_LIKE),
    "Terraform": ("tf tfvars hcl", "# // /* */"),
    "TeX": ("tex sty cls bib", "%"),
    "Text": ("txt text LICENSE COPYING NOTICE AUTHORS README CHANGELOG", ""),
    "TOML": ("toml", HASH),
    "TypeScript": ("ts tsx mts cts", C_LIKE),
    "Vim script": ("vim vimrc", '"'),
    "Vue": ("vue", MARKUP),
    "XML": ("xml xsd xsl xslt plist csproj vbproj fsproj", MARKUP),
    "YAML": ("yaml yml", HASH),
    "Zig": ("zig", "//"),
}
OTHER = "Other"
BLOCK_OPENERS = {"/*", "<!--", "{-", "(*", "{", "<#", "#=", "--[[", "=pod", "=begin"}
INTERPRETERS = {
    "sh": "Shell",
    "bash": "Shell",
    "dash": "Shell",
    "zsh": "Shell",
    "ksh": "Shell",
    "fish": "Shell",
    "python": "Python",
    "node": "JavaScript",
    "deno": "TypeScript",
    "ruby": "Ruby",
    "perl": "Perl",
    "php": "PHP",
    "lua": "Lua",
    "Rscript": "R",
    "make": "Makefile",
    "elixir": "Elixir",
}
SHEBANG = re.compile(rb"#!\s*(?:\S*/)?([^/\s]+)(?:\s+(?:-\S+\s+)*(\S+))?")


class Comments(NamedTuple):
    """How a language writes comments; no block comments where the signs are empty."""

    line: Tuple[bytes, ...]
    block_open: bytes
    block_close: bytes


class Lines(NamedTuple):
    """How many lines of each kind a file has; the rest is code."""

    total: int
    blank: int
    comment: int


def comments_of(markers: str) -> Comments:
    """Read the compact notation of `LANGUAGES`."""
    parts = [part.encode("ascii") for part in markers.split()]
    if len(parts) >= 2 and parts[-2].decode("ascii") in BLOCK_OPENERS:
        return Comments(tuple(parts[:-2]), parts[-2], parts[-1])
    return Comments(tuple(parts), b"", b"")


COMMENTS = {language: comments_of(markers) for language, (_, markers) in LANGUAGES.items()}
COMMENTS[OTHER] = comments_of("")
BY_NAME = {name: language for language, (names, _) in LANGUAGES.items() for name in names.split()}


def language_of(path: str, data: bytes) -> str:
    """The language of a file, by its whole name, its extension, or the interpreter that its first line names."""
    name = os.path.basename(path)
    if name in BY_NAME:
        return BY_NAME[name]
    stem, _, extension = name.rpartition(".")
    if stem or (extension and "." in name):
        return BY_NAME.get(extension) or BY_NAME.get(extension.lower(), OTHER)
    shebang = SHEBANG.match(data[:200])
    if not shebang:
        return OTHER
    program = shebang.group(1)
    if program == b"env" and shebang.group(2):
        program = shebang.group(2).rsplit(b"/", 1)[-1]
    return INTERPRETERS.get(program.decode("ascii", "replace").rstrip("0123456789."), OTHER)


def count_lines(data: bytes, comments: Comments) -> Lines:
    """Count the lines of a file; the last one needs no line end."""
    if not data:
        return Lines(0, 0, 0)
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    blank = comment = 0
    inside = False
    opening, closing, markers = comments.block_open, comments.block_close, comments.line
    for line in lines:
        line = line.strip()
        if inside:
            comment += 1
            inside = closing not in line
        elif not line:
            blank += 1
        elif opening and line.startswith(opening):
            comment += 1
            inside = closing not in line[len(opening) :]
        elif markers and line.startswith(markers):
            comment += 1
    return Lines(len(lines), blank, comment)


def languages(job: Job) -> Tuple[Json, Json]:
    """Files, lines and bytes of each language, most lines first, the unknown last."""
    snapshot = job.load("snapshot")
    own = [file for file in snapshot["files"] if not file["vendored"]]
    contents = Contents(snapshot["top"], own)
    table: Dict[str, Json] = {}
    for file, data in contents:
        name = language_of(file["path"], data)
        lines = count_lines(data, COMMENTS[name])
        row = table.setdefault(name, {"language": name, "files": 0, "lines": 0, "blank": 0, "comment": 0, "bytes": 0})
        row["files"] += 1
        row["lines"] += lines.total
        row["blank"] += lines.blank
        row["comment"] += lines.comment
        row["bytes"] += len(data)
    rows: List[Json] = sorted(table.values(), key=lambda row: (-row["lines"], row["language"]))
    rows.sort(key=lambda row: row["language"] == OTHER)
    skipped = dict(contents.skipped, vendored=len(snapshot["files"]) - len(own))
    total = sum(row["lines"] for row in rows)
    return {"languages": rows, "skipped": skipped}, {"languages": len(rows), "lines": total, "skipped": skipped}


if __name__ == "__main__":
    sys.exit(main("languages", languages))
