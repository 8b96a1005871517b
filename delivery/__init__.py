"""What Caddy serves, and how it gets there: over the Docker connection, without replacing the container."""

from delivery.content import Content, content_of
from delivery.engine import engine_at
from delivery.order import DeliveryError, deliver, delivered_digest

__all__ = ["Content", "DeliveryError", "content_of", "deliver", "delivered_digest", "engine_at"]
