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
