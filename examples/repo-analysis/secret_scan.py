"""Looks for secrets in the tracked files: well-known tokens, and random-looking values of telling names.

No value found here is ever printed or kept: a finding holds the first few characters and the length.
Only the files of the snapshot are read, not the history behind them.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from typing import Dict, Iterator, List, NamedTuple, Pattern, Tuple

from common import Contents, Job, Json, main, raw, text

KEPT = 500
# A line longer than this is minified or generated; no assignment in it is looked at.
MAX_LINE = 2000
ALLOWED_BY_COMMENT = (b"allowlist secret", b"gitleaks:allow", b"secret-scan: allow")


class Rule(NamedTuple):
    """A well-known kind of secret. `hint` is in every match; a file without it is not searched."""

    name: str
    hint: bytes
    pattern: Pattern[bytes]


def rule(name: str, hint: str, pattern: str) -> Rule:
    """A rule whose secret is the group of the pattern, or the whole match."""
    return Rule(name, hint.encode("ascii"), re.compile(pattern.encode("ascii")))


# The forms are those that the services document, and GitHub's and gitleaks' public lists agree on.
RULES = [
    rule("AWS access key", "AKIA", r"\b(AKIA[A-Z2-7]{16})\b"),
    rule("AWS temporary access key", "ASIA", r"\b(ASIA[A-Z2-7]{16})\b"),
    rule("GitHub token", "gh", r"\b(gh[pousr]_[A-Za-z0-9]{36,251})\b"),
    rule("GitHub fine-grained token", "github_pat_", r"\b(github_pat_[A-Za-z0-9_]{60,250})\b"),
    rule("GitLab token", "glpat-", r"\b(glpat-[A-Za-z0-9_-]{20,64})\b"),
    rule("Slack token", "xox", r"\b(xox[abeoprs]-[A-Za-z0-9-]{20,250})\b"),
    rule("Slack webhook", "hooks.slack.com", r"(https://hooks\.slack\.com/services/[A-Za-z0-9/]{40,60})"),
    rule("Discord webhook", "/api/webhooks/", r"(https://discord(?:app)?\.com/api/webhooks/\d{15,21}/[\w-]{60,80})"),
    rule("Stripe live key", "k_live_", r"\b([sr]k_live_[A-Za-z0-9]{20,200})\b"),
    rule("Google API key", "AIza", r"\b(AIza[A-Za-z0-9_-]{35})(?![A-Za-z0-9_-])"),
    rule("Google OAuth secret", "GOCSPX-", r"\b(GOCSPX-[A-Za-z0-9_-]{28})(?![A-Za-z0-9_-])"),
    rule("npm token", "npm_", r"\b(npm_[A-Za-z0-9]{36})\b"),
    rule("PyPI token", "pypi-AgE", r"\b(pypi-AgE[A-Za-z0-9_-]{50,500})"),
    rule("crates.io token", "cio", r"\b(cio[A-Za-z0-9]{32})\b"),
    rule("SendGrid key", "SG.", r"\b(SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43})(?![A-Za-z0-9_-])"),
    rule("Anthropic key", "sk-ant-", r"\b(sk-ant-[a-z0-9]{3,8}-[A-Za-z0-9_-]{60,120})"),
    rule("OpenAI key", "T3BlbkFJ", r"\b(sk-[A-Za-z0-9_-]{10,100}T3BlbkFJ[A-Za-z0-9_-]{10,100})"),
    rule("Hugging Face token", "hf_", r"\b(hf_[A-Za-z]{34})\b"),
    rule("DigitalOcean token", "_v1_", r"\b(do[opr]_v1_[a-f0-9]{64})\b"),
    rule("Shopify token", "shp", r"\b(shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32})\b"),
    rule("Telegram bot token", ":AA", r"\b(\d{8,10}:AA[A-Za-z0-9_-]{33})(?![A-Za-z0-9_-])"),
    rule("Azure storage key", "AccountKey=", r"AccountKey=([A-Za-z0-9+/]{86}==)"),
    rule("age secret key", "AGE-SECRET-KEY-1", r"\b(AGE-SECRET-KEY-1[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58})\b"),
    rule("JSON Web Token", "eyJ", r"(?<![\w-])(eyJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{20,1000})"),
    rule(
        "Private key",
        "PRIVATE KEY",
        r"(-----BEGIN (?:[A-Z]{2,10} )?PRIVATE KEY(?: BLOCK)?-----(?:\\n|[\s\"'+,])+[A-Za-z0-9+/=:, -]{24})",
    ),
    rule("Password in a URL", "://", r"://[^\s/:@\"'`<>]{1,80}:([^\s/:@\"'`<>]{6,100})@[\w.\[-]"),
]
URL_RULE = "Password in a URL"

# `name = "value"`, `"name": "value"`, `name: value`, `name => 'value'`, where the name says what the value is.
TELLING = re.compile(
    rb"""(?ix)
    (?P<name> passw(?:or)?d | passphrase | secret | api[_.-]?key | access[_.-]?key | private[_.-]?key | auth[_.-]?key
            | token | credentials? | client[_.-]?secret | encryption[_.-]?key | signing[_.-]?key )
    [\w.-]{0,20} ["']? \s{0,4} (?: := | => | = | : ) \s{0,4}
    (?: (?P<quote>["'`]) (?P<quoted>[^"'`\s]{16,200}) (?P=quote) | (?P<bare>[^"'`\s,;(){}\[\]<>$]{16,200}) \s* $ )"""
)
TELLING_WORDS = (b"passw", b"passphrase", b"secret", b"token", b"credential") + tuple(
    mark + b"key" for mark in (b"_", b"-", b".", b"h", b"i", b"e", b"g", b"n", b"s")
)
# In these an unquoted value is a string; in program text it is an expression.
BARE_VALUES = re.compile(r"(^|/)\.?env(\.|$)|\.(ya?ml|ini|cfg|conf|properties|toml|env|tfvars|netrc)$", re.IGNORECASE)

LOCK_FILE = re.compile(
    r"(^|/)([^/]*\.(lock|sum)|package-lock\.json|npm-shrinkwrap\.json|pnpm-lock\.yaml|gradle-wrapper\.properties)$",
    re.IGNORECASE,
)
EXAMPLE_FILE = re.compile(r"\.(example|sample|template|tmpl|dist)(\.|$)|(^|/)(examples?|samples?)/", re.IGNORECASE)
TEST_FILE = re.compile(
    r"(^|/)(tests?|__tests__|testdata|fixtures?|spec|mocks?|docs?)/|(^|[/_.-])(test|spec)s?[_.-]|\.(md|rst|adoc)$",
    re.IGNORECASE,
)
PLACEHOLDER = re.compile(
    r"example|sample|dummy|placeholder|change[-_]?me|redacted|your[-_]|my[-_]?(secret|token|password)|insert|replace"
    r"|x{4,}|\*{3,}|\.{3}|<[^>]*>|\$\{|\$\(|\{\{|%\(|%s|todo|abcdef|01234|12345|deadbeef|foobar|lorem|password|secret"
    r"|sandbox|localhost|eyJzdWIiOiIxMjM0NTY3ODkw",
    re.IGNORECASE,
)
BASE64ISH = re.compile(r"[A-Za-z0-9+/_.~=-]+")
HEX = re.compile(r"[0-9a-fA-F]+")
RUNS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+")
# Bits per character. Random hex has nearly 4 and random base64 nearly 6, but a short sample shows fewer;
# English words joined by hyphens stay below 3.7.
MIN_HEX_ENTROPY = 3.0
MIN_ENTROPY = 3.9
# Characters per run of one kind: words have five or more, random base64 under two, random base36 some 2.5.
MAX_MEAN_RUN = 3.3


class Finding(NamedTuple):
    """A likely secret, already redacted."""

    line: int
    rule: str
    confidence: str
    redacted: str


def redact(value: str) -> str:
    """The few leading characters that tell which secret it is, and how long it is."""
    kept = min(4, len(value) // 8)
    return f"{value[:kept]}… ({len(value)} characters)"


def entropy(value: str) -> float:
    """Shannon entropy in bits per character."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


def is_placeholder(value: str) -> bool:
    """Whether a value is one that people write where a secret will stand."""
    return bool(PLACEHOLDER.search(value)) or len(set(value)) < 6


def looks_random(value: str) -> bool:
    """Whether a value looks drawn at random: letters and digits mixed, and too even for words."""
    if is_placeholder(value) or not BASE64ISH.fullmatch(value):
        return False
    if not re.search(r"\d", value) or not re.search(r"[A-Za-z]", value):
        return False
    if HEX.fullmatch(value):
        return len(value) >= 24 and entropy(value) >= MIN_HEX_ENTROPY
    if value.count(".") >= 2 or value.count("/") >= 3 or "://" in value:
        return False
    # A name such as `refreshTokenV2-endpoint` is a few long words; random text changes its kind all the time.
    runs = RUNS.findall(value)
    if sum(map(len, runs)) / len(runs) > MAX_MEAN_RUN:
        return False
    return entropy(value) >= min(MIN_ENTROPY, math.log2(len(value)) - 0.5)


def scrub(line: str) -> str:
    """Text with every likely secret in it redacted, for quoting a file elsewhere in a report."""
    data = raw(line)
    spans = sorted((offset, value) for offset, _, value in candidates("line.env", data))
    pieces, end = [], 0
    for offset, value in spans:
        if offset >= end:
            pieces += [data[end:offset], raw(redact(value))]
            end = offset + len(raw(value))
    return text(b"".join(pieces) + data[end:])


def scan(path: str, data: bytes) -> List[Finding]:
    """The likely secrets of one file, in the order of their lines, one per line and rule."""
    found: Dict[int, Finding] = {}
    for offset, name, value in candidates(path, data):
        line_start = data.rfind(b"\n", 0, offset) + 1
        line_end = data.find(b"\n", offset)
        line = data[line_start : line_end if line_end >= 0 else len(data)]
        if any(mark in line for mark in ALLOWED_BY_COMMENT):
            continue
        number = data.count(b"\n", 0, offset) + 1
        # A value that a well-known rule has named is not named again as merely random.
        found.setdefault(number, Finding(number, name, confidence(path, name), redact(value)))
    return [found[number] for number in sorted(found)]


def candidates(path: str, data: bytes) -> Iterator[Tuple[int, str, str]]:
    """(offset, rule, value) of everything that passes the rules."""
    for wanted in RULES:
        if wanted.hint not in data:
            continue
        for match in wanted.pattern.finditer(data):
            value = text(match.group(1))
            if accepted(path, wanted.name, value):
                yield match.start(1), wanted.name, value
    if not LOCK_FILE.search(path) and not EXAMPLE_FILE.search(path):
        yield from telling_assignments(path, data)


def accepted(path: str, name: str, value: str) -> bool:
    """Whether the match of a well-known rule is worth a reader's time."""
    if name == "Private key":
        return not EXAMPLE_FILE.search(path)
    if name == URL_RULE:
        return not EXAMPLE_FILE.search(path) and not is_placeholder(value) and entropy(value) >= 2.5
    return not is_placeholder(value[4:])


def telling_assignments(path: str, data: bytes) -> Iterator[Tuple[int, str, str]]:
    """Random-looking values that are assigned to a telling name."""
    lowered = data.lower()
    if not any(word in lowered for word in TELLING_WORDS):
        return
    bare_allowed = bool(BARE_VALUES.search(path))
    offset = 0
    for line, lowered_line in zip(data.split(b"\n"), lowered.split(b"\n")):
        if 20 <= len(line) <= MAX_LINE and any(word in lowered_line for word in TELLING_WORDS):
            for match in TELLING.finditer(line):
                group = "quoted" if match.group("quoted") else "bare"
                value = text(match.group(group))
                if (group == "quoted" or bare_allowed) and looks_random(value):
                    yield offset + match.start(group), "Random value of a telling name", value
        offset += len(line) + 1


def confidence(path: str, name: str) -> str:
    """How likely a finding is a real secret: low in tests, examples and prose, high for well-known forms."""
    if TEST_FILE.search(path) or EXAMPLE_FILE.search(path):
        return "low"
    return "medium" if name.startswith("Random") or name == URL_RULE else "high"


def secrets(job: Job) -> Tuple[Json, Json]:
    """The likely secrets of the snapshot, the surest first."""
    snapshot = job.load("snapshot")
    contents = Contents(snapshot["top"], snapshot["files"])
    findings: List[Json] = []
    for file, data in contents:
        for finding in scan(file["path"], data):
            findings.append(dict(finding._asdict(), path=file["path"]))
    order = ("high", "medium", "low")
    findings.sort(key=lambda finding: (order.index(finding["confidence"]), finding["path"], finding["line"]))
    counts = {level: sum(finding["confidence"] == level for finding in findings) for level in order}
    result = {"findings": findings[:KEPT], "counts": counts, "skipped": contents.skipped}
    return result, counts


if __name__ == "__main__":
    sys.exit(main("secret_scan", secrets))
