"""Snippets of a Caddyfile: their tokens, and whether they stay in the block that they are put in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from settings.problems import reject

# What Caddy's lexer has tokens end by (caddyconfig/caddyfile/lexer.go in v2.11.4 and v2.11.9).
_BETWEEN = re.compile(r"(?:\s+|\\\n|#[^\n]*)*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"|`([^`]*)`', re.DOTALL)
_HEREDOC = re.compile(r"<<([^ \n]*)\n")
_HEREDOC_MARKER = re.compile(r"[A-Za-z0-9_-]+")
_PLAIN = re.compile(r"(?:[^\s\\]|\\\S)+")
_ESCAPES_NOTHING = re.compile(r"\\[\s\"`#]")
_ENDS_ESCAPED = re.compile(r"(?:\A|\n)[^#\n]*\\\n\Z")
_COMMENT_ESCAPES = re.compile(r"[^\S\n]*#[^\n]*\\")


@dataclass(frozen=True)
class Token:
    """One token: ``text`` without its quotes, and the lines that it begins and ends in, from 1.

    Of a heredoc, ``text`` is without whitespace around it.
    """

    text: str
    quoted: bool
    first_line: int
    last_line: int


def tokens(snippet: str) -> Iterator[Token]:
    r"""Yield the tokens of ``snippet`` as Caddy parts them.

    ``snippet`` has no control characters but ``\n`` and ``\t``. Rejects, for
    use in a validator, one that ends amid a token or a line, and backslashes
    that Caddy does not take for what they look like.
    """
    text = snippet.rstrip() + "\n"
    position, line = 0, 1
    while between := _BETWEEN.match(text, position):
        if position and _COMMENT_ESCAPES.match(between[0]):
            reject(
                f"has a backslash in the comment of line {line}, which Caddy lets escape the line's end",
                "Put the comment in a line by itself.",
            )
        position = between.end()
        line += between[0].count("\n")
        if position == len(text):
            if _ENDS_ESCAPED.search(between[0]):
                reject(f"ends in line {line - 1} with a backslash", "Take it out: no line follows.")
            return
        word, quoted, end = _token(text, position, line)
        last_line = line + text.count("\n", position, end)
        yield Token(word, quoted, line, last_line)
        position, line = end, last_line


def _token(text: str, position: int, line: int) -> tuple[str, bool, int]:
    """Return the token at ``position``: its text, whether it is quoted, and where it ends."""
    if found := _QUOTED.match(text, position):
        return found[1] or found[2] or "", True, found.end()
    if text[position] in {'"', "`"}:
        reject(f"has a quotation mark in line {line} that none follows", "Close the quotation.")
    if found := _HEREDOC.match(text, position):
        marker = found[1]
        if not _HEREDOC_MARKER.fullmatch(marker):
            reject(
                f"has a heredoc in line {line} without a name for its end",
                r"Write one such as <<END, or \<< where none begins.",
            )
        end = text.find(marker, found.end())
        if end < 0:
            reject(f"has a heredoc in line {line} that {marker} does not end", f"Write {marker} below it.")
        return text[found.end() : end].strip(), True, end + len(marker)
    if text.startswith("<<", position):
        reject(
            f"has a word in line {line} that begins as a heredoc does",
            r"Write \<<, or put the word in quotation marks.",
        )
    if _ESCAPES_NOTHING.match(text, position):
        reject(
            f"has a backslash in line {line} that escapes nothing",
            "Take it out, or write the word in quotation marks.",
        )
    found = _PLAIN.match(text, position)
    # every character that is no space begins one of these
    assert found is not None  # noqa: S101
    return found[0], False, found.end()


def stays_in_its_block(snippet: str) -> str:
    """Return ``snippet``; reject, for use in a validator, one that is not whole directives of one block."""
    for number, line in enumerate(snippet.split("\n"), start=1):
        if not line.replace("\t", " ").isprintable():
            reject(f"has a character in line {number} that is not to be seen", "Write that line anew.")
        # Caddy puts these in before it parts tokens, so they could hold anything.
        if "{$" in line:
            reject(
                f"has an environment variable of Caddy's container in line {number}, where none of yours is",
                "Write its value, or {secret.NAME} and the value in siteSecrets.",
            )
    found = list(tokens(snippet))
    if not found:
        reject("is empty", "Write directives such as respond /ping 200, or leave it out.")
    _braces_are_paired(found)
    return snippet


def _braces_are_paired(found: Iterable[Token]) -> None:
    begun: list[int] = []
    line_before = 0
    for brace in found:
        begins_line, line_before = brace.first_line > line_before, brace.last_line
        if brace.text not in {"{", "}"}:
            continue
        if brace.quoted:
            # parse.go in v2.11.4 takes it for a brace of the Caddyfile's own, v2.11.9 does not.
            reject(
                f"has a brace alone in quotation marks in line {brace.first_line}",
                "Put something beside it: Caddy may take it for where a block begins or ends.",
            )
        if brace.text == "{":
            if begins_line:
                # Caddy takes it for a directive of that name, and the } after it for the end of the site.
                reject(
                    f"has a {{ at the begin of line {brace.first_line}",
                    "Write it at the end of the line before.",
                )
            begun.append(brace.first_line)
        elif begun:
            begun.pop()
        else:
            reject(f"has a }} in line {brace.first_line} that would end the site's own block", "Take it out.")
    if begun:
        reject(f"has a {{ in line {begun[-1]} that no }} follows", "Write } in a line of its own.")
