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
    "This model sees drawings only. In a photograph it guesses: see Models for one that sees photographs.": (
        "Эта модель видит только рисунки. На фотографиях она угадывает; где взять модель "
        "для фотографий, сказано на вкладке «Модели»."
    ),
    "A model for photographs comes from a checkpoint, with one command in the folder of edgevlm. "
    "It downloads about 500 MB; after that the network is not needed.": (
        "Модель для фотографий получают из контрольной точки одной командой в папке edgevlm. "
        "Загрузится около 500 МБ; дальше сеть не нужна."
    ),
}
