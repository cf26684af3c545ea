"""Existing subscribers with existing tokens: JSON lines in, active subscriptions out. Called by `billing import`.

Rows are taken a batch at a time: parsed, looked up in sets, checked one by one (import_checks.py), written in
one transaction. Where somebody else writes one of them at the same moment, the rows of the batch are done one by one.
Each row is all or nothing. A row that is there already is left alone, so a file may be imported again after a fault,
and nothing that has been billed since moves back. A dry run does the same and does not write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from billing.charging.tokens import apply_token, keep_report, read_token
from billing.domain.gateway import TokenReport
from billing.domain.lifecycle import TokenStatus
from billing.errors import BillingError, GatewayError, RequestRejected
from billing.parts import Parts
from billing.store import imports
from billing.store.imports import ACustomer, AToken, Known, NewCustomer, NewSubscription, NewToken, Planned
from billing.store.models import Customer, new_id
from billing.store.trouble import Trouble, trouble_of
from billing.subscribing import import_checks
from billing.subscribing.catalog import check_new_customer
from billing.subscribing.import_checks import Checked
from billing.subscribing.import_lines import FileSoFar, Row, parse_row

BATCH = 2_000
BATCH_TO_VERIFY = 100  # rows are written when Xendit has been asked about all of a batch
TRIES = 3  # of a row that lost a race against another import
ASKED_AT_ONCE = 8  # tokens, where the quota lets through more than one a second
FAR = timedelta(days=5 * 365)  # ahead; beyond it a year is more likely mistyped than meant
A_CENTURY = timedelta(days=36_525)
LOOKS_LIKE_A_CARD = re.compile(r"[0-9](?:[ -]?[0-9]){12,18}")

Answer = TokenReport | BillingError
Progress = Callable[[int], None]


def import_rows(
    parts: Parts,
    lines: Iterable[str],
    *,
    dry_run: bool,
    verify_with_gateway: bool,
    progress: Progress = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Returns {"created", "unchanged", "refused": [{"line", "reason"}]}. `progress` is told the lines done so far,
    `warn` of rows that were taken and are strange.

    New tokens are stored as not verified, and Xendit is asked about them in the background. With `verify_with_gateway`
    it is asked here: an unknown or dead one refuses its row, and what cannot be asked about now is left to the
    background. Raises RequestRejected when Xendit refuses the key itself: no further row could be verified.
    """
    work = _Import(parts, dry_run, verify_with_gateway, progress, warn)
    for batch in _parsed(lines, BATCH_TO_VERIFY if verify_with_gateway else BATCH):
        work.take(batch)
    return {"created": work.created, "unchanged": work.unchanged, "refused": work.refused}


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    row: Row


@dataclass(frozen=True, slots=True)
class _Batch:
    last: int  # its last line
    rows: Sequence[_Line]
    refused: Mapping[int, str]


def _parsed(lines: Iterable[str], size: int) -> Iterator[_Batch]:
    """Batch after batch. While the database works on one, a thread parses the next."""
    numbered = enumerate(lines, start=1)
    with ThreadPoolExecutor(1, thread_name_prefix="billing-import") as pool:
        ahead: Future[_Batch] | None = None
        while batch := list(islice(numbered, size)):
            before, ahead = ahead, pool.submit(_parse, batch)
            if before is not None:
                yield before.result()
        if ahead is not None:
            yield ahead.result()


def _parse(batch: Sequence[tuple[int, str]]) -> _Batch:
    rows: list[_Line] = []
    refused: dict[int, str] = {}
    for number, line in batch:
        text = (line.removeprefix("\ufeff") if number == 1 else line).strip()
        try:
            if text:
                rows.append(_Line(number, parse_row(text)))
        except BillingError as error:
            refused[number] = str(error)
    return _Batch(batch[-1][0], rows, refused)


@dataclass(slots=True)
class _Outcome:
    """Of a batch, or a part of it. `stop`: Xendit has refused the key; nothing of that line on is taken."""

    created: list[_Line] = field(default_factory=list)
    unchanged: list[_Line] = field(default_factory=list)
    refused: dict[int, str] = field(default_factory=dict)
    planned: Planned = field(default_factory=Planned)
    answers: list[tuple[str, TokenReport]] = field(default_factory=list)  # our customer's id, of new or known tokens
    stop: RequestRejected | None = None


