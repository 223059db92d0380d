"""The prompt of `htc query OUTPUT`: SQL over the views, line after line, until Ctrl-D."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import duckdb

from jobs.results.query import answer_sql
from jobs.terminal.console import say, write_line, write_table
from jobs.terminal.interrupt import run_interruptibly
from pipeline.errors import HtcError, SpecError, StorageError
from pipeline.output.mask_functions import MASK_FUNCTIONS
from pipeline.output.results import open_results
from pipeline.output.views import VIEWS, check_parts, open_database
from pipeline.storage.storage import Storage
from pipeline.text import count_of

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History

    from pipeline.storage.config import StorageSection

# Those that a terminal can show.
PROMPT_FORMATS = ("table", "csv", "tsv", "json", "jsonl")
HELP = """SQL ends with a semicolon and may have several lines. Ctrl-C ends a query, Ctrl-D leaves.
.tables          the views
.schema [VIEW]   columns and types, of one view or of all
.functions       the functions for masks
.format [NAME]   how answers are written: {formats}
.refresh         list again what is committed
.help            this text
.quit            leave"""


class QueryPrompt:
    """Answers lines of SQL and commands that begin with a dot.

    Temporary tables last until `.refresh`, or until the output's parts are found in other files.
    """

    def __init__(self, output_uri: str, storage_section: StorageSection | None, *, is_external_allowed: bool) -> None:
        """Open the output.

        Raises:
            InputError: it holds no run.
            DamagedFileError: no run.json can be read.
        """
        self._output_uri = output_uri
        self._section = storage_section
        self._is_external_allowed = is_external_allowed
        self._format = "table"
        self._open()
        self._commands: dict[str, Callable[[str], None]] = {
            ".tables": self._tables,
            ".schema": self._schema,
            ".functions": self._functions,
            ".format": self._choose_format,
            ".refresh": self._refresh,
            ".help": self._help,
        }

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    @property
    def runs(self) -> str:
        """How many runs there are, in words."""
        return count_of(len(self._results.records), "run")

    @property
    def words(self) -> list[str]:
        """What completion offers: commands, views, their columns, functions, keywords."""
        columns = {name for view in VIEWS for name, _ in self._columns(view)}
        known = (
            "SELECT DISTINCT function_name FROM duckdb_functions() WHERE regexp_full_match(function_name, '[a-z_0-9]+')"
        )
        functions = [str(row[0]) for row in self._database.execute(known).fetchall()]
        keywords = "SELECT upper(keyword_name) FROM duckdb_keywords() WHERE keyword_category = 'reserved'"
        words = [str(row[0]) for row in self._database.execute(keywords).fetchall()]
        return [*self._commands, ".quit", *VIEWS, *sorted(columns), *sorted(functions), *words]

    def answer(self, text: str) -> bool:
        """Answer one entry; errors are written to stderr.

        Args:
            text: SQL, or a command that begins with a dot.

        Returns:
            Whether to go on.
        """
        entry = text.strip()
        if entry.rstrip(";").lower() in (".quit", ".exit", "quit", "exit"):
            return False
        try:
            if entry.startswith("."):
                self._command(entry)
            elif entry:
                self._query(entry)
        except KeyboardInterrupt:
            say("Interrupted.")
            # The query may still run in a connection that did not stop.
            self._open()
        except HtcError as error:
            say(str(error))
        except BrokenPipeError:
            return False
        return True

    def _open(self) -> None:
        self._results = open_results(self._output_uri, Storage(self._section))
        self._database = open_database(self._results, is_external_allowed=self._is_external_allowed)

    def _command(self, entry: str) -> None:
        name, _, rest = entry.rstrip(";").partition(" ")
        command = self._commands.get(name)
        if command is None:
            raise SpecError(f"There is no command {name}; .help lists them, and SQL begins without a dot.")
        command(rest.strip())

    def _query(self, sql: str) -> None:
        has_output = Event()
        try:
            self._run(sql, has_output)
        except (SpecError, StorageError) as error:
            if not self._results.has_moved():
                check_parts(self._results, error)
                raise
            self._refresh()
            if has_output.is_set():
                raise StorageError(
                    "The output was compacted or pruned while it was read, so this answer is incomplete; run the query "
                    "again."
                ) from error
            self._run(sql, has_output)

    def _run(self, sql: str, has_output: Event) -> None:
        action = partial(answer_sql, self._database, sql, self._format, None, has_output)
        run_interruptibly(action, self._database.interrupt)

    def _help(self, _: str) -> None:
        for line in HELP.format(formats=", ".join(PROMPT_FORMATS)).splitlines():
            write_line(line)

    def _tables(self, _: str) -> None:
        write_table(["view", "columns"], [[view, str(len(self._columns(view)))] for view in VIEWS])

    def _schema(self, view: str) -> None:
        if view and view not in VIEWS:
            raise SpecError(f"There is no view {view}; there are {', '.join(VIEWS)}.")
        rows = [[name, *column] for name in ([view] if view else VIEWS) for column in self._columns(name)]
        write_table(["view", "column", "type"], rows)

    def _functions(self, _: str) -> None:
        rows = [
            [f"{function.name}({', '.join(function.parameter_names)})", function.result.split("(")[0], function.summary]
            for function in MASK_FUNCTIONS
        ]
        write_table(["function", "gives", "what"], rows)

    def _choose_format(self, name: str) -> None:
        if name and name not in PROMPT_FORMATS:
            raise SpecError(f"There is no format {name}; there are {', '.join(PROMPT_FORMATS)}.")
        self._format = name or self._format
        write_line(self._format)

    def _refresh(self, _: str = "") -> None:
        self._database.close()
        self._open()

    def _columns(self, view: str) -> list[tuple[str, str]]:
        described = self._database.execute(f"DESCRIBE {view}").fetchall()
        return [(str(row[0]), str(row[1])) for row in described]


def run_prompt(
    output_uri: str, *, is_external_allowed: bool = False, storage_section: StorageSection | None = None
) -> None:
    """Ask for SQL and answer it until Ctrl-D or `.quit`.

    Raises:
        InputError: the folder holds no run.
        DamagedFileError: no run.json can be read.
    """
    prompt = QueryPrompt(output_uri, storage_section, is_external_allowed=is_external_allowed)
    say(f"{output_uri} holds {prompt.runs}. SQL ends with a semicolon; .help has the rest.")
    try:
        for entry in _entries(_session(prompt)):
            if not prompt.answer(entry):
                return
    finally:
        prompt.close()


def _entries(session: PromptSession[str]) -> Iterator[str]:
    while True:
        try:
            yield session.prompt()
        except KeyboardInterrupt:
            continue  # Ctrl-C gives up what was typed
        except EOFError:
            return


def _session(prompt: QueryPrompt) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.filters import Condition

    session: PromptSession[str] = PromptSession(
        "htc> ",
        history=_history(),
        completer=WordCompleter(prompt.words, ignore_case=True, pattern=re.compile(r"\.?\w+")),
        complete_while_typing=False,
        enable_history_search=True,
        prompt_continuation="...> ",
        # Enter ends a whole entry and otherwise begins a line.
        multiline=Condition(lambda: not is_whole(session.default_buffer.text)),
    )
    return session


def is_whole(text: str) -> bool:
    """Return whether an entry is complete: empty, a command, or SQL whose last statement ends with a semicolon."""
    stripped = text.strip()
    if not stripped or stripped.startswith("."):
        return True
    if not stripped.endswith(";"):
        return stripped.lower() in ("quit", "exit")
    try:
        # A semicolon inside a text or a comment ends nothing: then there is one statement more with a text after it.
        closed = duckdb.extract_statements(stripped)
        probed = duckdb.extract_statements(f"{stripped} SELECT 1")
    except duckdb.Error as error:
        # Inside a quotation or a comment; DuckDB says what else is wrong.
        return "unterminated" not in str(error)
    return len(probed) == len(closed) + 1


def history_file() -> Path:
    """Return where entries are kept: under XDG_STATE_HOME, by default ~/.local/state."""
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "htc" / "query_history"


def _history() -> History:
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = history_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # SQL may name people or places: for this user only.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        say(f"Entries are not kept: {path} cannot be written ({error.strerror}).")
        return InMemoryHistory()
    return FileHistory(path)
