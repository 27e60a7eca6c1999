"""Search in documents of one's own: full text, ranked by BM25 (SQLite's FTS5), the same answer every time.

Words are those of `languages.tokens`. A script without spaces is searched by pairs of letters, as Lucene's CJK analysis
does, and English words by their stem (Porter), which does other languages in Latin letters no harm: documents and
queries are stemmed alike.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfinstruct import languages
from selfinstruct.errors import ConfigError, InputError, PluginError
from selfinstruct.formats.inputs import OpenFile, opened
from selfinstruct.formats.reading import open_records
from selfinstruct.formats.scan import Item
from selfinstruct.tools.tool import Tool, failure, text_parameters
from selfinstruct.values import Comparison, Dialogue, Record, Task, ToolResult

if TYPE_CHECKING:
    import sqlite3

MAX_TERMS = 64
"""Terms of a query that are looked for."""

_TEXT_FILES = frozenset({".txt", ".md", ".markdown", ".rst"})
_DATA_FILES = frozenset({".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".gz", ".zst"})
_KEYS = ("text", "content", "body", "passage")
_HEADING = re.compile(r"#{1,6}\s+(.*?)\s*#*")
_SENTENCE_END = re.compile(r"(?<=[.!?;؟۔।॥…])\s+|(?<=[。！？；])")
_UNSPACED_ENDS = ("。", "！", "？", "；")

Document = tuple[str, str]
"""Title and text."""


def search(*, corpus: str | tuple[str, ...], results: int = 3, snippet: int = 300) -> Tool:
    """Full-text search in documents of your own: text, Markdown, JSON lines, any data format.

    Args:
        corpus: files and folders.
        results: most snippets of one search.
        snippet: characters of a snippet.
    """
    paths = [Path(each).expanduser() for each in ([corpus] if isinstance(corpus, str) else corpus)]
    if results < 1 or snippet < 40:
        raise ConfigError(
            f"tool 'search': results must be 1 or more, snippet 40 or more; found {results} and {snippet}"
        )
    index = Index(passage for document in documents(paths) for passage in passages(*document, snippet))
    if not index.size:
        raise InputError(f"{', '.join(map(str, paths))}: there is no text to search in")

    async def run(arguments: Mapping[str, Any]) -> ToolResult:
        return found(await asyncio.to_thread(index.find, arguments["query"], results))

    async def close() -> None:
        index.close()

    return search_tool("search", "Searches documents and returns the passages that fit best.", run, close)


def search_tool(name: str, description: str, run: Any, close: Any = None) -> Tool:
    """Return a tool that is MOSS's web search, whatever it searches."""
    return Tool(
        name=name,
        title="Web search",
        api="Search",
        description=description,
        parameters=text_parameters(query="Key words, such as: highest mountain Africa height."),
        run=run,
        close=close,
        style="items",
    )


def found(snippets: Iterable[str]) -> ToolResult:
    """Return snippets as a result; none at all is a failed search."""
    items = tuple(snippets)
    if not items:
        return failure("no hits")
    return ToolResult("\n".join(f"[{number}] {item}" for number, item in enumerate(items, 1)), items=items)


class Index:
    """Passages in a database of its own, in memory as long as it is small and in a temporary file from then on."""

    def __init__(self, entries: Iterable[Document]) -> None:
        """Take (title, text) of the passages, in the order that decides between equals.

        Raises:
            PluginError: this Python's SQLite has no FTS5.
        """
        import sqlite3

        self._lock = threading.Lock()
        self._database: sqlite3.Connection = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        try:
            self._database.executescript(
                "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF;"
                "CREATE TABLE passages (id INTEGER PRIMARY KEY, title TEXT, text TEXT);"
                # The text comes as terms between spaces: the tokenizer has nothing to do but to split and to stem.
                "CREATE VIRTUAL TABLE terms USING fts5(title, text, letters, content='', tokenize='porter ascii');"
            )
        except sqlite3.OperationalError as error:
            self._database.close()
            raise PluginError(
                f"tool 'search' needs SQLite with FTS5, and that of this Python ({sqlite3.sqlite_version}) was built "
                f"without: {error}. Pythons of python.org, uv, conda and of Linux distributions have it"
            ) from None
        try:
            self._fill(entries)
        except BaseException:
            self._database.close()
            raise

    def _fill(self, entries: Iterable[Document]) -> None:
        self._database.execute("BEGIN")
        self.size = 0
        for self.size, (title, text) in enumerate(entries, 1):
            self._database.execute("INSERT INTO passages VALUES (?, ?, ?)", (self.size, title, text))
            # Letters stand apart, so that the terms of a phrase are neighbours in the text.
            alone = itertools.chain(letters(title), letters(text))
            row = (self.size, *(" ".join(each) for each in (terms(title), terms(text), alone)))
            self._database.execute("INSERT INTO terms (rowid, title, text, letters) VALUES (?, ?, ?, ?)", row)
        self._database.execute("COMMIT")

    def find(self, query: str, count: int) -> list[str]:
        """Return the best passages, each behind its title, and those first that have the query word for word.

        Within both BM25 decides, and of equal ones that which was given first.
        """
        wanted = list(terms(query))[:MAX_TERMS]
        if not wanted:
            return []
        phrase = f'"{" ".join(wanted)}"'  # terms are letters, digits and marks: nothing to be escaped
        either = " OR ".join(f'"{term}"' for term in dict.fromkeys(wanted))
        rows: list[Document] = []
        with self._lock:
            for match in (phrase, either):
                rows += self._database.execute(
                    "SELECT passages.title, passages.text FROM terms JOIN passages ON passages.id = terms.rowid "
                    "WHERE terms MATCH ? ORDER BY bm25(terms, 2.0, 1.0, 1.0), terms.rowid LIMIT ?",
                    (match, 4 * count),  # some may say the same
                )
        texts = (f"{title}: {text}" if title and title not in text else text for title, text in rows)
        return list(dict.fromkeys(texts))[:count]

    def close(self) -> None:
        """Drop the index."""
        with self._lock:
            self._database.close()


