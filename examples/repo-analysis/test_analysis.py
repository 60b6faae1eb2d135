"""Tests of the repository analysis: `python3 -B -m unittest discover -s examples/repo-analysis`."""

from __future__ import annotations

import json
import os
import random
import string
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple
from unittest import mock

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import commits  # noqa: E402
import contributors  # noqa: E402
import dependencies  # noqa: E402
import languages  # noqa: E402
import report  # noqa: E402
import secret_scan  # noqa: E402
import todo_age  # noqa: E402
import todos  # noqa: E402
import toml_lite  # noqa: E402
from common import EXIT_TRY_AGAIN, Contents, raw, show, text, write_atomically  # noqa: E402

MIXED = string.ascii_letters + string.digits


def made_up(prefix: str, length: int, alphabet: str = MIXED) -> str:
    """A secret that is none. Made here, so that no scanner of this repository finds one in this file."""
    return prefix + "".join(random.Random(length).choices(alphabet, k=length))


class Languages(unittest.TestCase):
    def check(self, name: str, source: str, expected: Tuple[str, int, int, int]) -> None:
        data = source.encode()
        language = languages.language_of(name, data)
        self.assertEqual((language, *languages.count_lines(data, languages.COMMENTS[language])), expected)

    def test_lines_are_blank_or_comment_or_code(self) -> None:
        self.check("a.rs", "// one\n\nfn f() {} // after code\n/* two\n\nthree */\nend", ("Rust", 7, 1, 4))
        self.check("a.py", "#!/usr/bin/python3\nx = 1\n\n", ("Python", 3, 1, 1))
        self.check("a.html", "<!-- a -->\n<p>\n<!--\nb\n-->\n", ("HTML", 5, 0, 4))
        self.check("a.sql", "-- a\nselect 1;\r\n\r\n", ("SQL", 3, 1, 1))

    def test_an_empty_file_has_no_lines(self) -> None:
        self.check("a.go", "", ("Go", 0, 0, 0))

    def test_a_file_is_known_by_name_extension_or_interpreter(self) -> None:
        for name, first_line, language in (
            ("deep/Makefile", "", "Makefile"),
            ("Cargo.lock", "", "Lock file"),
            ("LIB.C.JS", "", "JavaScript"),
            ("run", "#!/bin/sh\n", "Shell"),
            ("run", "#!/usr/bin/env -S python3.11 -u\n", "Python"),
            ("run", "nothing", "Other"),
            (".gitignore", "", "Other"),
        ):
            self.assertEqual(languages.language_of(name, first_line.encode()), language, name)


