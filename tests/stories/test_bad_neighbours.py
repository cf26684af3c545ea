"""One subscriber's odd history must never stop the billing of the others (M3)."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import text

from billing.domain.gateway import SessionType
from tests.world import World


def test_who_lets_the_pay_page_lapse_and_saves_a_card_instead_is_billed_like_everybody(world: World) -> None:
    ana = world.subscribe("ana", via=SessionType.PAY)
    world.subscribe_save("budi")
    world.live(hours=25)
    assert ana.session.status == "EXPIRED"

    ana.completes_session(ana.new_session(via=SessionType.SAVE))
    world.deliver_webhooks()
    world.run()

    assert ana.status == "active"
    assert sorted(invoice.status for invoice in ana.invoices) == ["paid", "void"]
    assert world.collected() == [50_000, 50_000]
    world.check_promises()


def test_a_subscription_that_cannot_be_opened_is_held_and_the_rest_goes_on(new_world: Callable[..., World]) -> None:
    world = new_world()
    ana, budi = world.subscribe_save("ana"), world.subscribe_save("budi")
    with world.parts.transaction() as session:
        # A period of Ana's that is in the books already: a history this software did not write.
        session.execute(
            text(
                "INSERT INTO invoices (id, number, subscription_id, period_key, period_index, period_start, period_end,"
                " amount_minor, currency, status, opened_at) SELECT 'inv-old', 'old', id,"
                " to_char(next_local, 'YYYY-MM-DD\"T\"HH24:MI'), 0, now(), now() + interval '1 day', 1, 'IDR', 'void',"
                " now() FROM subscriptions WHERE id = :id"
            ),
            {"id": ana.subscription.id},
        )

    report = world.run()

    assert report["succeeded"] == 1
    assert budi.invoice.status == "paid"
    assert "duplicate key" in (ana.subscription.hold_reason or "")
    assert report["skipped"] == [{"subscription_id": ana.subscription.id, "reason": ana.subscription.hold_reason}]
    with world.parts.transaction() as session:
        session.execute(text("DELETE FROM invoices WHERE id = 'inv-old'"))
