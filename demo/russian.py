"""The page's texts in Russian, by their English."""

from __future__ import annotations

RUSSIAN = {
    # the page
    "Chat": "Чат",
    "Live": "Камера",
    "Inside": "Внутри",
    "Compare": "Сравнение",
    "Models": "Модели",
    "with {model}, on this machine": "с моделью {model}, на этом компьютере",
    "Sorry": "Не вышло",
    # Chat
    # conversations and settings
    # Live
    # Inside
    # Compare
    # Models
}