class Secrets(unittest.TestCase):
    def rules(self, line: str, path: str = "src/app.py") -> List[str]:
        return [finding.rule for finding in secret_scan.scan(path, line.encode())]

    def test_well_known_tokens_are_found(self) -> None:
        for token, rule in (
            (made_up("ghp_", 36), "GitHub token"),
            (made_up("AKIA", 16, string.ascii_uppercase + "234567"), "AWS access key"),
            (made_up("glpat-", 20), "GitLab token"),
            (made_up("npm_", 36), "npm token"),
            (made_up("AIza", 35), "Google API key"),
            (made_up("-----BEGIN RSA PRIVATE " + "KEY-----\n", 64), "Private key"),
            ("postgres://app:" + made_up("", 12) + "@db.internal/app", "Password in a URL"),
        ):
            self.assertEqual(self.rules(f"call({token!r})".replace("\\n", "\n")), [rule], rule)

    def test_a_random_value_of_a_telling_name_is_found(self) -> None:
        value = made_up("", 40)
        self.assertEqual(len(self.rules(f'API_KEY = "{value}"')), 1)
        self.assertEqual(len(self.rules(f'"clientSecret": "{value}",')), 1)
        self.assertEqual(len(self.rules(f"auth_token: {value}", "deploy.yaml")), 1)

    def test_what_only_looks_like_a_secret_is_not_reported(self) -> None:
        value = made_up("", 40)
        for line in (
            f'checksum = "{value}"',
            f"auth_token = {value}",
            'api_key = "your-api-key-goes-here-123"',
            'password = "${DATABASE_PASSWORD_2}"',
            'token = "refreshTokenEndpointV2"',
            'secret = "arn:aws:secretsmanager:eu-west-1:1"',
            'token = os.environ["GITHUB_TOKEN_2"]',
            "url = 'postgres://user:password@localhost/db'",
            "key = AKIA" + "IOSFODNN7" + "EXAMPLE",
            f'api_key = "{value}"  # gitleaks:allow',
        ):
            self.assertEqual(self.rules(line), [], line)

    def test_lock_and_example_files_are_searched_for_well_known_tokens_only(self) -> None:
        value, token = made_up("", 40), made_up("ghp_", 36)
        for path in ("package-lock.json", "config.env.example"):
            self.assertEqual(self.rules(f'"token": "{value}"', path), [])
            self.assertEqual(self.rules(f'"url": "{token}"', path), ["GitHub token"])

    def test_confidence_is_low_in_tests_and_prose(self) -> None:
        line = made_up("ghp_", 36).encode()
        levels = [secret_scan.scan(path, line)[0].confidence for path in ("a.py", "tests/a.py", "README.md")]
        self.assertEqual(levels, ["high", "low", "low"])

    def test_a_finding_names_the_line_and_never_the_value(self) -> None:
        token = made_up("ghp_", 36)
        findings = secret_scan.scan("a.py", f"\n\nx = '{token}'\n".encode())
        self.assertEqual([(finding.line, finding.redacted) for finding in findings], [(3, "ghp_… (40 characters)")])

    def test_quoted_text_is_scrubbed(self) -> None:
        token, value = made_up("ghp_", 36), made_up("", 40)
        scrubbed = secret_scan.scrub(f"rotate {token}, then password={value}")
        self.assertNotIn(token[6:], scrubbed)
        self.assertNotIn(value[6:], scrubbed)
        self.assertTrue(scrubbed.startswith("rotate ghp_… (40 characters), then password="))
        self.assertEqual(secret_scan.scrub("nothing here \udcff"), "nothing here \udcff")


class Todos(unittest.TestCase):
    def note(self, line: str) -> Optional[Tuple[str, Optional[str], str]]:
        notes = list(todos.parse(line.encode()))
        return (notes[0]["marker"], notes[0]["owner"], notes[0]["text"]) if notes else None

    def test_a_marker_in_a_comment_or_with_a_colon_is_a_note(self) -> None:
        for line, expected in (
            ("// TODO: split this", ("TODO", None, "split this")),
            ("x = 1  # FIXME(ann): off by one", ("FIXME", "ann", "off by one")),
            ("/* HACK around the driver */", ("HACK", None, "around the driver")),
            ("<!-- XXX - wrong -->", ("XXX", None, "wrong")),
            ("TODO: plain text", ("TODO", None, "plain text")),
            ("# TODO", ("TODO", None, "")),
        ):
            self.assertEqual(self.note(line), expected, line)

    def test_the_words_in_other_company_are_no_notes(self) -> None:
        for line in (
            "# the markers TODO, FIXME",
            'if word == "TODO":',
            "TODOS = 1",
            "mktemp /tmp/x.XXXXXX",
            "my TODO list",
        ):
            self.assertIsNone(self.note(line), line)

    def test_lines_are_counted_and_long_texts_cut(self) -> None:
        (note,) = todos.parse(b"a\nb\n# TODO: " + b"x" * 500)
        self.assertEqual((note["line"], len(note["text"])), (3, todos.MAX_TEXT))

    def test_blame_output_gives_author_and_time_of_each_line(self) -> None:
        lines = ["a" * 40 + " 3 7 1", "author Ann \udcff", "author-time 1700000000", "filename x", "\tauthor-time 5"]
        self.assertEqual(
            todo_age.parse(raw("\n".join(lines) + "\n")), {7: {"author": "Ann \udcff", "time": 1700000000}}
        )


