"""Facts about channels, currencies, test cards, magic amounts and network codes, as data.

Independent on purpose of the product's own tables: the simulator must be able to contradict them.
"""

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final, TypedDict, Unpack

SESSION_CURRENCIES: Final = frozenset({"IDR", "PHP", "VND", "THB", "SGD", "MYR", "USD"})
SESSION_COUNTRIES: Final = frozenset({"ID", "PH", "VN", "TH", "SG", "MY"})
CURRENCIES: Final = SESSION_CURRENCIES | {"HKD", "AUD", "GBP", "EUR", "JPY", "MXN"}
COUNTRIES: Final = SESSION_COUNTRIES | {"HK", "MX"}
WHOLE_UNIT_CURRENCIES: Final = frozenset({"IDR", "VND", "JPY"})
CURRENCY_SIGNS: Final = {
    "IDR": "Rp",
    "PHP": "₱",
    "VND": "₫",
    "THB": "฿",
    "SGD": "S$",
    "MYR": "RM",
    "USD": "US$",
}

LOCAL_CURRENCIES: Final = {"ID": "IDR", "PH": "PHP", "VN": "VND", "TH": "THB", "SG": "SGD", "MY": "MYR"}
_LABELS: Final = {
    "CARDS": "Credit or debit card", "DANA": "DANA", "OVO": "OVO", "GOPAY": "GoPay",
    "GOPAY_RECURRING": "GoPay Recurring", "SHOPEEPAY": "ShopeePay", "QRIS": "QRIS",
    "BCA_VIRTUAL_ACCOUNT": "BCA Virtual Account", "GRABPAY": "GrabPay", "TOUCHNGO": "Touch 'n Go",
    "PAYMAYA": "Maya", "GCASH": "GCash", "PROMPTPAY": "PromptPay", "BRI_DIRECT_DEBIT": "BRI Direct Debit",
    "BPI_RECURRING": "BPI", "BPI_DIRECT_DEBIT": "BPI Direct Debit", "UBP_EADA": "UnionBank EADA",
    "UBP_DIRECT_DEBIT": "UnionBank Direct Debit",
}  # fmt: skip

CARD_ON_FILE_TYPES: Final = frozenset({"CUSTOMER_UNSCHEDULED", "MERCHANT_UNSCHEDULED", "RECURRING"})
MERCHANT_INITIATED: Final = frozenset({"MERCHANT_UNSCHEDULED", "RECURRING"})
ITEM_TYPES: Final = frozenset({"DIGITAL_PRODUCT", "PHYSICAL_PRODUCT", "DIGITAL_SERVICE", "PHYSICAL_SERVICE", "FEE"})


@dataclass(frozen=True, slots=True)
class Channel:
    country: str
    code: str
    category: str
    currencies: tuple[str, ...]
    minimum: Decimal
    maximum: Decimal
    saves: bool = True
    merchant_initiated: bool = True  # a stored token can be charged without a redirect
    validity_days: int | None = None
    refunds: bool = True
    partial_refunds: bool = True
    refund_days: int = 365

    @property
    def label(self) -> str:
        return _LABELS.get(self.code) or self.code.replace("_", " ").title()


class _Rules(TypedDict, total=False):
    saves: bool
    merchant_initiated: bool
    validity_days: int
    refunds: bool
    partial_refunds: bool
    refund_days: int


def _cards(country: str, low: int, high: int, *, also: str = "", refund_days: int = 365) -> Channel:
    currencies = (LOCAL_CURRENCIES[country], *also.split())
    limits = Decimal(low), Decimal(high)
    return Channel(country, "CARDS", "CARDS", currencies, *limits, refund_days=refund_days)


def _wallet(country: str, code: str, low: int, high: int, **rules: Unpack[_Rules]) -> Channel:
    local = (LOCAL_CURRENCIES[country],)
    return Channel(country, code, "EWALLET", local, Decimal(low), Decimal(high), **rules)


def _debit(country: str, code: str, low: int, high: int, **rules: Unpack[_Rules]) -> Channel:
    return replace(_wallet(country, code, low, high, **rules), category="DIRECT_DEBIT")


def _one_off(country: str, code: str, high: int, category: str) -> Channel:
    return replace(_wallet(country, code, 1, high, saves=False, refunds=False), category=category)


