"""What must hold in the database, as one SQL statement each. Run by checks/doctor.py, on live data.

Most of these are constraints as well: a constraint can be dropped, or be missing in a restored copy, so what it
promises is looked at all the same. Every statement is a set operation (joins, grouping, windows), selects the `id`s of
what is wrong, and reads one snapshot: what the services write together is seen together.
"""

# ruff: noqa: S608 - the SQL is put together from constants of this file and the statuses of domain/lifecycle.py

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import CheckConstraint, Constraint, Dialect, ForeignKeyConstraint, UniqueConstraint

from billing.domain.lifecycle import BILLABLE, UNFINISHED
from billing.store import queries
from billing.store.models import Base


@dataclass(frozen=True, slots=True)
class Check:
    """`wrong` is a plural: "3 <wrong>". `advice` is what a person does about it, or why nothing repairs it alone.

    `number` is that of the invariant in docs/architecture.md; None for what is no fault but waits for a person.
    """

    name: str
    number: int | None
    wrong: str
    bad: str
    advice: str
    is_news: bool = False  # to be told, and right as it is


def _listed(statuses: frozenset[StrEnum]) -> str:
    return ", ".join(sorted(f"'{status}'" for status in statuses))


_BILLABLE = _listed(frozenset(BILLABLE))
_UNFINISHED = _listed(frozenset(UNFINISHED))
_NO_UNFINISHED = f"""NOT EXISTS (
    SELECT 1 FROM charge_attempts a WHERE a.invoice_id = i.id AND a.status IN ({_UNFINISHED}))"""
# The money itself is settled only with Xendit's records at hand.
_MONEY = "not repaired: money is never made to fit; compare with `billing reconcile --date` and Xendit's dashboard"
_HISTORY = "not repaired: it has happened; look at it with `billing explain`"
_RUN = "start the scheduler, or `billing run`; a scheduler that runs and leaves work undone has the reason in its log"

# Periods as billed or skipped. A draft's period is provisional until its payment session collects it.
_PERIODS = """
    SELECT subscription_id, period_index, period_start, period_end FROM invoices
    WHERE status <> 'draft' AND period_key <> 'first'
    UNION ALL
    SELECT subscription_id, period_index, period_start, period_end FROM skipped_periods"""

