"""No attack: shows what a busy attacker costs the good client, with which it shares a core."""

from tests.chaos.attack import Target, attack


@attack(
    "no-attack", does="opens one connection and keeps its core busy, for comparison", stands_for="control"
)
def no_attack(target: Target) -> None:
    """Spin. What the good client's p99 gains here is not the server's."""
    target.connect()
    while True:
        pass