class Dependencies(unittest.TestCase):
    def check(self, path: str, source: str, expected: List[Tuple[str, str, str]]) -> None:
        kind = dependencies.manifest_kind(path)
        assert kind is not None
        self.assertEqual([tuple(one) for one in kind[1](source)], expected, path)

    CARGO = (
        '[dependencies]\na = "1.2" # why\nb = { version = "0.3", features = ["x"] }\nc = { path = "../c" }\n'
        "d.workspace = true\n[dev-dependencies.e]\ngit = 'https://h/e'\n"
        "[target.'cfg(unix)'.dependencies]\nf = '4'\n[workspace.dependencies]\ng = '5'\n"
    )
    CARGO_FOUND = [
        ("g", "5", "workspace"),
        ("a", "1.2", "runtime"),
        ("b", "0.3", "runtime"),
        ("e", "git https://h/e", "dev"),
        ("f", "4", "runtime"),
    ]

    def test_each_kind_of_manifest_is_read(self) -> None:
        self.check("Cargo.toml", self.CARGO, self.CARGO_FOUND)
        self.check("a/package.json", '{"devDependencies": {"x": "^1"}}', [("x", "^1", "dev")])
        self.check(
            "pyproject.toml",
            '[project]\ndependencies = [\n  "a[b]>=1,<2; python_version>\'3\'",\n  "c",\n]\n'
            '[tool.poetry.group.test.dependencies]\nd = "^3"\n',
            [("a", ">=1,<2", "runtime"), ("c", "any", "runtime"), ("d", "^3", "group test")],
        )
        self.check("requirements-dev.txt", "# a\n-r b.txt\nx==1 --hash=sha256:0\n", [("x", "==1", "runtime")])
        self.check(
            "go.mod",
            "module m\nrequire (\n\ta.b/c v1.0.0\n\td v2 // indirect\n)\nrequire e v3\n",
            [("a.b/c", "v1.0.0", "runtime"), ("d", "v2", "indirect"), ("e", "v3", "runtime")],
        )
        self.check(
            "Gemfile",
            "gem 'a', '~> 1.0', require: 'b'\ngem \"c\"\n",
            [("a", "~> 1.0", "runtime"), ("c", "any", "runtime")],
        )
        self.check(
            "pom.xml",
            "<p xmlns='x'><dependency><groupId>g</groupId><artifactId>a</artifactId><version>1</version>"
            "<scope>test</scope></dependency></p>",
            [("g:a", "1", "test")],
        )
        self.check("build.gradle.kts", 'testImplementation("g:a:1")\n', [("g:a", "1", "dev")])
        self.check("x.csproj", '<P><PackageReference Include="A" Version="1"/></P>', [("A", "1", "runtime")])

    def test_the_fallback_for_old_pythons_reads_the_same(self) -> None:
        with mock.patch.object(dependencies, "standard_toml", None):
            self.check("Cargo.toml", self.CARGO, self.CARGO_FOUND)
        document = toml_lite.load('a = """x\n\\"y"""\n"b.c".d = [1, {e = "f"}]\n[[t]]\nk = true\n[[t]]\n[t.u]\n')
        self.assertEqual(document, {"a": 'x\n"y', "b.c": {"d": ["1", {"e": "f"}]}, "t": [{"k": "true"}, {"u": {}}]})
        for broken in ("a = [1", "a", "= 1", "a = {b = 1", "a = 1 2", "a = " + "[" * 99):
            with self.assertRaises(ValueError):
                toml_lite.load(broken)

    def test_an_xml_manifest_with_entities_is_refused(self) -> None:
        with self.assertRaises(ValueError):
            list(dependencies.maven('<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>'))


