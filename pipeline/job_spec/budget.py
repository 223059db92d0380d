"""What a run may cost in time and money: prices, a largest cost and a deadline."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.job_spec.deadline import is_deadline
from pipeline.settings import Section

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class BudgetSection(Section):
    """The price of the workers, and the limits at which a run stops; nothing here changes the results.

    price_per_hour: of one worker. price_per_node_hour: of a node, with workers_per_node of them; instead of it.
    currency: any text, shown behind amounts.
    max_cost: a run stops before its workers, earlier sessions included, have cost more.
    deadline: a duration from the command's start, a clock time or a date; see `job_spec.deadline.deadline_after`.
    on_deadline: whether a run that has not ended by then is stopped, or only reported as late.
    refuse_late: do not start a run that is expected to exceed its deadline or its largest cost, instead of a warning.
    """

    price_per_hour: Price | None = Field(default=None, description="the price of one worker for an hour, 0 or more")
    price_per_node_hour: Price | None = Field(default=None, description="the price of one node for an hour, 0 or more")
    workers_per_node: int | None = Field(default=None, ge=1, description="a whole number, at least 1")
    currency: str = Field(default="", max_length=16, description="a text of at most 16 characters, such as EUR")
    max_cost: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="an amount of money, more than 0"
    )
    deadline: Annotated[str, BeforeValidator(is_deadline)] | None = Field(default=None, description="a deadline")
    on_deadline: Literal["stop", "warn"] = Field(default="stop", description='"stop" or "warn"')
    refuse_late: bool = Field(default=False, description="true or false")

    @model_validator(mode="after")
    def _settle_together(self) -> Self:
        if self.price_per_hour is not None and self.price_per_node_hour is not None:
            raise ValueError("price_per_hour (of a worker) and price_per_node_hour exclude each other; keep one")
        if (self.price_per_node_hour is None) != (self.workers_per_node is None):
            raise ValueError("price_per_node_hour and workers_per_node need each other")
        if self.max_cost is not None and not self.worker_price:
            raise ValueError("max_cost needs a price above 0: price_per_hour (--price-per-hour)")
        if self.refuse_late and self.deadline is None and self.max_cost is None:
            raise ValueError("refuse_late needs a deadline (--deadline) or max_cost (--max-cost)")
        return self

    @property
    def worker_price(self) -> float | None:
        """The price of one worker for an hour; None when no price is given."""
        if self.price_per_node_hour is not None and self.workers_per_node is not None:
            return self.price_per_node_hour / self.workers_per_node
        return self.price_per_hour

    def amount(self, money: float) -> str:
        """Return an amount as text, see `amount_text`."""
        return amount_text(money, self.currency)


def amount_text(money: float, currency: str) -> str:
    """Return an amount as text: "12.30 EUR"; of less than one unit, with three significant digits."""
    number = f"{money:,.2f}" if money >= 1 or money == 0 else f"{money:.3g}" if money >= 1e-4 else f"{money:.1e}"
    return f"{number} {currency}".strip()