_RULES = (
    Check(
        "one_invoice_per_period",
        1,
        "periods with more than one invoice",
        """SELECT subscription_id || ' ' || period_key AS id FROM invoices
        GROUP BY subscription_id, period_key HAVING count(*) > 1""",
        "not repaired: one of the invoices may be paid; void the other by hand",
    ),
    Check(
        "one_unfinished_attempt",
        2,
        "invoices with more than one unfinished attempt",
        f"""SELECT invoice_id AS id FROM charge_attempts WHERE status IN ({_UNFINISHED})
        GROUP BY invoice_id HAVING count(*) > 1""",
        "not repaired: each may have moved money; stop the workers and `billing reconcile` first",
    ),
    Check(
        "references_used_once",
        3,
        "reference ids of more than one attempt",
        "SELECT reference_id AS id FROM charge_attempts GROUP BY reference_id HAVING count(*) > 1",
        _HISTORY,
    ),
    Check(
        "payment_requests_used_once",
        3,
        "payment requests of more than one attempt",
        """SELECT payment_request_id AS id FROM charge_attempts WHERE payment_request_id IS NOT NULL
        GROUP BY payment_request_id HAVING count(*) > 1""",
        _MONEY,
    ),
    Check(
        "sent_attempts_are_dated",
        3,
        "attempts that were sent without having been written down as submitted",
        """SELECT id FROM charge_attempts
        WHERE status NOT IN ('scheduled', 'canceled') AND submitted_at IS NULL AND origin <> 'session'""",
        _HISTORY,
    ),
    Check(
        "captures_have_their_attempt",
        4,
        "attempts and captures that contradict each other",
        """SELECT a.id FROM charge_attempts a LEFT JOIN captures c ON c.attempt_id = a.id
        WHERE a.status = 'succeeded' AND c.id IS NULL
        UNION
        SELECT a.id FROM captures c JOIN charge_attempts a ON a.id = c.attempt_id
        WHERE a.status <> 'succeeded' OR a.invoice_id <> c.invoice_id""",
        _MONEY,
    ),
    Check(
        "attempts_pay_once",
        4,
        "attempts with more than one paying capture",
        "SELECT attempt_id AS id FROM captures WHERE NOT overpayment GROUP BY attempt_id HAVING count(*) > 1",
        _MONEY,
    ),
    Check(
        "overpayments_are_answered",
        4,
        "captures of more than was owed without a refund of it, sent or held",
        """WITH so_far AS (
            SELECT id, invoice_id, amount_minor, overpayment, sum(amount_minor) FILTER (WHERE NOT overpayment)
                OVER (PARTITION BY invoice_id ORDER BY captured_at, id) AS paid
            FROM captures
        )
        SELECT c.id FROM so_far c JOIN invoices i ON i.id = c.invoice_id
        LEFT JOIN (SELECT capture_id, sum(amount_minor) AS amount FROM refunds GROUP BY capture_id) r
            ON r.capture_id = c.id
        WHERE CASE WHEN c.overpayment THEN c.amount_minor
            ELSE least(c.amount_minor, c.paid - i.amount_minor) END > coalesce(r.amount, 0)""",
        "a held refund is written down for each, for a person to decide",
    ),
    Check(
        "paid_stays_paid",
        5,
        "invoices whose status and captures disagree",
        """SELECT i.id FROM invoices i LEFT JOIN (
            SELECT invoice_id, currency, sum(amount_minor) AS amount FROM captures WHERE NOT overpayment
            GROUP BY invoice_id, currency
        ) c ON c.invoice_id = i.id AND c.currency = i.currency
        WHERE (i.status = 'paid') <> (coalesce(c.amount, 0) >= i.amount_minor)""",
        _MONEY,
    ),
    Check(
        "nothing_sent_after_the_end",
        5,
        "attempts sent for a subscription that was canceled or paused",
        # A cancel reads the clock, then waits for the lock of a charge that has just begun: hence the minute.
        """SELECT a.id FROM charge_attempts a JOIN subscriptions s ON s.id = a.subscription_id
        WHERE a.origin <> 'session' AND (
            (s.status = 'canceled' AND a.submitted_at > s.canceled_at + interval '1 minute')
            OR (s.status = 'paused' AND a.submitted_at > s.paused_at + interval '1 minute'))""",
        _HISTORY,
    ),
    Check(
        "periods_tile",
        6,
        "subscriptions with a gap or an overlap between their periods",
        f"""WITH periods AS ({_PERIODS}),
        neighbours AS (
            SELECT *, row_number() OVER w = 1 AS is_first,
                lead(period_index) OVER w AS following_index, lead(period_start) OVER w AS following_start
            FROM periods WINDOW w AS (PARTITION BY subscription_id ORDER BY period_index, period_start)
        )
        SELECT s.id FROM subscriptions s LEFT JOIN neighbours n ON n.subscription_id = s.id
        WHERE (n.subscription_id IS NULL AND s.next_index > 0)
            OR (n.is_first AND n.period_index <> 0)
            OR coalesce(n.following_index, s.next_index) <> n.period_index + 1
            -- A zone whose rules have changed begins the next period some hours earlier or later than was stored.
            OR abs(extract(epoch FROM coalesce(n.following_start, s.next_billing_at) - n.period_end)) > 10800
        GROUP BY s.id""",
        "not repaired: whether a period is billed or forgiven is the merchant's to say; `billing explain` shows them",
    ),
    Check(
        "chargeable_is_planned",
        6,
        "subscriptions that are billed and have no next date",
        f"SELECT id FROM subscriptions WHERE status IN ({_BILLABLE}) AND next_billing_at IS NULL AND ends_at IS NULL",
        "the date is computed again from the anchor",
    ),
    Check(
        "ended_subscriptions_are_canceled",
        6,
        "subscriptions whose last period is over and which owe nothing, and are not canceled",
        f"""SELECT s.id FROM subscriptions s
        WHERE s.status IN ({_BILLABLE}) AND s.ends_at < :late AND s.hold_reason IS NULL
            AND NOT EXISTS (
                SELECT 1 FROM invoices i WHERE i.subscription_id = s.id AND i.status IN ('draft', 'open'))""",
        "they are canceled",
    ),
    Check(
        "leases_in_bounds",
        7,
        "leases longer than any work can take",
        """SELECT id FROM charge_attempts WHERE lease_until > :lease_limit
        UNION ALL SELECT id FROM webhook_events WHERE lease_until > :lease_limit
        UNION ALL SELECT id FROM refunds WHERE lease_until > :lease_limit""",
        "they are cut to the longest there may be",
    ),
    Check(
        "submitted_is_followed",
        7,
        "attempts submitted by a process that is gone",
        """SELECT id FROM charge_attempts
        WHERE status = 'submitted' AND (lease_until IS NULL OR lease_until < :real_late)""",
        "they become in_doubt and are looked up at Xendit",
    ),
    Check(
        "open_results_are_followed",
        7,
        "attempts that wait for a result nobody looks up",
        """SELECT a.id FROM charge_attempts a LEFT JOIN payment_sessions p ON p.reference_id = a.reference_id
        WHERE a.status IN ('pending', 'requires_action', 'in_doubt') AND a.next_check_at IS NULL
            AND (a.origin <> 'session' OR a.status <> 'pending' OR p.status IS DISTINCT FROM 'ACTIVE')""",
        "they are looked up now",
    ),
    Check(
        "sessions_are_followed",
        7,
        "open payment sessions whose end nobody looks up",
        "SELECT id FROM payment_sessions WHERE status = 'ACTIVE' AND next_check_at IS NULL AND created_at < :late",
        "they are looked up now; one that never got a link is canceled",
    ),
    Check(
        "unknown_tokens_are_followed",
        7,
        "subscriptions that wait for Xendit to know a token about which nobody asks",
        f"""SELECT s.id FROM subscriptions s WHERE s.hold_kind = 'token_unknown' AND s.status IN ({_BILLABLE})
            AND NOT EXISTS (SELECT FROM payment_tokens t
                WHERE t.customer_id = s.customer_id AND t.unknown_since IS NOT NULL AND t.next_check_at IS NOT NULL)""",
        "Xendit is asked now about the customer's tokens; one that has none to ask about is let go",
    ),
    Check(
        "events_are_followed",
        7,
        "stored webhook events that nobody will apply",
        "SELECT id FROM webhook_events WHERE state IN ('received', 'unmatched') AND next_try_at IS NULL",
        "they are applied now",
    ),
    Check(
        "refunds_are_followed",
        7,
        "refunds that have no end and that nobody looks up",
        """SELECT id FROM refunds WHERE status IN ('requested', 'pending') AND next_try_at IS NULL
        AND (lease_until IS NULL OR lease_until < :real_late)""",
        "they are looked up at Xendit; a refund is never asked for twice",
    ),
    Check(
        "due_attempts_on_time",
        7,
        "attempts due for more than ten minutes",
        f"""SELECT id FROM charge_attempts WHERE status = 'scheduled' AND scheduled_at < :late AND {queries.FREE}
        AND parked_by IS NULL AND NOT EXISTS (SELECT 1 FROM charging_stop)
        AND NOT EXISTS (
            SELECT 1 FROM charge_attempts older WHERE older.subscription_id = charge_attempts.subscription_id
                AND older.id < charge_attempts.id AND older.status = 'scheduled' AND older.parked_by IS NOT NULL)""",
        _RUN,
    ),
    Check(
        "parked_attempts_wait_for_something",
        7,
        "attempts that wait for a run, a channel or a token which holds nothing up",
        f"""SELECT a.id FROM charge_attempts a
        LEFT JOIN billing_runs r ON a.parked_by = 'run:' || r.id AND r.state IN ('paused', 'stopped', 'aborted')
        LEFT JOIN channel_breakers b ON a.parked_by = 'channel:' || b.channel_code AND b.probe_at IS NOT NULL
        WHERE a.parked_by IS NOT NULL AND a.status = 'scheduled' AND r.id IS NULL AND b.channel_code IS NULL
            AND NOT (a.parked_by LIKE 'token:%' AND EXISTS (
                SELECT FROM subscriptions s WHERE a.parked_by = 'token:' || s.customer_id
                    AND s.hold_kind = 'token_unknown' AND s.hold_reason IS NOT NULL AND s.status IN ({_BILLABLE})))""",
        "they are let go: whoever claims next takes them",
    ),
    Check(
        "runs_have_an_end",
        7,
        "billing runs that are not finished though nothing is left of them",
        """SELECT r.id FROM billing_runs r
        WHERE r.finished_at IS NULL AND r.state IN ('running', 'aborted') AND r.started_at < :real_late
            AND (r.heartbeat_at IS NULL OR r.heartbeat_at < :real_late) AND (r.kind <> 'daily' OR r.id < :today)
            AND NOT EXISTS (
                SELECT 1 FROM charge_attempts a WHERE a.run_id = r.id AND (a.status = 'submitted'
                    OR (a.status = 'scheduled' AND (a.parked_by IS NOT NULL OR a.scheduled_at <= :now))))""",
        "they are marked as finished",
    ),
    Check(
        "due_periods_on_time",
        7,
        "subscriptions due for more than ten minutes",
        f"""SELECT id FROM subscriptions
        WHERE next_billing_at < :late AND status IN ({_BILLABLE}) AND hold_reason IS NULL""",
        _RUN,
    ),
    Check(
        "due_follow_ups_on_time",
        7,
        "look-ups, events, refunds and ends of grace due for more than ten minutes",
        f"""SELECT id FROM charge_attempts WHERE next_check_at < :late AND {queries.FREE}
        UNION ALL SELECT id FROM webhook_events WHERE next_try_at < :late AND {queries.FREE}
        UNION ALL SELECT id FROM refunds WHERE next_try_at < :late AND {queries.FREE}
        UNION ALL SELECT id FROM payment_sessions WHERE next_check_at < :late
        UNION ALL SELECT id FROM payment_tokens WHERE next_check_at < :late AND unknown_since IS NOT NULL
        UNION ALL SELECT i.id FROM invoices i WHERE i.status = 'open' AND i.grace_ends_at < :late
            AND i.hold_reason IS NULL AND {_NO_UNFINISHED}""",
        _RUN,
    ),
    Check(
        "lines_add_up",
        8,
        "invoices whose amount is not the sum of their lines",
        """SELECT i.id FROM invoices i
        LEFT JOIN (SELECT invoice_id, sum(amount_minor) AS amount FROM invoice_lines GROUP BY invoice_id) l
            ON l.invoice_id = i.id
        WHERE i.amount_minor <> coalesce(l.amount, 0)""",
        _MONEY,
    ),
    Check(
        "payments_add_up",
        8,
        "invoices whose paid amount is not captures minus refunds",
        """SELECT i.id FROM invoices i LEFT JOIN (
            SELECT invoice_id, currency, sum(amount_minor) AS amount FROM (
                SELECT invoice_id, currency, amount_minor FROM captures
                UNION ALL
                SELECT c.invoice_id, r.currency, -r.amount_minor FROM refunds r JOIN captures c ON c.id = r.capture_id
                WHERE r.status = 'succeeded'
            ) moved GROUP BY invoice_id, currency
        ) m ON m.invoice_id = i.id AND m.currency = i.currency
        WHERE i.amount_paid_minor <> coalesce(m.amount, 0)""",
        _MONEY,
    ),
    Check(
        "currencies_agree",
        8,
        "attempts and paying captures in another currency than their invoice",
        """SELECT a.id FROM charge_attempts a JOIN invoices i ON i.id = a.invoice_id WHERE a.currency <> i.currency
        UNION ALL
        SELECT c.id FROM captures c JOIN invoices i ON i.id = c.invoice_id
        WHERE c.currency <> i.currency AND NOT c.overpayment""",
        _MONEY,
    ),
    Check(
        "card_networks_caps",
        9,
        "declines beyond what the card networks allow for one card",
        # The window is a hair shorter than the cap's, which does not count a decline exactly that old.
        """SELECT id FROM (
            SELECT id, settled_at,
                count(*) OVER (PARTITION BY fingerprint ORDER BY settled_at
                    RANGE BETWEEN interval '23:59:59.999' PRECEDING AND CURRENT ROW) AS in_a_day,
                count(*) OVER (PARTITION BY fingerprint ORDER BY settled_at
                    RANGE BETWEEN interval '29 days 23:59:59.999' PRECEDING AND CURRENT ROW) AS in_30_days
            FROM charge_attempts
            WHERE status = 'failed' AND fingerprint IS NOT NULL AND settled_at > :now - interval '60 days'
                AND (decline_class IS NULL OR decline_class NOT IN ('our_fault', 'not_sent'))
        ) declines
        WHERE settled_at > :now - interval '30 days' AND (in_a_day > :cap_a_day OR in_30_days > :cap_in_30_days)""",
        _HISTORY + "; it leaves this list after 30 days",
    ),
    Check(
        "one_automatic_try_a_day",
        9,
        "automatic attempts within a day of a decline of the same card for the same invoice",
        """SELECT later.id FROM charge_attempts later
        JOIN charge_attempts declined
            ON declined.invoice_id = later.invoice_id AND declined.fingerprint = later.fingerprint
        WHERE later.origin <> 'operator' AND later.submitted_at > :now - interval '30 days'
            AND declined.status = 'failed' AND later.submitted_at > declined.settled_at
            AND later.submitted_at < declined.settled_at + interval '1 day'
            AND declined.decline_class IN ('retry_later', 'needs_customer', 'dead_token', 'unknown_first')
        GROUP BY later.id""",
        _HISTORY + "; it leaves this list after 30 days",
    ),
    Check(
        "planned_attempts_may_be_charged",
        10,
        "planned attempts whose subscription or invoice takes no charge",
        f"""SELECT a.id FROM charge_attempts a
        JOIN subscriptions s ON s.id = a.subscription_id JOIN invoices i ON i.id = a.invoice_id
        WHERE a.status = 'scheduled' AND (s.status NOT IN ({_BILLABLE}) OR i.status <> 'open')""",
        "they are withdrawn",
    ),
    Check(
        "planned_tokens_may_be_charged",
        10,
        "planned attempts that name a token which is dead or blocked",
        """SELECT a.id FROM charge_attempts a JOIN payment_tokens t ON t.id = a.payment_token_id
        WHERE a.status = 'scheduled' AND a.origin <> 'operator'
            AND (t.status IN ('FAILED', 'EXPIRED', 'CANCELED') OR t.blocked_reason IS NOT NULL)""",
        "the customer's next token is chosen when they begin",
    ),
    Check(
        "tokens_belong_to_the_payer",
        10,
        "subscriptions and attempts with somebody else's token",
        """SELECT s.id FROM subscriptions s JOIN payment_tokens t ON t.id = s.payment_token_id
        WHERE t.customer_id <> s.customer_id
        UNION ALL
        SELECT a.id FROM charge_attempts a
        JOIN subscriptions s ON s.id = a.subscription_id JOIN payment_tokens t ON t.id = a.payment_token_id
        WHERE t.customer_id <> s.customer_id""",
        "not repaired: `billing subscription pause` it, then find out who was charged",
    ),
    Check(
        "drafts_are_awaited",
        6,
        "draft invoices that no payment session will collect",
        f"""SELECT i.id FROM invoices i JOIN subscriptions s ON s.id = i.subscription_id
        WHERE i.status = 'draft' AND s.status NOT IN ('incomplete', 'canceled') AND {_NO_UNFINISHED}""",
        "they become void: the calendar bills the period",
    ),
    # After those that withdraw attempts: an invoice they leave without one must have an end all the same.
    Check(
        "open_invoices_have_an_end",
        6,
        "open invoices that nothing will ever charge or close",
        f"""SELECT i.id FROM invoices i JOIN subscriptions s ON s.id = i.subscription_id
        WHERE i.status = 'open' AND i.hold_reason IS NULL AND i.amount_paid_minor < i.amount_minor
            AND (s.status = 'canceled' OR (s.status IN ({_BILLABLE}) AND i.grace_ends_at IS NULL))
            AND {_NO_UNFINISHED}""",
        "an attempt is planned now; those of a canceled subscription are closed as its end says",
    ),
    Check(
        "constraints_in_place",
        None,
        "constraints and unique indexes missing from the database",
        """SELECT name AS id FROM unnest(CAST(:constraints AS text[])) AS name
        WHERE NOT EXISTS (SELECT 1 FROM pg_constraint WHERE conname = name)
            AND NOT EXISTS (
                SELECT 1 FROM pg_class c JOIN pg_index x ON indexrelid = c.oid WHERE relname = name AND indisvalid)""",
        "not repaired: see that the other checks are ok, then create them as the migrations do",
    ),
    Check(
        "charging_is_allowed",
        None,
        "reasons why all charging is stopped",
        "SELECT reason AS id FROM charging_stop",
        "put the account at Xendit right, then `billing charging resume`; or start with another key",
    ),
    Check(
        "no_run_is_stopped",
        None,
        "billing runs that are stopped or paused and wait for a person",
        "SELECT id FROM billing_runs WHERE finished_at IS NULL AND state IN ('stopped', 'paused')",
        "`billing runs show` says why; `billing runs resume` lets it go on, `billing runs abort` ends it",
    ),
    Check(
        "no_invoice_is_held",
        None,
        "invoices that wait for a person",
        "SELECT id FROM invoices WHERE status = 'open' AND hold_reason IS NOT NULL",
        "`billing invoice show` says why, `billing invoice pay` tries again",
    ),
    Check(
        "no_subscription_is_held",
        None,
        "subscriptions whose billing waits for a person",
        f"SELECT id FROM subscriptions WHERE status IN ({_BILLABLE}) AND hold_reason IS NOT NULL",
        "`billing explain` says why, `billing subscription resume` lets it go on; one that waits for Xendit to know its"
        " payment method goes on by itself when it does: check the key's account and mode, then `token refresh`",
    ),
    Check(
        "no_refund_is_stuck",
        None,
        "refunds that are held or have failed",
        # Those that a person has made elsewhere since, or that failed there, are no matter of ours.
        """SELECT r.id FROM refunds r WHERE r.status IN ('held', 'failed') AND NOT r.made_elsewhere AND NOT EXISTS (
            SELECT FROM refunds other WHERE other.capture_id = r.capture_id AND other.made_elsewhere
                AND other.status = 'succeeded' AND other.amount_minor >= r.amount_minor
                AND other.created_at > r.created_at)""",
        "`billing invoice show` says why; refund in Xendit's dashboard",
    ),
    Check(
        "refunds_made_elsewhere",
        None,
        "refunds made outside this software, in Xendit's dashboard",
        """SELECT i.number || ' ' || r.xendit_refund_id AS id FROM refunds r
        JOIN captures c ON c.id = r.capture_id JOIN invoices i ON i.id = c.invoice_id
        WHERE r.made_elsewhere AND r.status = 'succeeded'""",
        "nothing is to be done: their invoices stay paid, and nothing is charged for them again",
        is_news=True,
    ),
    Check(
        "imported_tokens_are_verified",
        None,
        "imported payment methods about which Xendit was not asked yet",
        "SELECT payment_token_id AS id FROM payment_tokens WHERE next_check_at IS NOT NULL AND unknown_since IS NULL",
        "nothing is to be done: the scheduler, or each `billing run`, asks as fast as the quota lets, and in any case"
        " before the first charge; `billing import FILE --verify` asks now",
        is_news=True,
    ),
    Check(
        "subscriptions_have_a_payment_method",
        None,
        "subscriptions of customers whose payment methods have all ended",
        f"""SELECT s.reference AS id FROM subscriptions s
        WHERE s.status IN ({_BILLABLE}) AND s.next_billing_at IS NOT NULL AND s.hold_reason IS NULL
            AND NOT EXISTS (SELECT FROM payment_tokens t WHERE t.customer_id = s.customer_id
                AND t.status NOT IN ('FAILED', 'EXPIRED', 'CANCELED') AND t.blocked_reason IS NULL)""",
        "nothing is charged before they have another: `billing session create CUSTOMER` makes a link",
        is_news=True,
    ),
    Check(
        "no_event_is_parked",
        None,
        "webhook events that could not be applied",
        "SELECT id FROM webhook_events WHERE state = 'parked'",
        "`billing replay` each when its cause is mended",
    ),
)

CHECKS = {check.name: check for check in _RULES}


def constraint_names(dialect: Dialect) -> Iterator[str]:
    """Every constraint and unique index of the models, by the name it has in the database."""
    spelled = dialect.identifier_preparer
    for table in Base.metadata.sorted_tables:
        for constraint in table.constraints:
            if isinstance(constraint, UniqueConstraint | CheckConstraint | ForeignKeyConstraint):
                yield _name(spelled.format_constraint(constraint), constraint)
        yield from (str(index.name) for index in table.indexes if index.unique)


def _name(formatted: str | None, constraint: Constraint) -> str:
    return (formatted or str(constraint.name)).strip('"')