class History(unittest.TestCase):
    def test_weeks_begin_on_monday_and_quiet_ones_are_kept(self) -> None:
        sunday, monday, later = 1_700_438_399, 1_700_438_400, 1_700_438_400 + 14 * 86_400
        made = [commits.Commit(moment, "Ann", "ann@x", False) for moment in (sunday, monday, monday, later)]
        weeks = [(week["week"], week["commits"]) for week in commits.by_week(made)]
        self.assertEqual(weeks, [("2023-11-13", 1), ("2023-11-20", 2), ("2023-11-27", 0), ("2023-12-04", 1)])

    def test_an_author_is_one_address_under_the_newest_name(self) -> None:
        made = [commits.Commit(2, "Ann B", "ANN@x", False), commits.Commit(1, "Ann", "ann@x", False)]
        made += [commits.Commit(3, "Bob", "bob@x", False)]
        rows = contributors.by_author(made)
        self.assertEqual([(row["name"], row["commits"]) for row in rows], [("Ann B", 2), ("Bob", 1)])
        self.assertEqual(contributors.half_of_the_work(rows), 1)


class Report(unittest.TestCase):
    def test_bars_are_exact_to_an_eighth_and_never_vanish(self) -> None:
        self.assertEqual([report.bar(value, 8, 1) for value in (0, 1, 4, 8)], ["", "▏", "▌", "█"])
        self.assertEqual(report.bar(1, 1_000_000), "▏")
        self.assertEqual(report.sparkline([0, 1, 8]), "·▁█")
        self.assertEqual(report.sparkline([]), "")

    def test_text_of_the_repository_cannot_become_markup(self) -> None:
        self.assertEqual(report.cell("a|b\n<i>`c`"), "a\\|b\\\\n&lt;i&gt;\\`c\\`")
        self.assertEqual(report.cell("[x](http://y)"), "\\[x\\](http\\://y)")
        self.assertEqual(report.cell("snake_case _em_"), "snake_case \\_em\\_")
        self.assertEqual(show("\udcff\u202e\x1b[2J"), "\\xff\\u202e\\x1b[2J")

    def test_sizes_and_numbers_are_short(self) -> None:
        self.assertEqual([report.size(n) for n in (0, 1023, 1536, 3 << 20)], ["0 B", "1023 B", "1.5 KiB", "3.0 MiB"])
        self.assertEqual(report.plural(1, "file") + ", " + report.plural(1234, "file"), "1 file, 1,234 files")

    def test_an_unfinished_step_is_named(self) -> None:
        counts = {"files": 0, "bytes": 0, "symlinks": 0, "submodules": 0, "conflicts": 0, "missing": 0}
        snapshot = {"name": "x", "head": None, "branch": None, "shallow": False, "taken_at": 0, "counts": counts}
        document = report.render(snapshot, {name: None for name in report.STEPS})
        self.assertIn("see the task secret-scan of the run", document)
        self.assertIn("the repository tracks no files", document)