_CHANNELS: Final = (
    _cards("ID", 5_000, 200_000_000),
    _debit("ID", "BRI_DIRECT_DEBIT", 1, 50_000_000, partial_refunds=False, refund_days=120),
    _wallet("ID", "DANA", 100, 20_000_000, validity_days=3650, refund_days=30),
    _wallet("ID", "GOPAY", 1, 50_000_000, merchant_initiated=False, refund_days=45),
    _wallet("ID", "GOPAY_RECURRING", 1, 50_000_000, refund_days=45),
    _wallet("ID", "OVO", 100, 20_000_000, refund_days=14),
    _wallet("ID", "SHOPEEPAY", 1, 20_000_000, validity_days=1825),
    _wallet("ID", "NEXCASH", 1, 20_000_000, merchant_initiated=False, refunds=False),
    _one_off("ID", "QRIS", 10_000_000, "QR_CODE"),
    _one_off("ID", "BCA_VIRTUAL_ACCOUNT", 50_000_000, "VIRTUAL_ACCOUNT"),
    _cards("MY", 1, 5_000),
    _wallet("MY", "GRABPAY", 1, 1_500, validity_days=3650),
    _wallet("MY", "SHOPEEPAY", 1, 4_999, validity_days=1825),
    _wallet("MY", "TOUCHNGO", 1, 20_000, refund_days=30),
    _cards("PH", 20, 700_000, also="USD"),
    _debit("PH", "BPI_RECURRING", 1, 500_000, validity_days=90, refund_days=30),
    _wallet("PH", "GRABPAY", 1, 100_000, validity_days=3650),
    _wallet("PH", "PAYMAYA", 1, 100_000),
    _wallet("PH", "SHOPEEPAY", 1, 100_000, validity_days=1825, refund_days=90),
    _debit("PH", "UBP_EADA", 1, 100_000, validity_days=365, refund_days=30),
    _debit("PH", "BPI_DIRECT_DEBIT", 1, 500_000, merchant_initiated=False, validity_days=90, refund_days=30),
    _debit("PH", "CHINABANK_DIRECT_DEBIT", 1, 50_000, merchant_initiated=False, validity_days=90, refund_days=30),
    _debit("PH", "RCBC_DIRECT_DEBIT", 1, 50_000, merchant_initiated=False, refund_days=30),
    _debit("PH", "UBP_DIRECT_DEBIT", 1, 100_000, merchant_initiated=False, validity_days=365, refund_days=30),
    _wallet("PH", "GCASH", 1, 100_000, saves=False),
    _cards("TH", 1, 700_000),
    _debit("TH", "BBL_DIRECT_DEBIT", 20, 700_000, refunds=False),
    _debit("TH", "KRUNGSRI_DIRECT_DEBIT", 20, 700_000, refunds=False),
    _debit("TH", "KTB_DIRECT_DEBIT", 20, 700_000, refunds=False),
    _debit("TH", "SCB_DIRECT_DEBIT", 20, 700_000, refunds=False),
    _one_off("TH", "PROMPTPAY", 700_000, "QR_CODE"),
    # The printed maximum of 100,000 VND lies below Xendit's own VN test amounts: taken as unknown.
    _cards("VN", 1_000, 200_000_000),
    _cards("SG", 1, 1_000, also="USD", refund_days=180),
)
CHANNELS: Final[dict[tuple[str, str], Channel]] = {(entry.country, entry.code): entry for entry in _CHANNELS}


def session_channels(country: str, currency: str, *, saving: bool) -> list[Channel]:
    """What a hosted page may offer for this combination."""
    return [
        entry
        for entry in _CHANNELS
        if entry.country == country and currency in entry.currencies and (entry.saves or not saving)
    ]


def decimals_ok(currency: str, amount: Decimal) -> bool:
    exponent = amount.normalize().as_tuple().exponent
    return isinstance(exponent, int) and exponent >= (0 if currency in WHOLE_UNIT_CURRENCIES else -2)


@dataclass(frozen=True, slots=True)
class CardProduct:
    """How a card number behaves, without the number."""

    network: str
    challenge: bool


@dataclass(frozen=True, slots=True)
class ListedCard:
    number: str
    network: str
    challenge: bool
    result: str


