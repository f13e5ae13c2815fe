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
    "New conversation": "Новый разговор",
    "Conversations": "Разговоры",
    "Search": "Поиск",
    "Search in titles and texts": "Поиск в названиях и текстах",
    "Save as a file": "Сохранить в файл",
    "Save as Markdown": "Сохранить как Markdown",
    "Open a file": "Открыть файл",
    "This conversation went on in another tab. What was said here is kept as a copy.": (
        "Этот разговор продолжили в другой вкладке. Сказанное здесь сохранено отдельной копией."
    ),
    "{count} conversations are kept at most; the oldest is gone: {title}": (
        "Хранится не больше {count} разговоров; удалён самый старый: {title}"
    ),
    "“{title}” was deleted. For ten minutes the list can take that back.": (
        "«{title}» удалён. Вернуть его можно в списке в течение десяти минут."
    ),
    "No conversation has this in its title or text.": (
        "Ни в названиях, ни в текстах разговоров этого нет."
    ),
    "Nothing is kept yet. Ask something, and it will be.": (
        "Пока ничего не сохранено. Задайте вопрос, и разговор появится здесь."
    ),
    "without words": "без слов",
    "Take back": "Вернуть",
    "deleted": "удалён",
    "Rename": "Переименовать",
    "Delete": "Удалить",
    "The newest {count} are kept until edgevlm demo ends. Save those as files that you want for longer.": (
        "Последние {count} разговоров хранятся, пока работает edgevlm demo. "
        "Нужные надолго сохраните в файл."
    ),
    "The conversation is empty; there is nothing to save.": ("Разговор пуст; сохранять нечего."),
    "Reset the settings": "Сбросить настройки",
    "The model {model} that was chosen here is gone or broken; {first} answers now.": (
        "Выбранной здесь модели {model} больше нет или она повреждена; теперь отвечает {first}."
    ),
    # Live
    # Inside
    # Compare
    # Models
}
