"""Participants and their answers in SQLite: what is acknowledged is on the disk, once, and stays."""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import Engine, event, func, text
from sqlalchemy.exc import DatabaseError
from sqlmodel import Field, Session, SQLModel, create_engine, select

from stylex.errors import RunError
from stylex.study.design import Design, Step, make_form

ANSWER_LENGTH = 200
"""Characters of a free answer that are kept."""

_SECONDS_TO_WAIT = 20


class Setting(SQLModel, table=True):
    """What the study itself remembers: its design, its secret, whether it is closed."""

    key: str = Field(primary_key=True)
    value: str


class Participant(SQLModel, table=True):
    """Somebody who agreed to take part: a number, and the hash of a cookie. Nothing else is known."""

    number: int = Field(primary_key=True)
    visitor: str = Field(unique=True, index=True)
    form: str
    started: str
    finished: str | None = None


class Answer(SQLModel, table=True):
    """An answer; the first one to a page counts, which the key makes sure of."""

    participant: int = Field(primary_key=True, foreign_key="participant.number")
    step: int = Field(primary_key=True)
    kind: str
    question: int | None = None
    attribute: int | None = None
    choice: str | None = None
    correct: bool | None = None
    words: str | None = None
    stills: bool = False
    answered: str


Verdict = Literal["kept", "earlier", "closed"]


@dataclass(frozen=True)
class Place:
    """Where a participant is: their number, their form, the next step (at the end: how many there are)."""

    number: int
    form: tuple[Step, ...]
    step: int

    @property
    def done(self) -> bool:
        return self.step >= len(self.form)