TEST_CARDS: Final = (
    ListedCard("4000000000001000", "VISA", False, "Approved, no challenge"),
    ListedCard("5200000000001005", "MASTERCARD", False, "Approved, no challenge"),
    ListedCard("4440000042200014", "VISA", False, "Approved, no challenge"),
    ListedCard("5123456789012346", "MASTERCARD", False, "Approved, no challenge"),
    ListedCard("378282246310005", "AMEX", False, "Approved, no challenge"),
    ListedCard("340000000002708", "AMEX", False, "Approved, no challenge"),
    ListedCard("4000000000002503", "VISA", True, "3DS challenge"),
    ListedCard("5200000000002151", "MASTERCARD", True, "3DS challenge"),
    ListedCard("4440000009900010", "VISA", True, "3DS challenge, page of choices"),
    ListedCard("5123450000000008", "MASTERCARD", True, "3DS challenge, page of choices"),
    ListedCard("3337000000000008", "JCB", True, "3DS challenge"),
    ListedCard("340000000002534", "AMEX", True, "3DS challenge"),
    ListedCard("4200350000000801", "VISA", True, "3DS challenge (TH: from THB 20)"),
    ListedCard("5413530000000501", "MASTERCARD", True, "3DS challenge (TH: from THB 20)"),
    ListedCard("1889800000000171", "BCA", True, "3DS challenge"),
)
_LISTED: Final = {card.number: CardProduct(card.network, card.challenge) for card in TEST_CARDS}
_THAI_CHALLENGE: Final = frozenset({"4200350000000801", "5413530000000501"})
_THAI_CHALLENGE_FROM: Final = 20
_NETWORKS: Final = (
    ("34", "AMEX"), ("37", "AMEX"), ("35", "JCB"), ("33", "JCB"), ("18", "BCA"), ("62", "UNIONPAY"),
    ("4", "VISA"), ("5", "MASTERCARD"), ("2", "MASTERCARD"),
)  # fmt: skip


def card_product(number: str, *, country: str, amount: Decimal) -> CardProduct:
    if number in _THAI_CHALLENGE and country == "TH" and amount < _THAI_CHALLENGE_FROM:
        return CardProduct(_LISTED[number].network, challenge=False)
    if number in _LISTED:
        return _LISTED[number]
    network = next((name for prefix, name in _NETWORKS if number.startswith(prefix)), "VISA")
    return CardProduct(network, challenge=False)


ISSUERS: Final = {
    "ID": "PT BANK MANDIRI", "PH": "BDO UNIBANK", "MY": "MALAYAN BANKING BERHAD", "TH": "KASIKORNBANK",
    "VN": "VIETCOMBANK", "SG": "DBS BANK",
}  # fmt: skip

CHALLENGE_RESULTS: Final = (
    "AUTHENTICATED", "UNAUTHENTICATED", "CANCELLED_AUTHENTICATION", "AUTHENTICATION_NOT_AVAILABLE",
    "AUTHENTICATION_REJECTED", "AUTHENTICATION_SERVER_ERROR", "API_GW_ASM_POLICY_ERROR",
)  # fmt: skip

# Outcomes in the language of scripts (outcomes.py).
_CARDS = {
    "10051": "EXPIRED_CARD/54", "10052": "SUSPECTED_FRAUDULENT/59", "10053": "DECLINED_BY_PROCESSOR/64",
    "10054": "INSUFFICIENT_BALANCE/51", "10055": "STOLEN_CARD/43",
    "10056": "INACTIVE_OR_UNAUTHORIZED_CARD/57", "10057": "PROCESSOR_ERROR/30", "10058": "INVALID_CVV/82",
    "10059": "DECLINED_BY_ISSUER/05", "10.05": "DECLINED_BY_ISSUER/05", "10.14": "INVALID_CARD/14",
    "10.30": "PROCESSOR_ERROR/30", "10.51": "INSUFFICIENT_BALANCE/51",
}  # fmt: skip
_CARDS_VN = {
    "405400": "EXPIRED_CARD/54", "405900": "SUSPECTED_FRAUDULENT/59", "405100": "INSUFFICIENT_BALANCE/51",
    "400700": "STOLEN_CARD/07", "405500": "INACTIVE_OR_UNAUTHORIZED_CARD/55", "402500": "PROCESSOR_ERROR/25",
    "403900": "INVALID_CVV/39", "400300": "DECLINED_BY_ISSUER/03",
}  # fmt: skip
_WALLETS = {
    "10100": "HTTP:403:CHANNEL_NOT_ACTIVATED", "10101": "HTTP:503:CHANNEL_UNAVAILABLE",
    "10102": "HTTP:500:SERVER_ERROR", "20103": "ACCOUNT_ACCESS_BLOCKED",
    "20104": "INVALID_MERCHANT_CREDENTIALS", "20105": "USER_DECLINED_PAYMENT",
    "20106": "INVALID_ACCOUNT_DETAILS", "20107": "MAXIMUM_LIMIT_REACHED",
}  # fmt: skip
_DEBITS = {
    "11000": "HTTP:503:CHANNEL_UNAVAILABLE", "11001": "MAX_AMOUNT_LIMIT_ERROR",
    "11002": "INSUFFICIENT_BALANCE", "11003": "OTP_DELIVERY_ERROR", "11004": "ACCOUNT_ACCESS_BLOCKED",
}  # fmt: skip