@dataclass(slots=True)
class _Import:
    parts: Parts
    dry_run: bool
    verify: bool
    progress: Progress
    warn: Callable[[str], None]
    file: FileSoFar = field(default_factory=FileSoFar)
    created: int = 0
    unchanged: int = 0
    refused: list[dict[str, Any]] = field(default_factory=list)

    def take(self, batch: _Batch) -> None:
        answers = self._ask(batch.rows) if self.verify else {}
        outcomes = self._do(batch.rows, answers)
        refused = dict(batch.refused)
        for done in outcomes:
            refused |= done.refused
            self._count(done)
        for number in sorted(refused):
            reason = LOOKS_LIKE_A_CARD.sub("[digits hidden]", refused[number])
            self.refused.append({"line": number, "reason": reason})
        if outcomes and outcomes[-1].stop is not None:
            raise outcomes[-1].stop
        self.progress(batch.last)

    def _count(self, done: _Outcome) -> None:
        self.created += len(done.created)
        self.unchanged += len(done.unchanged)
        now = self.parts.clock.now()
        for line in done.created:
            at = line.row.next_billing_at
            if at - now > FAR:
                self.warn(f"line {line.number}: nothing is charged before {at.date()}; is that year meant?")

    def _do(self, rows: Sequence[_Line], answers: Mapping[str, Answer]) -> list[_Outcome]:
        """All at once; one by one when another import, or a webhook, writes one of them at this moment."""
        if not rows:
            return []
        for tried in range(TRIES):
            try:
                return [self._at_once(rows, answers)]
            except DBAPIError as error:
                if not (isinstance(error, IntegrityError) or trouble_of(error) is Trouble.CONFLICT):
                    raise
            if len(rows) > 1 and tried == 0:
                break
        else:
            words = "another process writes the same customer, token or subscription; import the file again"
            return [_Outcome(refused={rows[0].number: words})]
        done: list[_Outcome] = []
        for row in rows:
            done += self._do([row], answers)
            if done[-1].stop is not None:
                break
        return done

    def _at_once(self, rows: Sequence[_Line], answers: Mapping[str, Answer]) -> _Outcome:
        now = self.parts.clock.now()
        taken: list[_Line] = []
        try:
            with self.parts.sessions() as session:
                done = self._plan(_read(session, rows), rows, answers, now, taken)
                if self.dry_run:  # rows written and rolled back would slow down the import that follows
                    return done
                imports.write(session, done.planned, now)
                for customer_id, answer in done.answers:
                    _apply(session, customer_id, answer, now, self.parts.key_fingerprint)
                session.commit()
        except BaseException:
            for line in reversed(taken):
                self.file.forget(line.row, line.number)
            raise
        return done

    def _plan(
        self, known: Known, rows: Sequence[_Line], answers: Mapping[str, Answer], now: datetime, taken: list[_Line]
    ) -> _Outcome:
        """What becomes of each row, each seeing those before it. What is not refused is remembered, and put in
        `taken`."""
        done = _Outcome()
        for line in rows:
            row = line.row
            try:
                checked = None if self.file.holds(row) else import_checks.check(known, row, now)
                if checked is not None:
                    _plan_row(known, row, checked, answers.get(row.payment_token_id), done, now)
            except RequestRejected as error:
                done.stop = error
                break
            except BillingError as error:
                done.refused[line.number] = str(error)
                continue
            self.file.remember(row, line.number)
            taken.append(line)
            (done.unchanged if checked is None else done.created).append(line)
        return done

    # ------------------------------------------------------------------------------------------- asking Xendit

    def _ask(self, rows: Sequence[_Line]) -> dict[str, Answer]:
        """What Xendit says of the tokens of rows that are not refused anyway, several at a time. A token of a row that
        is here already, and was not verified yet, is stored as it is told. No transaction is open meanwhile."""
        taken: list[_Line] = []
        with self.parts.reading() as session:
            known = _read(session, rows)
            unverified = {name for name, token in known.tokens.items() if token.status == TokenStatus.PENDING}
            done = self._plan(known, rows, {}, self.parts.clock.now(), taken)
        for line in reversed(taken):
            self.file.forget(line.row, line.number)
        here = [line for line in done.unchanged if line.row.payment_token_id in unverified]
        # And those of rows that are refused because Xendit did not know them: it may by now.
        again = [line for line in rows if line.number in done.refused and line.row.payment_token_id in unverified]
        wanted: dict[str, int] = {}  # tokens in the order of their lines
        for line in sorted([*done.created, *here, *again], key=lambda line: line.number):
            known_as = known.tokens[line.row.payment_token_id]
            if known_as.status != TokenStatus.ACTIVE or known_as.unknown_since is not None:
                wanted.setdefault(line.row.payment_token_id, line.number)
        kept = set() if self.dry_run else {line.row.payment_token_id for line in (*here, *again)}
        answers: dict[str, Answer] = {}
        for token, answer in self._answers(wanted, kept):
            if answer is not None:
                answers[token] = answer
            if isinstance(answer, RequestRejected):
                break
            self.progress(wanted[token] - 1)  # it is not written yet
        return answers

    def _answers(self, wanted: Iterable[str], kept: Collection[str]) -> Iterator[tuple[str, Answer | None]]:
        """In the order of the tokens, asked by some threads where the quota is worth them."""
        quota = self.parts.rules.requests_per_minute
        threads = ASKED_AT_ONCE if quota is None else min(ASKED_AT_ONCE, int(quota / 60))
        tokens = list(wanted)
        if threads <= 1 or len(tokens) <= 1:
            for token in tokens:
                yield token, self._ask_about(token, keep=token in kept)
            return
        with ThreadPoolExecutor(threads, thread_name_prefix="billing-verify") as pool:
            begun = [pool.submit(self._ask_about, token, keep=token in kept) for token in tokens]
            try:
                for token, future in zip(tokens, begun, strict=True):
                    yield token, future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    def _ask_about(self, payment_token_id: str, *, keep: bool) -> Answer | None:
        """None when it cannot be asked now. A RequestRejected: Xendit refuses the key. `keep`: the token is here, and
        what is said of it is stored."""
        try:
            answer = read_token(self.parts.gateway, payment_token_id)
        except RequestRejected as error:
            return error if error.stops_account else None
        except GatewayError:
            return None
        if keep:
            keep_report(self.parts, answer)
        return answer