class WholeRun(unittest.TestCase):
    """The steps as the plan runs them, on real repositories."""

    STEPS = ("languages", "largest", "commits", "contributors", "todos", "todo_age", "secret_scan", "dependencies")

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.root = Path(directory.name)
        self.repo = self.root / "repo"
        self.repo.mkdir()
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        self.environment.update(GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_NOSYSTEM="1", HOME=str(self.root))
        self.git("init", "--quiet")

    def git(self, *arguments: str) -> None:
        identity = ("-c", "user.name=Ann | B", "-c", "user.email=ann@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(self.repo), *identity, *arguments], check=True, env=self.environment)

    def script(self, name: str, *arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-B", str(HERE / name), "--run-dir", str(self.root / "run"), *arguments]
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.environment)

    def run_plan(self) -> str:
        results: Dict[str, Any] = {}
        out = self.root / "out" / "report.md"
        commands = [("snapshot.py", "--repo", str(self.repo))] + [(f"{step}.py",) for step in self.STEPS]
        for command in commands + [("report.py", "--out", str(out))]:
            done = self.script(*command)
            self.assertEqual(done.returncode, 0, done.stderr.decode())
            results[command[0]] = json.loads(done.stdout)
        self.assertEqual(results["report.py"]["unfinished"], [])
        return out.read_text(encoding="utf-8")

    def test_an_empty_repository_gets_a_report_that_says_so(self) -> None:
        document = self.run_plan()
        self.assertIn("no commits yet", document)
        self.assertIn("The repository has no commits yet.", document)
        self.assertIn("the repository tracks no files", document)

    def test_odd_files_are_counted_and_secrets_stay_out_of_every_file(self) -> None:
        token = made_up("ghp_", 36)
        (self.repo / "a.py").write_text(f"# TODO(eve): drop {token}\n", encoding="utf-8")
        (self.repo / "new\nline.rs").write_text("// FIXME: odd name\n", encoding="utf-8")
        (self.repo / "data.bin").write_bytes(b"\0" * 100)
        (self.repo / "link").symlink_to("/etc/passwd")
        with open(os.path.join(raw(str(self.repo)), b"caf\xe9.go"), "wb") as file:
            file.write(b"// \xff\npackage x\n")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "first")
        document = self.run_plan()
        for part in (
            "| Go | 1 | 2 |",
            "caf\\\\xe9.go",
            "new\\\\nline.rs:1",
            "Ann \\| B",
            "1 symbolic link",
            "GitHub token",
        ):
            self.assertIn(part, document)
        for kept in [self.root / "out" / "report.md", *(self.root / "run").iterdir()]:
            self.assertNotIn(token[8:], kept.read_text(encoding="utf-8"), kept)

    def test_a_locked_index_asks_for_another_attempt(self) -> None:
        lock = self.repo / ".git" / "index.lock"
        lock.touch()
        done = self.script("snapshot.py", "--repo", str(self.repo))
        self.assertEqual(done.returncode, EXIT_TRY_AGAIN)
        self.assertIn(b"another Git command is changing the index", done.stderr)
        lock.unlink()
        self.assertEqual(self.script("snapshot.py", "--repo", str(self.repo)).returncode, 0)

    def test_a_repository_cannot_make_its_reader_run_programs(self) -> None:
        (self.repo / "a.txt").write_text("TODO: x\n", encoding="utf-8")
        (self.repo / ".gitattributes").write_text("*.txt diff=evil filter=evil\n", encoding="utf-8")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "first")
        trace = self.root / "ran"
        for key in ("diff.evil.textconv", "filter.evil.clean", "core.fsmonitor", "gpg.program", "core.pager"):
            self.git("config", key, f"touch {trace};cat")
        self.git("config", "log.showSignature", "true")
        self.run_plan()
        self.assertFalse(trace.exists())

    def test_what_is_no_repository_is_named(self) -> None:
        for path in (self.root / "repo" / "nowhere", self.root):
            done = subprocess.run(
                ["sh", str(HERE / "check-tools.sh"), str(path)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(self.environment, GIT_CEILING_DIRECTORIES=str(self.root.parent)),
            )
            self.assertEqual(done.returncode, 1)
            self.assertIn(b"--var repo=PATH", done.stderr)

    def test_contents_beyond_the_bounds_are_counted_and_not_read(self) -> None:
        contents = Contents(str(self.repo), [{"size": 3 << 20, "oid": "0" * 40}])
        self.assertEqual((list(contents), contents.skipped["too_large"]), ([], 1))

    def test_a_write_that_fails_leaves_the_old_file_and_no_other(self) -> None:
        target = self.root / "file"
        write_atomically(target, b"old")
        with self.assertRaises(TypeError):
            write_atomically(target, None)  # type: ignore[arg-type]
        self.assertEqual(target.read_bytes(), b"old")
        self.assertEqual([path.name for path in self.root.iterdir() if "tmp" in path.name], [])
        self.assertEqual(text(raw("\udcff")), "\udcff")


if __name__ == "__main__":
    unittest.main()