def _by_amount(table: dict[str, str]) -> dict[Decimal, str]:
    return {Decimal(amount): outcome for amount, outcome in table.items()}


_MAGIC_CARDS: Final = _by_amount(_CARDS)
_MAGIC_VISA: Final = _by_amount({**_CARDS, "10.65": "DECLINED_BY_ISSUER/65"})
_MAGIC_CARDS_VN: Final = _by_amount(_CARDS_VN)
_MAGIC_BY_CATEGORY: Final = {"EWALLET": _by_amount(_WALLETS), "DIRECT_DEBIT": _by_amount(_DEBITS)}


def magic_outcome(channel: Channel, *, amount: Decimal, network: str | None) -> str | None:
    if channel.category != "CARDS":
        return _MAGIC_BY_CATEGORY.get(channel.category, {}).get(amount)
    if channel.country == "VN":
        return _MAGIC_CARDS_VN.get(amount)
    return (_MAGIC_VISA if network == "VISA" else _MAGIC_CARDS).get(amount)


# Used when a script names a card decline without a network code.
DEFAULT_NETWORK_CODES: Final = {
    "INSUFFICIENT_BALANCE": "51", "DECLINED_BY_ISSUER": "05", "CARD_DECLINED": "88",
    "DECLINED_BY_PROCESSOR": "64", "PROCESSOR_ERROR": "30", "ISSUER_UNAVAILABLE": "91",
    "EXPIRED_CARD": "54", "STOLEN_CARD": "43", "SUSPECTED_FRAUDULENT": "59", "ISSUER_SUSPECT_FRAUD": "59",
    "INACTIVE_OR_UNAUTHORIZED_CARD": "57", "INVALID_CVV": "82", "AUTHENTICATION_FAILED": "1A",
    "INVALID_CARD": "14", "TRANSACTION_BLOCKED": "R1", "PARTIAL_APPROVAL": "10", "PROCESS_ERROR": "42",
}  # fmt: skip
NETWORK_DESCRIPTORS: Final = {
    "00": "Approved and completed sucessfully", "01": "Refer to card issuer", "02": "Refer to card issuer",
    "03": "Invalid merchant", "04": "Capture card", "05": "Do not honor", "07": "Pick up card",
    "10": "Partial Approval", "12": "Invalid transaction", "13": "Invalid amount",
    "14": "Invalid card number", "15": "Invalid issuer", "25": "Unable to locate record in file",
    "30": "Format error", "39": "No credit account", "41": "Stolen card", "42": "Processor error",
    "43": "Stolen card", "46": "Closed account", "51": "Insufficient funds", "54": "Expired card",
    "55": "Invalid PIN", "57": "Transaction not permitted to cardholder", "59": "Suspected fraud",
    "61": "Limit exceeded", "62": "Restricted card", "63": "Security violation", "64": "Card declined",
    "65": "Limit exceeded", "82": "Invalid CVN", "83": "Suspected fraud", "88": "Cryptographic failure",
    "91": "Temporary system error", "93": "Transaction cannot be completed - violation of law",
    "94": "Duplicated transaction", "96": "System error", "1A": "Authentication required",
    "N7": "Invalid CVN", "R0": "Stop payment order", "R1": "Revocation of authorization order",
    "R3": "Revocation of authorization order",
}  # fmt: skip
ADVICE_DESCRIPTORS: Final = {
    "01": "Update card information", "02": "Try again after 72 hours", "03": "Do not retry",
    "04": "Token requirements not fulfilled", "08": "Blocked by processor", "21": "Do not retry",
    "22": "Merchant does not qualify for product code", "24": "Retry after 1 hour",
    "25": "Retry after 24 hours", "26": "Retry after 2 days", "27": "Retry after 4 days",
    "28": "Retry after 6 days", "29": "Retry after 8 days", "30": "Retry after 10 days",
    "40": "Non-reloadable prepaid card", "41": "Single-use virtual card",
    "42": "Sanctions score exceeds threshold", "43": "Multi-use virtual card", "99": "Do not try again",
}  # fmt: skip
