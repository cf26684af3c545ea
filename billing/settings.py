"""Every BILLING_ variable, one frozen class, one-line refusals.

Read from the environment, then from `.billing/dev.env` (written by `billing dev` while it runs, so that a second
terminal needs no settings), then from `.env`. Entry points call `load_settings(needs=...)`.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
from contextlib import suppress
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, NoDecode, SettingsConfigDict

from billing.addresses import check_database_url, check_redis_url, check_web_address
from billing.errors import InvalidSetting

MOST_CHARGES_AT_ONCE = 16

DEV_FOLDER = Path(".billing")
DEV_ENV_FILE = DEV_FOLDER / "dev.env"

_EXAMPLES = {
    "database_url": "BILLING_DATABASE_URL=postgresql+psycopg://billing:secret@localhost:5432/billing",
    "redis_url": "BILLING_REDIS_URL=redis://localhost:6379/0",
    "xendit_secret_key": "BILLING_XENDIT_SECRET_KEY=xnd_development_... (dashboard, Settings, API keys)",
    "xendit_callback_token": "BILLING_XENDIT_CALLBACK_TOKEN=... (dashboard, Settings, Webhooks)",
    "xendit_base_url": "BILLING_XENDIT_BASE_URL=https://api.xendit.co",
    "xendit_requests_per_minute": "BILLING_XENDIT_REQUESTS_PER_MINUTE=600",
    "xendit_timeout_seconds": "BILLING_XENDIT_TIMEOUT_SECONDS=30",
    "public_url": "BILLING_PUBLIC_URL=https://billing.example.com",
    "test_clock": "BILLING_TEST_CLOCK=true",
    "log_format": "BILLING_LOG_FORMAT=json",
    "run_spending_cap": "BILLING_RUN_SPENDING_CAP=IDR 500000000, PHP 1000000",
    "subscriber_daily_cap": "BILLING_SUBSCRIBER_DAILY_CAP=IDR 5000000",
}
# What a key or token never holds, and how it gets there: copied with a blank, out of a file of another system, or from
# the example.
_STRAYS = (
    (re.compile(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]"), "a line end"),
    (re.compile(r"\s"), "a blank or tab"),
    (re.compile("[\"'`\u2018\u2019\u201c\u201d]"), "a quotation mark"),
    (re.compile(r"\.\.\.|\u2026"), "the dots of the example"),
    (re.compile(r"[\x00-\x1f\x7f]"), "a control character"),
    (re.compile(r"[^\x00-\x7f]"), "a character that is not ASCII"),
)
_KEYS = ("xnd_development_", "xnd_production_")
_ADDRESSES = ("xendit_base_url", "public_url")
_AMOUNTS = re.compile(r"[A-Z]{3} [0-9]{1,15}(\.[0-9]+)?")


class Settings(BaseSettings):
    """Frozen. Secrets are SecretStr: their repr shows asterisks."""

    model_config = SettingsConfigDict(
        env_prefix="BILLING_",
        env_file_encoding="utf-8",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    database_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    xendit_secret_key: SecretStr | None = None
    xendit_callback_token: SecretStr | None = None
    xendit_base_url: str = "https://api.xendit.co"
    xendit_requests_per_minute: float | None = Field(default=None, gt=0)
    xendit_timeout_seconds: float = Field(default=30, gt=0, le=120)
    public_url: str = "http://localhost:8000"
    test_clock: bool = False
    log_format: Literal["console", "json"] = "console"

    # Beyond the contract: each has a default that suits nearly everybody.
    # Where the Components web SDK is served from: no public page names an address, so it is a setting.
    components_script_url: str = ""
    components_origins: Annotated[tuple[str, ...], NoDecode] = ()
    in_doubt_policy: Literal["presume_lost", "hold"] = "presume_lost"
    settlement_window_hours: float = Field(default=26, ge=24, le=24 * 14)
    overpayment_policy: Literal["refund", "hold"] = "refund"
    run_threads: int = Field(default=16, ge=1, le=256)
    charge_threads: int = Field(default=128, ge=1, le=1_024)
    max_in_flight: int = Field(default=1_000, ge=1, le=10_000)
    database_pool_size: int = Field(default=16, ge=2, le=256)
    webhook_max_bytes: int = Field(default=256 * 1024, ge=1024)

    # What stops a billing run by itself.
    run_spending_cap: str = ""
    subscriber_daily_cap: str = ""
    run_decline_jump: float = Field(default=0.4, ge=0, le=1)
    run_decline_sample: int = Field(default=100, ge=1)
    run_forecast_share: float = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_not_set(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Compose files write `NAME: ${NAME:-}`. But an address that is lost that way must not become the real one."""
        return {name: value for name, value in values.items() if value != "" or name in _ADDRESSES}

    @field_validator("database_url")
    @classmethod
    def _postgres_only(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        check_database_url(value.get_secret_value())
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        check_redis_url(value.get_secret_value())
        return value

    @field_validator("xendit_secret_key")
    @classmethod
    def _key_prefix(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        _refuse_strays(value.get_secret_value())
        if not value.get_secret_value().startswith(_KEYS):
            raise ValueError("must start with xnd_development_ or xnd_production_ (a public key cannot charge)")
        if value.get_secret_value() in _KEYS:
            raise ValueError("ends after its first words; copy it once more, the whole of it")
        return value

    @field_validator("xendit_callback_token")
    @classmethod
    def _no_empty_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        tokens = _listed(value.get_secret_value())
        if not tokens:
            raise ValueError("holds no token")
        for token in tokens:
            _refuse_strays(token)
        return value

    @field_validator("xendit_base_url")
    @classmethod
    def _host_alone(cls, value: str) -> str:
        return check_web_address(value, path=False)

    @field_validator("public_url")
    @classmethod
    def _web_address(cls, value: str) -> str:
        return check_web_address(value, path=True)

    @field_validator("run_spending_cap", "subscriber_daily_cap")
    @classmethod
    def _amounts(cls, value: str) -> str:
        """The shape only; that the currencies are known is seen when they are read as money (billing/app.py)."""
        for part in value.split(",") if value.strip() else ():
            if _AMOUNTS.fullmatch(part.strip()) is None:
                raise ValueError("must be a currency and a plain amount, several separated by commas")
        return value

    @field_validator("components_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    # What other rooms read -------------------------------------------------------------------------------

    @property
    def database(self) -> str:
        """The SQLAlchemy URL. Holds a password: never print it."""
        return _reveal(self.database_url)

    @property
    def redis(self) -> str:
        """Empty without Redis. May hold a password: never print it."""
        return _reveal(self.redis_url)

    @property
    def secret_key(self) -> str:
        return _reveal(self.xendit_secret_key)

    @property
    def callback_tokens(self) -> tuple[str, ...]:
        """All that are accepted now: two of them while one is being rotated."""
        return _listed(_reveal(self.xendit_callback_token))

    @property
    def is_production(self) -> bool:
        return self.secret_key.startswith("xnd_production_")

    @cached_property
    def requests_per_minute(self) -> float:
        """The gateway's quota per endpoint: as set, else what Xendit gives the kind of key."""
        return self.xendit_requests_per_minute or (600.0 if self.is_production else 60.0)

    @property
    def charges_at_once(self) -> int:
        """Attempts that are begun, sent and settled together: at most what the quota lets through in a tenth of a
        second, so that none waits for the others' turn."""
        if self.subscriber_daily_cap:
            return 1  # each charge of a customer has to see those before it
        return max(1, min(MOST_CHARGES_AT_ONCE, int(self.requests_per_minute / 600)))

    @property
    def return_base(self) -> str | None:
        """Base of return URLs. Xendit takes https only; None means: leave them out."""
        return self.public_url if self.public_url.startswith("https://") else None


def _listed(text: str) -> tuple[str, ...]:
    """Several, separated by commas with or without blanks around them."""
    return tuple(part for part in re.split(" *, *", text) if part)


def _refuse_strays(secret: str) -> None:
    for stray, name in _STRAYS:
        if stray.search(secret):
            raise ValueError(f"holds {name}; copy it once more, without anything around it")


def _reveal(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret is not None else ""


def load_settings(*needs: str, **overrides: Any) -> Settings:
    """Read the settings and refuse to go on without those in `needs` (field names such as "database_url").

    Raises InvalidSetting: one line that names the variable, what is wrong and an example; no value is shown.
    """
    try:
        settings = Settings(_env_file=_env_files(), **overrides)
    except ValidationError as error:
        raise InvalidSetting(_one_line(error)) from None
    except (OSError, UnicodeError) as error:
        raise InvalidSetting(f".env cannot be read: {error.__class__.__name__}; make it a UTF-8 text file") from None
    _warn_of_misspelled()
    if settings.test_clock and settings.is_production:
        raise InvalidSetting(
            "BILLING_TEST_CLOCK: a moved clock would charge real customers early; unset it,"
            " or use a development key (BILLING_XENDIT_SECRET_KEY=xnd_development_...)"
        )
    require(settings, *needs)
    return settings


def require(settings: Settings, *needs: str) -> None:
    """Refuse to go on without those in `needs` (field names). Raises InvalidSetting."""
    for name in needs:
        if not getattr(settings, name):
            raise InvalidSetting(f"BILLING_{name.upper()}: not set; for example {_EXAMPLES[name]}")


_NOT_SETTINGS = ("debug", "test_database_url", "test_redis_url")  # read elsewhere: by the command line, by the tests
_ALIKE = 0.75
_warned: set[str] = set()


def _warn_of_misspelled() -> None:
    """A variable that looks like ours and is none is left out silently otherwise. Never fatal, and nothing is said of
    those that look like none: later versions add variables, and some platforms add `BILLING_PORT` by themselves."""
    known = [*Settings.model_fields, *_NOT_SETTINGS]
    in_file = DotEnvSettingsSource(Settings, env_file=_env_files(), env_file_encoding="utf-8").env_vars
    set_here = {name.lower() for name in (*os.environ, *in_file)}
    for variable in sorted(name for name in set_here if name.startswith("billing_")):
        name = variable.removeprefix("billing_")
        near = get_close_matches(name, Settings.model_fields, n=1, cutoff=_ALIKE)
        if near and name not in known and variable not in _warned:
            _warned.add(variable)
            with suppress(Exception):  # nobody need be there to read it
                sys.stderr.write(
                    f"billing: warning: {variable.upper()} is no setting and changes nothing;"
                    f" did you mean BILLING_{near[0].upper()}?\n"
                )


def _env_files() -> tuple[Path, ...]:
    """Later files win. The file of `billing dev` counts only while that process lives."""
    files = [Path(".env")]
    if dev_is_running():
        files.append(DEV_ENV_FILE)
    return tuple(files)


def dev_is_running() -> bool:
    """Whether `billing dev` runs in this folder: it holds a lock on its file as long as it lives. (The number of a
    process that was killed soon belongs to another one, in a container at the next start.)"""
    try:
        with DEV_ENV_FILE.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:
        return False
    return False


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    name = str(first["loc"][0]) if first["loc"] else "settings"
    reason = first["msg"].removeprefix("Value error, ")
    return f"BILLING_{name.upper()}: {reason}; for example {_EXAMPLES.get(name, _default_example(name))}"


def _default_example(name: str) -> str:
    field = Settings.model_fields.get(name)
    return f"BILLING_{name.upper()}={field.default if field else '...'}"
