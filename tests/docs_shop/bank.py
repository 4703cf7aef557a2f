"""A bank in memory, as the samples meet it: it charges once per idempotency key, and may time out after it has."""

from decimal import Decimal

charges: dict[str, Decimal] = {}
times_out: list[bool] = []


def charge(amount: Decimal, *, idempotency_key: str) -> str:
    charges.setdefault(idempotency_key, amount)
    if times_out:
        times_out.pop()
        raise TimeoutError("the bank did not answer")
    return f"charge-{idempotency_key}"