def _read(session: Session, rows: Sequence[_Line]) -> Known:
    each = [line.row for line in rows]
    known = imports.read(
        session,
        plans={row.plan for row in each},
        customers={row.customer_reference for row in each},
        xendit_ids={row.xendit_customer_id for row in each if row.xendit_customer_id is not None},
        tokens={row.payment_token_id for row in each},
        subscriptions={row.subscription_reference for row in each},
    )
    without = {token.customer_id for token in known.tokens.values() if import_checks.cannot_be_charged(token)}
    known.chargeable = imports.customers_with_a_method(session, without)
    return known


def _plan_row(known: Known, row: Row, checked: Checked, answer: Answer | None, done: _Outcome, now: datetime) -> None:
    """Raises BillingError, and plans nothing then."""
    if isinstance(answer, BillingError):
        raise answer
    if answer is not None:
        import_checks.refuse_by_answer(row, answer)
    customer = checked.customer or _new_customer(known, row, done.planned)
    if customer.xendit_customer_id is None and row.xendit_customer_id is not None:
        customer.xendit_customer_id = row.xendit_customer_id
        known.owners[row.xendit_customer_id] = customer.reference
        done.planned.xendit_ids[customer.id] = row.xendit_customer_id
    token = checked.token or _new_token(known, row, customer, checked, done.planned, now)
    if answer is not None and token.status != TokenStatus.ACTIVE:
        token.status = answer.status
        done.answers.append((customer.id, replace(answer, channel_code=answer.channel_code or row.channel_code)))
    _new_subscription(row, checked, customer, token, done.planned, now)


def _new_customer(known: Known, row: Row, planned: Planned) -> ACustomer:
    name, zone = check_new_customer(
        reference=row.customer_reference,
        name=row.name,
        email=row.email,
        country=row.country,
        mobile=None,
        timezone=row.timezone,
        xendit_customer_id=row.xendit_customer_id,
    )
    theirs = row.xendit_customer_id
    new = NewCustomer(new_id("cus"), row.customer_reference, name, row.email, row.country, zone, theirs)
    planned.customers.append(new)
    customer = ACustomer(new.id, new.reference, name, row.email, row.country, theirs)
    known.customers[customer.reference] = customer
    if theirs is not None:
        known.owners[theirs] = customer.reference
    return customer


def _new_token(
    known: Known, row: Row, customer: ACustomer, checked: Checked, planned: Planned, now: datetime
) -> AToken:
    """Not verified. Xendit is asked from now on, first about those that are due first: hence a time that has passed and
    keeps their order."""
    ask_at = min(now, checked.terms.first.start - A_CENTURY)
    planned.places[customer.id] = place = planned.places.get(customer.id, 0) + 1
    new = NewToken(new_id("tok"), row.payment_token_id, customer.id, row.channel_code, ask_at, place)
    planned.tokens.append(new)
    token = AToken(new.id, row.payment_token_id, customer.id, customer.reference, TokenStatus.PENDING, None, None, None)
    known.tokens[row.payment_token_id] = token
    return token


def _new_subscription(
    row: Row, checked: Checked, customer: ACustomer, token: AToken, planned: Planned, now: datetime
) -> None:
    terms, plan = checked.terms, checked.plan
    anchor, period = terms.calendar.anchor, terms.first
    running = terms.before if terms.before is not None and terms.before.start <= now else None
    planned.subscriptions.append(
        NewSubscription(
            id=new_id("sub"),
            reference=row.subscription_reference,
            customer_id=customer.id,
            plan_id=plan.id,
            amount_minor=plan.amount_minor,
            currency=plan.currency,
            timezone=anchor.zone.key,
            payment_token_id=token.id,
            start_at=period.start,
            anchor_local=anchor.local,
            anchor_day=anchor.day,
            next_index=period.index,
            next_local=period.start_local,
            current_period_start=running.start if running else None,
            current_period_end=running.end if running else None,
            plan=plan.code,
            next_billing_text=period.start.isoformat(),
            token_status=token.status,
        )
    )


def _apply(session: Session, customer_id: str, answer: TokenReport, now: datetime, key: str | None) -> None:
    apply_token(session, session.get_one(Customer, customer_id), answer, now, asked=True, key=key)
