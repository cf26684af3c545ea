"""What no transaction may do, told to PostgreSQL as triggers in the simulated database: a commit that breaks one of
them fails, and the play ends. Written from the design, not from the code: it knows nothing of lifecycle.py.

Checked at every commit, on the rows that changed: the cheapest way to look after each step.
"""

from __future__ import annotations

import re

from sqlalchemy import Connection, text

PREFIX = "UNSAFE: "

_FUNCTIONS = (
    # A final word stays; the identity and the amount of an attempt never change.
    """
    CREATE OR REPLACE FUNCTION guard_attempt() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE s record; t record; paid bigint;
    BEGIN
        IF TG_OP = 'UPDATE' THEN
            IF OLD.status = 'succeeded' AND NEW.status <> 'succeeded' THEN
                RAISE EXCEPTION 'UNSAFE: attempt % was succeeded and became %', NEW.id, NEW.status; END IF;
            IF OLD.status IN ('failed', 'canceled') AND NEW.status NOT IN (OLD.status, 'succeeded') THEN
                RAISE EXCEPTION 'UNSAFE: attempt % was % and became %', NEW.id, OLD.status, NEW.status; END IF;
            IF OLD.status IN ('pending', 'requires_action', 'in_doubt')
                AND NEW.status IN ('scheduled', 'submitted') THEN
                RAISE EXCEPTION 'UNSAFE: attempt % went back from % to %', NEW.id, OLD.status, NEW.status; END IF;
            IF OLD.status = 'submitted' AND NEW.status = 'scheduled'
                AND NEW.scheduled_at > OLD.submitted_at + interval '4 hours' THEN
                RAISE EXCEPTION 'UNSAFE: attempt % is put off by a day because of an answer', NEW.id; END IF;
            IF (OLD.reference_id, OLD.invoice_id, OLD.amount_minor, OLD.currency)
                IS DISTINCT FROM (NEW.reference_id, NEW.invoice_id, NEW.amount_minor, NEW.currency) THEN
                RAISE EXCEPTION 'UNSAFE: attempt % changed its identity or amount', NEW.id; END IF;
        END IF;
        SELECT sub.status, inv.status AS invoice, inv.amount_minor AS owed INTO s
            FROM subscriptions sub JOIN invoices inv ON inv.subscription_id = sub.id WHERE inv.id = NEW.invoice_id;
        IF TG_OP = 'INSERT' AND NEW.origin <> 'session' AND s.status IN ('canceled', 'paused') THEN
            RAISE EXCEPTION 'UNSAFE: attempt % was planned for a subscription that is %', NEW.id, s.status; END IF;
        IF NEW.status = 'submitted' AND (TG_OP = 'INSERT' OR OLD.status <> 'submitted') THEN
            IF s.status NOT IN ('active', 'trialing', 'past_due') THEN
                RAISE EXCEPTION 'UNSAFE: attempt % began for a subscription that is %', NEW.id, s.status; END IF;
            IF s.invoice <> 'open' THEN
                RAISE EXCEPTION 'UNSAFE: attempt % began for an invoice that is %', NEW.id, s.invoice; END IF;
            SELECT status, blocked_reason, replaced_at INTO t FROM payment_tokens WHERE id = NEW.payment_token_id;
            IF t IS NULL OR t.status <> 'ACTIVE' OR t.blocked_reason IS NOT NULL THEN
                RAISE EXCEPTION 'UNSAFE: attempt % began with a token that is not ACTIVE', NEW.id; END IF;
            IF t.replaced_at IS NOT NULL AND NEW.origin <> 'operator' THEN
                RAISE EXCEPTION 'UNSAFE: attempt % began with a token that the customer has replaced', NEW.id; END IF;
            SELECT coalesce(sum(c.amount_minor - coalesce(r.given, 0)), 0) INTO paid FROM captures c
                LEFT JOIN LATERAL (SELECT sum(amount_minor) AS given FROM refunds WHERE capture_id = c.id) r ON true
                WHERE c.invoice_id = NEW.invoice_id AND NOT c.overpayment AND c.currency = NEW.currency;
            IF paid > 0 AND paid + NEW.amount_minor > s.owed THEN
                RAISE EXCEPTION 'UNSAFE: attempt % began though its invoice was paid', NEW.id; END IF;
        END IF;
        RETURN NULL;
    END $$""",
    """
    CREATE OR REPLACE FUNCTION guard_invoice() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        -- One way back: Xendit's event says that less was captured than its answer had let us believe.
        IF OLD.status = 'paid' AND NEW.status <> 'paid'
            AND NOT (NEW.status = 'open' AND NEW.amount_paid_minor < NEW.amount_minor
                AND NEW.hold_kind IN ('amount', 'currency')) THEN
            RAISE EXCEPTION 'UNSAFE: invoice % was paid and became %', NEW.id, NEW.status; END IF;
        IF OLD.amount_minor <> NEW.amount_minor OR OLD.currency <> NEW.currency THEN
            RAISE EXCEPTION 'UNSAFE: invoice % changed its amount', NEW.id; END IF;
        IF OLD.status <> 'draft' AND (OLD.period_key, OLD.period_start, OLD.period_end)
            IS DISTINCT FROM (NEW.period_key, NEW.period_start, NEW.period_end) THEN
            RAISE EXCEPTION 'UNSAFE: invoice % changed its period', NEW.id; END IF;
        IF NEW.amount_paid_minor < 0 THEN
            RAISE EXCEPTION 'UNSAFE: invoice % gave back more than was paid', NEW.id; END IF;
        RETURN NULL;
    END $$""",
    """
    CREATE OR REPLACE FUNCTION guard_subscription() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF OLD.status = 'canceled' AND NEW.status <> 'canceled' THEN
            RAISE EXCEPTION 'UNSAFE: subscription % was canceled and became %', NEW.id, NEW.status; END IF;
        IF NEW.next_index < OLD.next_index THEN
            RAISE EXCEPTION 'UNSAFE: subscription % went back from period % to %',
                NEW.id, OLD.next_index, NEW.next_index; END IF;
        RETURN NULL;
    END $$""",
    """
    CREATE OR REPLACE FUNCTION guard_capture() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'UNSAFE: capture % was deleted', OLD.id;
    END $$""",
    """
    CREATE OR REPLACE FUNCTION guard_refund() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE given bigint; got bigint;
    BEGIN
        SELECT amount_minor INTO got FROM captures WHERE id = NEW.capture_id;
        SELECT sum(amount_minor) INTO given FROM refunds WHERE capture_id = NEW.capture_id;
        IF given > got THEN RAISE EXCEPTION 'UNSAFE: capture % is given back twice', NEW.capture_id; END IF;
        IF TG_OP = 'UPDATE' AND OLD.status IN ('succeeded', 'failed') AND NEW.status <> OLD.status THEN
            RAISE EXCEPTION 'UNSAFE: refund % was % and became %', NEW.id, OLD.status, NEW.status; END IF;
        RETURN NULL;
    END $$""",
)
# Not a guard: which moves of status a year has passed, for the table of what was covered (coverage.py).
MOVES_TABLE = "simulated_moves"
_COUNTING = (
    f"CREATE UNLOGGED TABLE IF NOT EXISTS {MOVES_TABLE} (name text, old text, new text)",
    f"""
    CREATE OR REPLACE FUNCTION count_move() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO {MOVES_TABLE} VALUES (TG_TABLE_NAME, OLD.status, NEW.status);
        RETURN NULL;
    END $$""",  # noqa: S608 - our own name
)
COUNTED = ("subscriptions", "invoices", "charge_attempts")
_TRIGGERS = (
    ("attempt", "charge_attempts", "INSERT OR UPDATE"),
    ("invoice", "invoices", "UPDATE"),
    ("subscription", "subscriptions", "UPDATE"),
    ("capture", "captures", "DELETE"),
    ("refund", "refunds", "INSERT OR UPDATE"),
)


def install(connection: Connection) -> None:
    for function in _FUNCTIONS:
        # With the code of a trouble of the database: nothing takes it for that of one row, and goes on.
        connection.execute(text(re.sub(r"(RAISE EXCEPTION [^;]*);", r"\1 USING ERRCODE = '58000';", function)))
    for name, table, when in _TRIGGERS:
        connection.execute(
            text(
                f"CREATE OR REPLACE TRIGGER guard_{name} AFTER {when} ON {table}"
                f" FOR EACH ROW EXECUTE FUNCTION guard_{name}()"
            )
        )

    for statement in _COUNTING:
        connection.execute(text(statement))
    for table in COUNTED:
        connection.execute(
            text(
                f"CREATE OR REPLACE TRIGGER count_move AFTER UPDATE OF status ON {table}"
                " FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION count_move()"
            )
        )


def broken(error: BaseException | None) -> str | None:
    """The guard an error of the database comes from, in words; None for any other error."""
    _, found, rest = str(error).partition(PREFIX)
    return rest.splitlines()[0] if found else None
