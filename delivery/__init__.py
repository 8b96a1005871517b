"""What Caddy serves, and how it gets there: over the Docker connection, without replacing the container."""

from delivery.caddy import Delivered, deliver, delivered_digest, unanswered
from delivery.content import Content, content_of, forget_content
from delivery.engine import engine_at
from delivery.image import try_image
from delivery.program import DeliveryError, last_words, runs

__all__ = [
    "Content",
    "Delivered",
    "DeliveryError",
    "content_of",
    "deliver",
    "delivered_digest",
    "engine_at",
    "forget_content",
    "last_words",
    "runs",
    "try_image",
    "unanswered",
]
