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
    "Nothing was answered in this browser yet. Ask something under Chat, then come back.": (
        "В этом браузере ещё ничего не отвечали. Задайте вопрос на вкладке «Чат» и вернитесь сюда."
    ),
    "Show the last answer": "Показать последний ответ",
    "Where time went": "На что ушло время",
    "What it cost": "Чего это стоило",
    "How likely each token was": "Вероятность каждого токена",
    "Point at a token, or tap it, to see what else might have come.": (
        "Наведите указатель на токен или коснитесь его, чтобы увидеть другие возможные."
    ),
    "What the model saw": "Что видела модель",
    "There was no picture.": "Картинки не было.",
    "Parts of the prompt": "Части запроса",
    "The prompt": "Запрос",
    "A frame stands for a picture, with its number of tokens.": (
        "Рамка стоит на месте картинки, в ней число токенов."
    ),
    "The answer was stopped before its end.": "Ответ остановили до конца.",
    "The answer was stopped before its first token.": "Ответ остановили до первого токена.",
    "Not kept. The settings under Chat can turn it on for the next answer.": (
        "Не сохранено. Для следующего ответа это можно включить в настройках чата."
    ),
    "The prompt cannot be shown: {why}": "Запрос нельзя показать: {why}",
    "Where the answer points": "На что указывает ответ",
    "answered by {model}": "отвечала модель {model}",
    "no answer": "нет ответа",
    "first token": "первый токен",
    "whole answer": "весь ответ",
    "tokens per second": "токенов в секунду",
    "tokens of the answer": "токенов в ответе",
    "tokens of the prompt": "токенов в запросе",
    "tiles of pictures": "частей картинок",
    "{count}, {drafted} of them guessed ahead": "{count}, из них угадано заранее: {drafted}",
    "{count}, {cached} of them known from before": "{count}, из них уже известно: {cached}",
    "{encoded} encoded, {cached} known from before": "обработано: {encoded}, уже известно: {cached}",
    "most memory so far, all models together": "наибольшая память, все модели вместе",
    "loading the model": "загрузка модели",
    "part": "часть",
    "all": "всего",
    "wait for the model": "ожидание модели",
    "prepare pictures": "подготовка картинок",
    "encode pictures": "обработка картинок",
    "read the prompt": "чтение запроса",
    "write the answer": "написание ответа",
    "Most likely here:": "Вероятнее всего здесь:",
    "picture {number}, whole": "картинка {number}, целиком",
    "picture {number}, row {row}, column {column}": "картинка {number}, ряд {row}, столбец {column}",
    "{count} ms": "{count} мс",
    "{count} MB": "{count} МБ",
    "unknown": "неизвестно",
    "number of tokens": "число токенов",
    # Compare
    "What is in the picture?": "Что на картинке?",
    "Question": "Вопрос",
    "Ask both": "Спросить обе",
    "Left model": "Модель слева",
    "Right model": "Модель справа",
    "More settings": "Другие настройки",
    "Temperature": "Температура",
    "0 takes the most likely token each time": "0: каждый раз самый вероятный токен",
    "Detail of pictures": "Подробность картинок",
    "for models that split pictures into tiles": "для моделей, которые делят картинки на части",
    "the model's usual": "обычная для модели",
    "low": "низкая",
    "high": "высокая",
    "automatic": "автоматическая",
    "System prompt": "Системная инструкция",
    "Choose a model on both sides.": "Выберите модель с обеих сторон.",
    "Of a picture that moves, the model sees the first frame.": (
        "В движущейся картинке модель видит только первый кадр."
    ),
    "waits for the left side": "ждёт, пока ответят слева",
    "loading the model …": "модель загружается …",
    "answering …": "отвечает …",
    "stopped": "остановлено",
    "could not answer": "ответить не удалось",
    "left": "слева",
    "right": "справа",
    "temperature": "температура",
    "detail of pictures": "подробность картинок",
    "system prompt": "системная инструкция",
    "none": "нет",
    "tokens known from before": "уже известных токенов",
    "size on disk": "размер на диске",
    "memory for loading it": "память на загрузку",
    # Models
    "Models that came with edgevlm, and those that edgevlm export made on this machine. "
    "What you load here is used in this browser alone.": (
        "Модели из поставки edgevlm и те, что сделаны на этом компьютере командой edgevlm export. "
        "То, что вы загрузите здесь, используется только в этом браузере."
    ),
    "Model": "Модель",
    "Load and use": "Загрузить и использовать",
    "Refresh the list": "Обновить список",
    "There is no model that could be loaded.": "Нет модели, которую можно было бы загрузить.",
    "Loading {model}: {step} …": "Загрузка {model}: {step} …",
    "looking for it": "поиск модели",
    "checking its files": "проверка файлов",
    "reading its files": "чтение файлов",
    "{model} cannot be loaded, so {chosen} stays in use. {why}": (
        "Модель {model} не загружается, поэтому по-прежнему используется {chosen}. {why}"
    ),
    "model": "модель",
    "size": "размер",
    "state": "состояние",
    "in use": "используется",
    "loaded": "загружена",
    "ready": "готова",
    "being checked": "проверяется",
    "broken": "повреждена",
    "vision {vision}; decoder {decoder}; context {context} tokens": (
        "зрение {vision}; декодер {decoder}; контекст {context} токенов"
    ),
    "runs on": "работает на",
    "made from": "сделана из",
    "license": "лицензия",
    "folder": "папка",
    "This model sees drawings only; on photographs it guesses.": (
        "Эта модель видит только рисунки, на фотографиях она гадает."
    ),
    "The tab Models tells how to get a model for photographs.": (
        "Как получить модель для фотографий, сказано на вкладке «Модели»."
    ),
    "To get a model for photographs, run this in the folder of edgevlm's sources. It downloads "
    "about 500 MB, needs no network after that, and puts the model into this list:": (
        "Чтобы получить модель для фотографий, выполните это в папке с исходным кодом edgevlm. "
        "Загрузится около 500 МБ, дальше сеть не нужна, и модель появится в этом списке:"
    ),
}