class Store:
    """The answers of one study.

    Args:
        file: the database, made where there is none.
        design: of the study; answers to another one are refused.

    Raises:
        RunError: the file is no database, holds answers to another study, or cannot be written.
    """

    def __init__(self, file: Path, design: Design) -> None:
        self.file = file
        self.design = design
        self._writing = threading.Lock()
        self._forms: dict[int, tuple[Step, ...]] = {}
        file.parent.mkdir(parents=True, exist_ok=True)
        self._engine: Engine = create_engine(
            f"sqlite:///{file}", connect_args={"timeout": _SECONDS_TO_WAIT, "check_same_thread": False}
        )
        event.listen(self._engine, "connect", _durable)
        try:
            SQLModel.metadata.create_all(self._engine)
            with self._writing, Session(self._engine) as session:
                self._begin(session)
        except DatabaseError as error:
            raise RunError(f"{file}: cannot be used ({str(error.orig)[:120]})") from None

    def _begin(self, session: Session) -> None:
        wanted = design_hash(self.design)
        known = session.get(Setting, "design")
        if known is None:
            session.add(Setting(key="design", value=wanted))
            session.add(Setting(key="secret", value=secrets.token_hex(32)))
            session.commit()
        elif known.value != wanted:
            raise RunError(
                f"{self.file}: holds answers to another study; move the folder away to begin a new one"
            )

    @property
    def secret(self) -> bytes:
        """Random bytes of this study, the same after a restart."""
        return bytes.fromhex(self._setting("secret") or "")

    @property
    def closed(self) -> bool:
        return self._setting("closed") == "yes"

    def close_study(self, closed: bool = True) -> None:
        """Take no more answers, or take them again."""
        with self._writing, Session(self._engine) as session:
            session.merge(Setting(key="closed", value="yes" if closed else "no"))
            session.commit()

    def join(self, visitor: str) -> Place | None:
        """Let somebody take part; who is known already goes on. None: the study is closed."""
        hashed = _hashed(visitor)
        with self._writing, Session(self._engine) as session:
            if self._is_closed(session):
                return None
            known = session.exec(select(Participant).where(Participant.visitor == hashed)).first()
            if known is None:
                number = (session.exec(select(func.max(Participant.number))).one() or 0) + 1
                form = make_form(self.design, number)
                content = json.dumps([step.model_dump(mode="json", exclude_defaults=True) for step in form])
                session.add(Participant(number=number, visitor=hashed, form=content, started=now()))
                session.commit()
        return self.place(visitor)

    def place(self, visitor: str) -> Place | None:
        """Where a participant is; None for who has not joined."""
        with Session(self._engine) as session:
            return self._place(session, visitor)

    def answer(
        self,
        visitor: str,
        step: int,
        *,
        choice: str | None = None,
        words: str | None = None,
        stills: bool = False,
    ) -> tuple[Place | None, Verdict]:
        """Keep an answer; it is on the disk when this returns.

        An answer to a page that was answered before (a double click, a second tab, the back button) changes
        nothing; one to a page that is still to come is not taken either.
        """
        with self._writing, Session(self._engine) as session:
            place = self._place(session, visitor)
            if place is None:
                return None, "earlier"
            if self._is_closed(session):
                return place, "closed"
            if step != place.step or place.done:
                return place, "earlier"
            asked = place.form[step]
            session.add(
                Answer(
                    participant=place.number,
                    step=step,
                    kind=asked.kind,
                    question=asked.question,
                    attribute=asked.attribute,
                    choice=choice,
                    correct=None if asked.right is None else choice == asked.right,
                    words=None if words is None else words[:ANSWER_LENGTH],
                    stills=stills,
                    answered=now(),
                )
            )
            after = Place(place.number, place.form, step + 1)
            if after.done:
                session.execute(
                    text("UPDATE participant SET finished = :time WHERE number = :number"),
                    {"time": now(), "number": place.number},
                )
            session.commit()
            return after, "kept"

    def participants(self) -> list[Participant]:
        """All, in the order in which they came."""
        with Session(self._engine) as session:
            return list(session.exec(select(Participant).order_by(Participant.number)))  # type: ignore[arg-type]

    def answers(self) -> list[Answer]:
        """All, participant by participant, in the order in which they were given."""
        with Session(self._engine) as session:
            order = (Answer.participant, Answer.step)
            return list(session.exec(select(Answer).order_by(*order)))  # type: ignore[arg-type]

    def choice(self, number: int, step: int) -> str | None:
        """What a participant chose at a step."""
        with Session(self._engine) as session:
            found = session.get(Answer, (number, step))
            return None if found is None else found.choice

    def form(self, number: int) -> tuple[Step, ...]:
        """The form of a participant, as it was given out."""
        if number not in self._forms:
            with Session(self._engine) as session:
                known = session.get(Participant, number)
                if known is None:
                    raise RunError(f"{self.file}: there is no participant {number}")
                self._forms[number] = _read_form(known.form)
        return self._forms[number]

    def dispose(self) -> None:
        """Close the database."""
        self._engine.dispose()

    def _place(self, session: Session, visitor: str) -> Place | None:
        found = session.execute(
            text(
                "SELECT p.number, (SELECT count(*) FROM answer a WHERE a.participant = p.number) "
                "FROM participant p WHERE p.visitor = :visitor"
            ),
            {"visitor": _hashed(visitor)},
        ).first()
        if found is None:
            return None
        number, step = int(found[0]), int(found[1])
        if number not in self._forms:
            known = session.get(Participant, number)
            assert known is not None
            self._forms[number] = _read_form(known.form)
        return Place(number, self._forms[number], step)

    def _setting(self, key: str) -> str | None:
        with Session(self._engine) as session:
            found = session.get(Setting, key)
            return None if found is None else found.value

    def _is_closed(self, session: Session) -> bool:
        found = session.get(Setting, "closed")
        return found is not None and found.value == "yes"


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def design_hash(design: Design) -> str:
    """What answers depend on: everything but the words of the first page."""
    content = design.model_dump(mode="json", exclude={"settings": {"title", "consent"}})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def count_participants(file: Path) -> int:
    """People in a database; 0 where there is none.

    Raises:
        RunError: the file cannot be read.
    """
    if not file.exists():
        return 0
    engine = create_engine(f"sqlite:///{file}")
    try:
        with Session(engine) as session:
            tables = session.execute(text("SELECT name FROM sqlite_master WHERE name = 'participant'"))
            if tables.first() is None:
                return 0
            return int(session.execute(text("SELECT count(*) FROM participant")).scalar() or 0)
    except DatabaseError as error:
        raise RunError(f"{file}: cannot be read ({str(error.orig)[:120]})") from None
    finally:
        engine.dispose()


def _read_form(content: str) -> tuple[Step, ...]:
    return tuple(Step.model_validate(step) for step in json.loads(content))


def _hashed(visitor: str) -> str:
    """The database holds no cookie: who reads it cannot take a participant's place."""
    return hashlib.sha256(visitor.encode()).hexdigest()


def _durable(connection: Any, record: Any) -> None:
    """Readers do not wait for writers; a commit returns when it is on the disk."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