def terms(text: str) -> Iterator[str]:
    """Yield the terms of a text: words, and pairs of neighbours where a script has no spaces."""
    for unspaced, run in itertools.groupby(languages.tokens(text), languages.is_unspaced):
        words = list(run)
        yield from map("".join, itertools.pairwise(words)) if unspaced and len(words) > 1 else words


def letters(text: str) -> Iterator[str]:
    """Yield the letters of scripts without spaces, so that a query of one letter finds it."""
    return filter(languages.is_unspaced, languages.tokens(text))


# Documents


def documents(paths: Iterable[Path]) -> Iterator[Document]:
    """Yield (title, text) of every document, folders in the order of their names.

    A text file is one document per heading, a row of a data file is one document.

    Raises:
        InputError: a path is not there, a file is neither text nor data, or one of its rows is not readable.
    """
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if _is_document(file.relative_to(path)) and file.is_file())
            if not files:
                kinds = " ".join(sorted(_TEXT_FILES | _DATA_FILES))
                raise InputError(f"{path}: the folder holds no documents ({kinds})")
            for file in files:
                yield from _documents(file)
        elif path.exists():
            yield from _documents(path)
        else:
            raise InputError(f"{path} does not exist; expected a file or folder of documents to search in")


def _is_document(path: Path) -> bool:
    return path.suffix.lower() in _TEXT_FILES | _DATA_FILES and not any(part.startswith(".") for part in path.parts)


def _documents(path: Path) -> Iterator[Document]:
    if path.suffix.lower() in _TEXT_FILES:
        return _sections(path)
    return _rows(path)


def _sections(path: Path) -> Iterator[Document]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start} is not UTF-8; convert the file first (Chinese: iconv -f GB18030 -t UTF-8)"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    title, fenced = "", False
    lines: list[str] = []
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith("```")
        heading = _HEADING.fullmatch(line) if path.suffix.lower() in (".md", ".markdown") and not fenced else None
        if heading:
            yield title, "\n".join(lines)
            title, lines = heading[1], []
        else:
            lines.append(line)
    yield title, "\n".join(lines)


def _rows(path: Path) -> Iterator[Document]:
    with opened(path) as file:
        items = file.items()
        first = next((item for item in items if not item.fault), None)
        key = _key(first.value) if first else None
        if first and key:
            for item in itertools.chain([first], items):
                yield _plain(file, item, key)
            return
    with open_records(path) as reading:
        for record in reading:
            yield "", _text(record)


def _key(row: Any) -> str | None:
    """Return the key of a plain document's text, None for a row of another kind."""
    if not isinstance(row, dict) or "instruction" in row:
        return None
    return next((key for key in _KEYS if isinstance(row.get(key), str)), None)


def _plain(file: OpenFile, item: Item, key: str) -> Document:
    text = item.value.get(key) if isinstance(item.value, dict) else None
    if item.fault or not isinstance(text, str):
        raise InputError(
            f"{file.name}:{item.place}: {item.fault or f'expected a string under {key!r}, as in the first row'}"
        )
    title = item.value.get("title")
    return title if isinstance(title, str) else "", text


def _text(record: Record) -> str:
    if isinstance(record, Task):
        parts = [record.instruction, *(part for each in record.instances for part in (each.input, each.output))]
    elif isinstance(record, Dialogue):
        parts = [message.content for message in record.messages]
    else:
        assert isinstance(record, Comparison)
        prompt = record.prompt if isinstance(record.prompt, str) else _text(record.prompt)
        parts = [prompt, *(response.content for response in record.responses)]
    return "\n".join(part for part in parts if part)


def passages(title: str, text: str, size: int) -> Iterator[Document]:
    """Yield a document in pieces of at most `size` characters, cut behind sentences where there are any."""
    title = " ".join(title.split())
    piece = ""
    for sentence in _sentences(text, size):
        if piece and len(piece) + 1 + len(sentence) > size:
            yield title, piece
            piece = ""
        joint = " " if piece and not piece.endswith(_UNSPACED_ENDS) else ""
        piece = f"{piece}{joint}{sentence}"
    if piece:
        yield title, piece


def _sentences(text: str, size: int) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            rest = sentence.strip()
            while len(rest) > size:
                cut = rest.rfind(" ", size // 2, size + 1)
                cut = cut if cut > 0 else size
                yield rest[:cut]
                rest = rest[cut:].strip()
            if rest:
                yield rest
