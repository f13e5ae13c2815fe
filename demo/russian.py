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
    "The demo has ended": "Демонстрация завершена",
    "Nothing answers at this address any more. Start edgevlm demo again, then go on here.": (
        "По этому адресу больше никто не отвечает. Запустите edgevlm demo снова и продолжайте здесь."
    ),
    "Still nothing answers. Start edgevlm demo again on the same port.": (
        "Ответа всё ещё нет. Запустите edgevlm demo снова на том же порту."
    ),
    "Try again": "Попробовать снова",
    "Picture": "Изображение",
    # names that Gradio gives in English only
    "Close": "Закрыть",
    "Copy message": "Копировать сообщение",
    "Download": "Скачать",
    "Empty value": "Пусто",
    "Exit fullscreen mode": "Выйти из полноэкранного режима",
    "Fullscreen": "Во весь экран",
    "Multimedia input field": "Поле вопроса",
    "Remove file": "Убрать файл",
    "Reset to default value": "Вернуть значение по умолчанию",
    "Scroll down": "Прокрутить вниз",
    "Stop": "Остановить",
    "Submit": "Отправить",
    "Upload a file": "Загрузить файл",
    "Uploaded files": "Загруженные файлы",
    "Uploading": "Загрузка",
    "chatbot conversation": "Разговор",
    "clear input": "Очистить",
    "{name}: number": "{name}: число",
    "{name}: slider": "{name}: ползунок",
    "Example: {name}": "Пример: {name}",
    "Question: {name}": "Вопрос: {name}",
    "Answer: {name}": "Ответ: {name}",
    # Chat
    # conversations and settings
    # Live
    # Inside
    # Compare
    # Models
}
